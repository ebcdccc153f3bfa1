"""Every write to runs and snapshots."""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Count
from django.utils import timezone

from server import blobs
from server.domain.errors import Conflict, InvalidInput, Unprocessable
from server.domain.splits import Split, Unit, assign_splits, cap_contributors
from server.domain.variants import MENU
from server.http import audit
from server.jobs import actions as jobs
from server.jobs import names
from server.photos.models import Photo
from server.registry import actions as registry
from server.registry.actions import check_labels
from server.registry.models import Model, ModelVersion
from server.registry.queries import label_names, training_policy
from server.training import queries, uploads
from server.training.golden import list_golden
from server.training.models import (
    DatasetSnapshot,
    RunLine,
    SnapshotEntry,
    SplitAssignment,
    TrainingRun,
)

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

    from server.domain.policy import TrainingPolicy

    Actor = AbstractBaseUser | AnonymousUser | None

# Fewer known contributors than this cannot fill three splits.
MIN_CONTRIBUTORS = 3


_JOBS = {
    TrainingRun.Kind.TRAIN: names.TRAIN,
    TrainingRun.Kind.COMPILE_UPLOAD: names.COMPILE_UPLOAD,
    TrainingRun.Kind.COMPILE_VARIANTS: names.COMPILE_VARIANTS,
    TrainingRun.Kind.SEARCH: names.SEARCH,
}


def request_run(
    *,
    model: Model,
    trigger: str = "manual",
    kind: TrainingRun.Kind = TrainingRun.Kind.TRAIN,
    version: ModelVersion | None = None,
    actor: Actor = None,
) -> TrainingRun:
    """Queue a run and the job that does it.

    Raises:
        Conflict: ``run_active`` (a model has one unfinished run), ``model_retired``.

    """
    if model.retired_at is not None:
        message = f"{model.slug} is retired and is not trained any more."
        raise Conflict(message, code="model_retired")
    try:
        with transaction.atomic():
            run = TrainingRun.objects.create(
                model=model,
                kind=kind,
                trigger=trigger,
                version=version,
                seed=training_policy(model).seed,
                requested_by_id=actor.pk if actor is not None and actor.is_authenticated else None,
            )
            job = jobs.enqueue(
                name=_JOBS[kind],
                args={"run_id": str(run.pk)},
                queue="ml",
                unique_key=f"run:{run.pk}",
            )
            run.job_id = job.pk
            run.save(update_fields=["job_id"])
            audit.record(
                actor=actor, action="run.request", subject=run, detail={"trigger": trigger}
            )
    except IntegrityError as error:
        active = model.runs.filter(state__in=TrainingRun.ACTIVE).first()
        message = f"{model.slug} has an unfinished run already; wait for it or cancel it."
        raise Conflict(
            message, code="run_active", run=str(active.pk) if active else None
        ) from error
    return run


def upload_version(
    *,
    model: Model,
    file: BinaryIO,
    filename: str,
    labels: Sequence[str] = (),
    notes: str = "",
    preprocessing: dict[str, Any] | None = None,
    task: str = "",
    actor: Actor = None,
) -> TrainingRun:
    """Store a trained file as a draft version and queue the run that compiles and measures it.

    Raises:
        TooLarge, UnsupportedMediaType, Unprocessable: see ``uploads.check_upload``.
        InvalidInput: ``invalid_labels``.
        Conflict: as ``request_run``.

    """
    checked = check_labels(labels) if labels else []
    uploads.check_upload(file, filename, max_bytes=settings.MAX_MODEL_BYTES)
    # Before the bytes are copied; the request below is what is certain.
    _refuse_second_run(model)
    blob = blobs.store().put_stream(file)
    with transaction.atomic():
        version = registry.draft_version(
            model=model,
            source=ModelVersion.Source.UPLOADED,
            labels=checked,
            lineage={"upload": {"filename": filename, "size_bytes": blob.size_bytes}},
            preprocessing=preprocessing,
            signature={"task": task} if task else {},
            source_sha256=blob.sha256,
            source_filename=filename,
            notes=notes,
        )
        return request_run(
            model=model,
            trigger="upload",
            kind=TrainingRun.Kind.COMPILE_UPLOAD,
            version=version,
            actor=actor,
        )


def request_variants(
    *, version: ModelVersion, kinds: Sequence[str], actor: Actor = None
) -> TrainingRun:
    """Queue the run that compiles more files of a published version, into a version of their own.

    The new version has the same weights, the files that there are, and ``kinds`` beside them.

    Raises:
        InvalidInput: ``unknown_variant``.
        Conflict: ``version_not_published``, ``version_not_compilable``, ``variants_exist``, and
            as ``request_run``.

    """
    wanted = list(dict.fromkeys(kinds))
    _check_derivable(version, wanted)
    _refuse_second_run(version.model)
    with transaction.atomic():
        derived = registry.draft_version(
            model=version.model,
            source=ModelVersion.Source(version.source),
            labels=version.labels,
            lineage={**version.lineage, "derived_from": version.number, "kinds": wanted},
            architecture=version.architecture,
            preprocessing=version.preprocessing,
            parent=version,
            signature=version.signature,
            source_sha256=version.source_sha256,
            source_filename=version.source_filename,
            notes=version.notes,
        )
        return request_run(
            model=version.model,
            trigger="variants",
            kind=TrainingRun.Kind.COMPILE_VARIANTS,
            version=derived,
            actor=actor,
        )


def _check_derivable(version: ModelVersion, kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in MENU]
    if unknown or not kinds:
        named = ", ".join(repr(kind[:40]) for kind in unknown) or "nothing"
        message = f"{named} cannot be compiled; choose from {', '.join(MENU)}."
        raise InvalidInput(message, code="unknown_variant")
    if version.state != ModelVersion.State.PUBLISHED:
        message = f"Version {version} is {version.state}; only a published one is compiled further."
        raise Conflict(message, code="version_not_published")
    if version.signature.get("task") == "other":
        message = (
            f"Version {version} is no classifier; its files are compiled with the upload alone."
            " Change the policy's variants and upload it again."
        )
        raise Conflict(message, code="version_not_compilable")
    if not version.source_filename.endswith(".keras"):
        message = (
            f"Version {version} was uploaded as {version.source_filename or 'a compiled file'}:"
            " without its Keras network nothing else can be compiled from it."
        )
        raise Conflict(message, code="version_not_compilable")
    if version.signature.get("task") == "other":
        message = f"Version {version} is no classifier, and only those are compiled on demand."
        raise Conflict(message, code="version_not_compilable")
    shipped = queries.shipped_kinds(version)
    if set(kinds) <= shipped:
        message = f"Version {version} has all of that already: {', '.join(sorted(shipped))}."
        raise Conflict(message, code="variants_exist")


def _refuse_second_run(model: Model) -> None:
    active = model.runs.filter(state__in=TrainingRun.ACTIVE).first()
    if active is not None:
        message = f"{model.slug} has an unfinished run already; wait for it or cancel it."
        raise Conflict(message, code="run_active", run=str(active.pk))


@transaction.atomic
def cancel_run(*, run: TrainingRun, actor: Actor) -> TrainingRun:
    """Ask a run to stop; one that no worker has begun ends at once.

    Raises:
        Conflict: ``run_finished``.

    """
    locked = TrainingRun.objects.select_for_update().get(pk=run.pk)
    if locked.state not in TrainingRun.ACTIVE:
        message = f"The run has {locked.state} already."
        raise Conflict(message, code="run_finished")
    audit.record(actor=actor, action="run.cancel", subject=locked)
    if locked.job_id is not None:
        jobs.request_cancel(job_id=locked.job_id)
    if locked.state == TrainingRun.State.QUEUED:
        _finish(locked, TrainingRun.State.CANCELLED, "Cancelled before it began.")
    else:
        write_line(run=locked, stage=locked.stage, message="Cancelling was asked for.")
    return locked


@transaction.atomic
def start_run(*, run_id: uuid.UUID | str) -> TrainingRun:
    """Mark a run as running; one begun by a worker that died begins anew.

    Raises:
        Conflict: ``run_finished``: there is nothing left to do.

    """
    run = TrainingRun.objects.select_for_update().select_related("model").get(pk=run_id)
    if run.state not in TrainingRun.ACTIVE:
        message = f"The run has {run.state} already."
        raise Conflict(message, code="run_finished")
    if run.state == TrainingRun.State.RUNNING:
        write_line(
            run=run,
            stage="start",
            message="The worker stopped; the run starts again.",
            level="warning",
        )
    run.state = TrainingRun.State.RUNNING
    run.started_at = run.started_at or timezone.now()
    run.save(update_fields=["state", "started_at"])
    return run


def report_progress(
    *, run: TrainingRun, stage: str, step: int, total: int, metrics: dict[str, float]
) -> None:
    """Show where a run is: a cheap update of one row, and the curve's points as lines."""
    TrainingRun.objects.filter(pk=run.pk, state=TrainingRun.State.RUNNING).update(
        stage=stage, step=step, total_steps=total, progress=metrics
    )
    if metrics:
        RunLine.objects.create(run=run, stage=stage, step=step, metrics=metrics)


def write_line(*, run: TrainingRun, stage: str, message: str, level: str = "info") -> None:
    """Add a sentence to a run's log."""
    RunLine.objects.create(run=run, stage=stage, message=message, level=level)


@transaction.atomic
def succeed_run(*, run: TrainingRun, outcome: str) -> None:
    """Close a run that reached its end, whether or not its candidate was released."""
    locked = TrainingRun.objects.select_for_update().get(pk=run.pk)
    if locked.state in TrainingRun.ACTIVE:
        _finish(locked, TrainingRun.State.SUCCEEDED, outcome)


@transaction.atomic
def fail_run(
    *, run_id: uuid.UUID | str, reason: str, code: str = "run_failed", state: str = "failed"
) -> None:
    """Close a run that did not; the incumbent stays what it was."""
    run = TrainingRun.objects.select_for_update().get(pk=run_id)
    if run.state in TrainingRun.ACTIVE:
        run.error_code = code if state == TrainingRun.State.FAILED else ""
        _finish(run, TrainingRun.State(state), reason)


def _finish(run: TrainingRun, state: TrainingRun.State, outcome: str) -> None:
    run.state = state
    run.outcome = outcome
    run.finished_at = timezone.now()
    run.save(update_fields=["state", "outcome", "finished_at", "error_code"])
    level = "error" if state == TrainingRun.State.FAILED else "info"
    write_line(run=run, stage=run.stage or "end", message=outcome, level=level)
    if state != TrainingRun.State.SUCCEEDED and run.version_id is not None:
        drafts = ModelVersion.objects.filter(pk=run.version_id, state=ModelVersion.State.DRAFT)
        drafts.update(state=ModelVersion.State.FAILED, failure=outcome)


@transaction.atomic
def freeze_snapshot(*, run: TrainingRun) -> DatasetSnapshot:
    """Freeze the accepted photos and their splits for a run; a restarted run keeps its own.

    Raises:
        Unprocessable: ``too_few_labels``, ``too_few_photos`` or ``no_test_photos``, with a
            sentence that says what is missing.

    """
    if run.snapshot is not None:
        return run.snapshot
    model, policy = run.model, training_policy(run.model)
    # One worker at a time assigns splits of a model.
    Model.objects.select_for_update().get(pk=model.pk)
    accepted = list(queries.accepted_photos(model))
    labels = _trainable_labels(accepted, model, policy)
    photos = [photo for photo in accepted if photo.label.name in labels]
    split_by, splits = _split(model, photos, policy)
    copies = _copies(model, photos, splits)
    distinct = [photo for photo in photos if photo.pk not in copies]
    kept = cap_contributors(
        ((str(p.pk), p.label.name, p.contributor) for p in distinct if splits[p.pk] == "train"),
        max_share=policy.max_contributor_share,
        nonce=model.slug,
    )
    entries = [p for p in distinct if splits[p.pk] != "train" or str(p.pk) in kept]
    golden = set(list_golden(model).values_list("photo_id", flat=True))
    counts = _count(entries, splits)
    _check_counts(counts, labels, policy)
    snapshot = DatasetSnapshot.objects.create(
        model=model,
        labels=labels,
        counts={
            **counts,
            "left_out_by_cap": len(distinct) - len(entries),
            "left_out_as_copies": len(copies),
        },
        facts=_facts(accepted, entries, splits, golden, policy),
        split_by=split_by,
        digest=_digest(entries, splits, golden),
    )
    SnapshotEntry.objects.bulk_create(
        (
            SnapshotEntry(
                snapshot=snapshot,
                photo=p,
                label=p.label.name,
                split=splits[p.pk],
                is_golden=p.pk in golden,
            )
            for p in entries
        ),
        batch_size=1000,
    )
    run.snapshot = snapshot
    run.save(update_fields=["snapshot"])
    return snapshot


def _trainable_labels(photos: list[Photo], model: Model, policy: TrainingPolicy) -> list[str]:
    counts = Counter(photo.label.name for photo in photos)
    minimum = policy.min_photos_per_label
    labels = [label for label in label_names(model) if counts[label] >= minimum]
    if len(labels) < 2:  # noqa: PLR2004 - a choice needs two
        have = ", ".join(f"{label} {counts[label]}" for label in label_names(model)) or "none"
        message = (
            f"Training needs two labels with at least {minimum} accepted photos each;"
            f" there are: {have}. Collect or accept more photos."
        )
        raise Unprocessable(message, code="too_few_labels")
    return labels


def _split(
    model: Model, photos: list[Photo], policy: TrainingPolicy
) -> tuple[str, dict[uuid.UUID, Split]]:
    contributors = {photo.contributor for photo in photos if photo.contributor}
    by_contributor = len(contributors) >= MIN_CONTRIBUTORS
    pinned: dict[str, Split] = dict(
        SplitAssignment.objects.filter(model=model).values_list("unit", "split")  # type: ignore[arg-type]
    )
    units: dict[uuid.UUID, str] = {}
    for photo in photos:
        own, shared = f"photo:{photo.pk}", f"contributor:{photo.contributor}"
        known = own if own in pinned else shared if photo.contributor and shared in pinned else None
        units[photo.pk] = known or (shared if photo.contributor and by_contributor else own)
    assigned = assign_splits(
        _units(photos, units),
        pinned,
        nonce=model.slug,
        validation_share=policy.validation_share,
        test_share=policy.test_share,
    )
    SplitAssignment.objects.bulk_create(
        (SplitAssignment(model=model, unit=unit, split=split) for unit, split in assigned.items()),
        batch_size=1000,
    )
    everything = pinned | assigned
    splits = {photo.pk: everything[units[photo.pk]] for photo in photos}
    if not by_contributor:
        return "photo", splits
    # People who were too few at first had their photos assigned singly, and those stay.
    is_mixed = any(p.contributor and units[p.pk] == f"photo:{p.pk}" for p in photos)
    return ("mixed" if is_mixed else "contributor"), splits


def _units(photos: Iterable[Photo], units: dict[uuid.UUID, str]) -> list[Unit]:
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for photo in photos:
        labels[units[photo.pk]][photo.label.name] += 1
    return [Unit(key, counts) for key, counts in labels.items()]


def _count(photos: list[Photo], splits: dict[uuid.UUID, Split]) -> dict[str, Any]:
    by_split: dict[str, Counter[str]] = {
        "train": Counter(),
        "validation": Counter(),
        "test": Counter(),
    }
    for photo in photos:
        by_split[splits[photo.pk]][photo.label.name] += 1
    return {split: dict(counter) for split, counter in by_split.items()}


def _copies(model: Model, photos: list[Photo], splits: dict[uuid.UUID, Split]) -> set[uuid.UUID]:
    """Return the photos to leave out because the very same picture stands on the other side.

    Two people may send one file. What ever trained is no test; else the test photo stays.
    """
    repeated = (
        Photo.objects.filter(model=model)
        .order_by()
        .values("blob_digest")
        .annotate(count=Count("pk"))
        .filter(count__gt=1)
    )
    digests = {row["blob_digest"] for row in repeated}
    doubles = [photo for photo in photos if photo.blob_digest in digests]
    if not doubles:
        return set()
    entries = SnapshotEntry.objects.filter(
        snapshot__model=model, photo__blob_digest__in=repeated.values("blob_digest")
    )
    trained = set(entries.exclude(split="test").values_list("photo__blob_digest", flat=True))
    tested = {p.blob_digest for p in doubles if splits[p.pk] == "test"} - trained
    return {
        photo.pk
        for photo in doubles
        if photo.blob_digest in (trained if splits[photo.pk] == "test" else tested)
    }


def _facts(
    accepted: list[Photo],
    entries: list[Photo],
    splits: dict[uuid.UUID, Split],
    golden: set[uuid.UUID],
    policy: TrainingPolicy,
) -> dict[str, Any]:
    """Return what the model card says of the photos, while their rows can still tell."""
    sides = {p.pk: splits[p.pk] == "test" for p in entries}
    by_split: dict[str, list[Photo]] = {"train": [], "validation": [], "test": []}
    for photo in entries:
        by_split[splits[photo.pk]].append(photo)
    days = [photo.created_at.date().isoformat() for photo in entries]
    return {
        "accepted": dict(Counter(photo.label.name for photo in accepted)),
        "min_photos_per_label": policy.min_photos_per_label,
        "max_contributor_share": policy.max_contributor_share,
        "shares": {"validation": policy.validation_share, "test": policy.test_share},
        "contributors": {
            split: len({p.contributor for p in found if p.contributor})
            for split, found in by_split.items()
        },
        "without_contributor": sum(not photo.contributor for photo in entries),
        "cameras": {
            split: dict(Counter(p.camera for p in found if p.camera))
            for split, found in by_split.items()
        },
        "period": [min(days), max(days)] if days else [],
        "golden": sum(photo.pk in golden for photo in entries),
        "look_alikes": sum(
            sides.get(photo.resembles_id, sides[photo.pk]) != sides[photo.pk]
            for photo in entries
            if photo.resembles_id is not None
        ),
    }


def _check_counts(counts: dict[str, Any], labels: list[str], policy: TrainingPolicy) -> None:
    if sum(counts["test"].values()) < policy.min_test_photos:
        message = (
            f"Only {sum(counts['test'].values())} photos fall to the test set, and the policy asks"
            f" for {policy.min_test_photos}. Photos of more different people are needed."
        )
        raise Unprocessable(message, code="no_test_photos")
    untrained = [label for label in labels if not counts["train"].get(label)]
    if untrained:
        message = (
            f"No training photos of {', '.join(untrained)}: all of them come from people whose"
            " photos test or validate. Photos of more different people are needed."
        )
        raise Unprocessable(message, code="too_few_photos")


def _digest(
    photos: list[Photo], splits: dict[uuid.UUID, Split], golden: Collection[uuid.UUID]
) -> str:
    """Return a hash over content, label, split and what is golden, independent of ids and order."""
    lines = sorted(
        f"{p.blob_sha256} {p.label.name} {splits[p.pk]}{' golden' if p.pk in golden else ''}"
        for p in photos
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()

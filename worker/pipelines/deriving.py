"""More files of a published version: a version of the same weights, made on demand.

What is published never changes, and what a worker attests it has made itself or knows to be
attested. So the stored network is believed only where compiling it again gives a file that the
version it came from is attested with; else the new version counts as uploaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from server import blobs
from server.domain.errors import Conflict, DomainError, Unprocessable
from server.registry import actions as registry
from server.registry.models import ModelVersion
from server.registry.queries import training_policy
from server.registry.statements import statement
from server.training import actions as training
from server.training.models import TrainingRun
from server.trust import attestations
from worker.ml import determinism, evaluation
from worker.ml import training as ml_training
from worker.ml.compilers import compile_variant
from worker.ml.errors import MLError
from worker.ml.preprocessing import Preprocessing
from worker.pipelines import photos
from worker.pipelines.compressing import Compressor, training_photos
from worker.pipelines.failures import as_sentences
from worker.pipelines.reporting import Reporter
from worker.pipelines.variants import Reference, attest, compile_variants

if TYPE_CHECKING:
    from server.blobs import BlobStore
    from server.registry.models import Variant
    from worker.context import JobContext

_PLAIN: Final = ("tflite:float32", "tflite:float16", "coreml:float16")
"""Kinds that depend on nothing but the weights and the version's own words, cheapest first."""

_CARRIED: Final = (
    "runtime", "precision", "sha256", "size_bytes", "media_type", "filename", "metrics",
    "requires", "checks", "selftest", "is_shipped",
)  # fmt: skip


def run(context: JobContext) -> Mapping[str, Any] | None:
    """Perform the run that the job names; every failure becomes a sentence on the run."""
    try:
        started = training.start_run(run_id=context.args["run_id"])
    except Conflict:
        return None
    with as_sentences():
        return derive(
            started, context=context, reporter=Reporter(started, context), store=blobs.store()
        )


def derive(
    run: TrainingRun, *, context: JobContext, reporter: Reporter, store: BlobStore
) -> dict[str, Any]:
    """Carry the parent's files over, compile what was asked for beside them, and publish."""
    version = run.version
    if version is None or version.parent is None:
        message = "The version to compile from is gone."
        raise Unprocessable(message, code="version_gone")
    parent, kinds = version.parent, list(version.lineage["kinds"])
    if parent.model_id != version.model_id:
        message = f"Version {parent} belongs to another model; nothing is made from it."
        raise Unprocessable(message, code="version_gone")
    # By what is attested, and not by what the draft's row says.
    version.labels, version.preprocessing = parent.labels, parent.preprocessing
    version.source_sha256, version.signature = parent.source_sha256, parent.signature
    run.pins = determinism.pin(run.seed)
    run.save(update_fields=["pins"])
    reporter.progress("loading", 0, 1, {})
    with store.open(version.source_sha256) as file:
        model = ml_training.load_keras(file.read())
    version.weights_sha256 = ml_training.weights_digest(model)
    carried = list(parent.variants.filter(is_shipped=True))
    version.source = _source(parent, carried, model, reporter)
    version.save()
    train, reference = _reference(version, model, store)
    policy = training_policy(version.model)
    made = compile_variants(
        version,
        reference,
        kinds=kinds,
        tolerance=policy.variant_tolerance,
        min_agreement=policy.variant_agreement,
        store=store,
        reporter=reporter,
        coreml_target=policy.coreml_target,
        compressor=Compressor(
            model,
            lambda: training_photos(model, train, reference.preprocessing, store),
            epochs=policy.compression_epochs,
            seed=run.seed,
            reporter=reporter,
        ),
    )
    return _publish(run, version, carried, made, context=context, reporter=reporter)


def _source(
    parent: ModelVersion, carried: Sequence[Variant], model: Any, reporter: Reporter
) -> ModelVersion.Source:
    """Return where the new version's files come from, as far as it can be shown."""
    known = ModelVersion.Source(parent.source)
    try:
        by = attestations.verify(statement(parent, carried), parent.attestation)
    except DomainError:
        # Without the key nothing is attested here: a person will have to, and sees the source.
        return known
    if by is None:
        reason = f"version {parent.number} is not attested as it stands"
    elif _is_same_network(parent, carried, model, reporter):
        return known
    else:
        reason = f"the stored network does not give the files of version {parent.number}"
    reporter.say(
        "loading",
        f"It cannot be shown that this network was trained here ({reason}), so the new version"
        " counts as uploaded.",
        level="warning",
    )
    return ModelVersion.Source.UPLOADED


def _is_same_network(
    parent: ModelVersion, carried: Sequence[Variant], model: Any, reporter: Reporter
) -> bool:
    """Compile a kind that is attested once more, and compare the bytes."""
    attested = {f"{one.runtime}:{one.precision}": one for one in carried}
    kind = next((kind for kind in _PLAIN if kind in attested), None)
    if kind is None:
        return False
    variant = attested[kind]
    digits = ml_training.weights_digest(model)[:12]
    try:
        made = compile_variant(
            model,
            variant.runtime,
            variant.precision,
            labels=parent.labels,
            preprocessing=Preprocessing.from_manifest(parent.preprocessing),
            # The model may have been renamed since; the hash shows whether this is its old name.
            name=variant.filename.split(f"-{digits}-")[0],
            version=digits,
        )
    except MLError as error:
        reporter.say("loading", f"{kind} cannot be made again: {error}", level="warning")
        return False
    return hashlib.sha256(made.data).hexdigest() == variant.sha256


def _reference(
    version: ModelVersion, model: Any, store: BlobStore
) -> tuple[photos.PhotoSet, Reference]:
    """Return the training photos, and what files are compared with.

    Of the snapshot that the version was trained from, so that figures compare with those of its
    other files; else of the newest.
    """
    preprocessing = Preprocessing.from_manifest(version.preprocessing)
    test, train = _photos(version)
    images = photos.load_images(test, preprocessing, store)
    count = training_policy(version.model).calibration_photos
    calibration = photos.load_images(photos.calibration_photos(train, count), preprocessing, store)
    probabilities = np.zeros((0, len(version.labels)), dtype=np.float32)
    if images:
        probabilities = evaluation.predict_keras(model, images, preprocessing)
    reference = Reference(model, images, test.targets, probabilities, calibration, preprocessing)
    return train, reference


def _photos(version: ModelVersion) -> tuple[photos.PhotoSet, photos.PhotoSet]:
    """Return test and training photos whose labels the version knows, targets by its own order."""
    snapshots = version.model.snapshots.all()
    snapshot = snapshots.filter(pk=version.lineage.get("snapshot")).first() or snapshots.first()
    index = {label: position for position, label in enumerate(version.labels)}
    sets = photos.split_sets(snapshot) if snapshot is not None else {}
    chosen = []
    for split in ("test", "train"):
        found = sets[split].entries if split in sets else ()
        entries = tuple(entry for entry in found if entry.label in index)
        targets = np.array([index[entry.label] for entry in entries], dtype=np.int64)
        chosen.append(photos.PhotoSet(entries, targets))
    return chosen[0], chosen[1]


def _publish(
    run: TrainingRun,
    version: ModelVersion,
    carried: Sequence[Variant],
    made: Sequence[Variant],
    *,
    context: JobContext,
    reporter: Reporter,
) -> dict[str, Any]:
    if not made:
        reasons = "; ".join(filter(None, version.variants.values_list("refusal", flat=True)))
        message = f"None of the files asked for may be shipped: {reasons}."
        raise Unprocessable(message, code="no_shipped_variant")
    parent = version.parent
    assert parent is not None  # noqa: S101 - derive() has seen it
    names = {(one.runtime, one.precision) for one in made}
    kept = [
        registry.add_variant(
            version=version, **{field: getattr(variant, field) for field in _CARRIED}
        )
        for variant in carried
        if (variant.runtime, variant.precision) not in names
    ]
    added = ", ".join(f"{one.runtime} {one.precision}" for one in made)
    outcome = (
        f"Version {version.number} has the weights and the {len(kept)} files of version"
        f" {parent.number}, and {added}. Release it when you like."
    )
    attestation = attest(version, [*kept, *made], source=version.source, reporter=reporter)
    with context.holding():
        registry.publish_version(version=version, metrics=parent.metrics, attestation=attestation)
        training.succeed_run(run=run, outcome=outcome)
        result = {"version": version.number, "outcome": outcome}
        context.complete(result)
    return result

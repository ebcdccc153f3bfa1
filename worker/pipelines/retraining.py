"""One training run: from accepted photos to a released version, or to a reason why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from server import blobs
from server.domain.errors import Conflict
from server.registry import actions as registry
from server.registry.models import ModelVersion
from server.registry.queries import training_policy
from server.rollouts import actions as rollouts
from server.rollouts import delivering
from server.rollouts import queries as rollout_queries
from server.training import actions as training
from worker.ml import determinism, evaluation
from worker.ml import training as ml_training
from worker.pipelines import fitting, gating, photos
from worker.pipelines.compressing import Compressor, training_photos
from worker.pipelines.failures import as_sentences
from worker.pipelines.reporting import Reporter
from worker.pipelines.variants import Reference, attest, compile_variants

if TYPE_CHECKING:
    from server.blobs import BlobStore
    from server.domain.policy import TrainingPolicy
    from server.training.models import DatasetSnapshot, TrainingRun
    from worker.context import JobContext
    from worker.pipelines.fitting import Trained


def run(context: JobContext) -> Mapping[str, Any] | None:
    """Perform the run that the job names; every failure becomes a sentence on the run."""
    try:
        started = training.start_run(run_id=context.args["run_id"])
    except Conflict:
        # A second delivery of a run that has ended.
        return None
    reporter = Reporter(started, context)
    with as_sentences():
        return retrain(started, context=context, reporter=reporter, store=blobs.store())


def retrain(
    run: TrainingRun, *, context: JobContext, reporter: Reporter, store: BlobStore
) -> dict[str, Any]:
    """Train, compile, judge and publish; return what the job reports."""
    policy = training_policy(run.model)
    run.pins = determinism.pin(run.seed)
    run.save(update_fields=["pins"])
    reporter.progress("snapshot", 0, 1, {})
    snapshot = training.freeze_snapshot(run=run)
    reporter.say("snapshot", _describe(snapshot))
    sets = photos.split_sets(snapshot)
    trained = fitting.fit(run, snapshot, sets, policy, reporter, store)
    version = _draft(run, snapshot, trained, store)
    reference = _reference(trained, sets, policy, store)
    reporter.progress("evaluating", 0, 1, {})
    metrics = gating.measure(reference, sets["test"], snapshot)
    reporter.say("evaluating", gating.describe(metrics))
    shipped = compile_variants(
        version,
        reference,
        kinds=policy.variants,
        tolerance=policy.variant_tolerance,
        min_agreement=policy.variant_agreement,
        store=store,
        reporter=reporter,
        coreml_target=policy.coreml_target,
        compressor=Compressor(
            trained.model,
            lambda: training_photos(trained.model, sets["train"], trained.preprocessing, store),
            epochs=policy.compression_epochs,
            seed=run.seed,
            reporter=reporter,
        ),
    )
    reporter.progress("gating", 0, 1, {})
    judgement = gating.judge(run.model, version.labels, reference, sets["test"], policy, store)
    attestation = attest(version, shipped, source=ModelVersion.Source.TRAINED, reporter=reporter)
    return _publish(run, version, metrics, judgement, policy, attestation, context)


def _describe(snapshot: DatasetSnapshot) -> str:
    sizes = {
        split: sum(counts.values())
        for split, counts in snapshot.counts.items()
        if isinstance(counts, dict)
    }
    sentence = (
        f"{sum(sizes.values())} photos of {len(snapshot.labels)} labels: {sizes['train']} train,"
        f" {sizes['validation']} validate, {sizes['test']} test, split by {snapshot.split_by}."
    )
    if snapshot.split_by == "mixed":
        sentence = sentence.replace("split by mixed", "split by contributor")
        sentence += (
            " People who were too few at first have their early photos assigned singly, so the"
            " test figure may flatter."
        )
    if snapshot.split_by == "photo":
        sentence += " Fewer than three contributors are known, so the test figure may flatter."
    if snapshot.counts.get("left_out_by_cap"):
        sentence += f" {snapshot.counts['left_out_by_cap']} left out by the contributor cap."
    return sentence


def _draft(
    run: TrainingRun, snapshot: DatasetSnapshot, trained: Trained, store: BlobStore
) -> ModelVersion:
    """Reserve the version, or take the one that an attempt before this one reserved."""
    source = store.put_bytes(ml_training.save_keras(trained.model))
    current = rollout_queries.incumbent(run.model, rollouts.PRODUCTION)
    values: dict[str, Any] = {
        "labels": list(snapshot.labels),
        "architecture": trained.architecture,
        "preprocessing": trained.preprocessing.to_manifest(),
        "source_sha256": source.sha256,
        "source_filename": "model.keras",
        "lineage": {
            "run": str(run.pk),
            "snapshot": snapshot.pk,
            "snapshot_digest": snapshot.digest,
            "seed": run.seed,
            "pins": run.pins,
            **trained.facts,
        },
    }
    if run.version is not None and run.version.state == ModelVersion.State.DRAFT:
        version = run.version
        for name, value in values.items():
            setattr(version, name, value)
    else:
        version = registry.draft_version(
            model=run.model,
            source=ModelVersion.Source.TRAINED,
            parent=current.version if current else None,
            **values,
        )
        run.version = version
        run.save(update_fields=["version"])
    version.weights_sha256 = ml_training.weights_digest(trained.model)
    version.save()
    return version


def _reference(
    trained: Trained, sets: dict[str, photos.PhotoSet], policy: TrainingPolicy, store: BlobStore
) -> Reference:
    test = sets["test"]
    images = photos.load_images(test, trained.preprocessing, store)
    calibration = photos.load_images(
        photos.calibration_photos(sets["train"], policy.calibration_photos),
        trained.preprocessing,
        store,
    )
    probabilities = evaluation.predict_keras(trained.model, images)
    return Reference(
        trained.model, images, test.targets, probabilities, calibration, trained.preprocessing
    )


def _publish(
    run: TrainingRun,
    version: ModelVersion,
    metrics: dict[str, Any],
    judgement: gating.Judgement,
    policy: TrainingPolicy,
    attestation: str,
    context: JobContext,
) -> dict[str, Any]:
    """Publish, release and close the run in one transaction, if the job is still ours."""
    with context.holding():
        registry.publish_version(
            version=version,
            metrics={
                **metrics,
                "gate": {**vars(judgement.verdict), "judged_on": judgement.judged_on},
            },
            attestation=attestation,
        )
        outcome = _release(version, judgement, policy)
        training.succeed_run(run=run, outcome=outcome)
        result = {"version": version.number, "outcome": outcome}
        context.complete(result)
    return result


def _release(version: ModelVersion, judgement: gating.Judgement, policy: TrainingPolicy) -> str:
    verdict = judgement.verdict
    made = f"Version {version.number}: {verdict.sentence}"
    if not verdict.passes:
        return f"{made} Not released."
    if judgement.hold:
        return f"{made} {judgement.hold}"
    if not policy.auto_release:
        return f"{made} The policy leaves the release to a person."
    if not version.variants.filter(is_shipped=True).exists():
        return f"{made} No variant passed its checks, so nothing was released."
    try:
        return f"{made} {delivering.deliver_version(version=version, reason=verdict.sentence)}"
    except Conflict as conflict:
        return f"{made} {conflict.detail}"

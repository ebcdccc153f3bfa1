"""An uploaded file becomes a version: inspected, compiled where it can be, measured."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from server import blobs
from server.domain.errors import Conflict, Unprocessable
from server.registry import actions as registry
from server.registry.models import ModelVersion
from server.registry.queries import label_names, training_policy
from server.training import actions as training
from worker.ml import determinism, evaluation
from worker.ml import training as ml_training
from worker.ml.compilers import CompiledFile, coreml, tflite
from worker.ml.preprocessing import Preprocessing
from worker.ml.uploads import inspect_upload
from worker.pipelines import photos, signatures
from worker.pipelines.failures import as_sentences
from worker.pipelines.reporting import Reporter
from worker.pipelines.variants import Reference, attest, compile_variants, record_variant

if TYPE_CHECKING:
    from server.blobs import BlobStore
    from server.registry.models import Variant
    from server.training.models import TrainingRun
    from worker.context import JobContext
    from worker.ml.uploads import Inspected


def run(context: JobContext) -> Mapping[str, Any] | None:
    """Perform the run that the job names; every failure becomes a sentence on the run."""
    try:
        started = training.start_run(run_id=context.args["run_id"])
    except Conflict:
        return None
    with as_sentences():
        return compile_upload(
            started, context=context, reporter=Reporter(started, context), store=blobs.store()
        )


def compile_upload(
    run: TrainingRun, *, context: JobContext, reporter: Reporter, store: BlobStore
) -> dict[str, Any]:
    """Inspect the upload, compile a Keras network or take a compiled file as it is, publish."""
    version = run.version
    if version is None:
        message = "The uploaded version is gone."
        raise Unprocessable(message, code="version_gone")
    run.pins = determinism.pin(run.seed)
    run.save(update_fields=["pins"])
    reporter.progress("inspecting", 0, 1, {})
    with tempfile.TemporaryDirectory(prefix="nightferry-") as folder:
        path = _fetch(version, Path(folder), store)
        inspected = inspect_upload(
            path,
            version.source_filename,
            labels=version.labels or None,
            known_labels=label_names(version.model),
            task=version.signature.get("task"),
            preprocessing=version.preprocessing,
        )
        _settle(version, inspected)
        reporter.say("inspecting", _sentence(inspected, version))
        for warning in inspected.warnings:
            reporter.say("inspecting", warning, level="warning")
        if inspected.task == "other":
            shipped = (
                signatures.compile_upload(version, path, store=store, reporter=reporter)
                if inspected.kind == "keras"
                else signatures.record_upload(
                    version,
                    inspected,
                    _as_compiled(inspected, path, version.source_filename),
                    store=store,
                    reporter=reporter,
                )
            )
            metrics = {"measured": shipped[0].metrics["measured"]} if shipped else {}
            return _publish(run, version, metrics, shipped, context=context, reporter=reporter)
        reference = _reference(version, inspected, path, store)
        if reference.model is not None:
            version.weights_sha256 = ml_training.weights_digest(reference.model)
            version.save(update_fields=["weights_sha256"])
        metrics = _measure(reference, version)
        if inspected.kind == "keras":
            policy = training_policy(version.model)
            shipped = compile_variants(
                version,
                reference,
                kinds=policy.variants,
                tolerance=policy.variant_tolerance,
                min_agreement=policy.variant_agreement,
                store=store,
                reporter=reporter,
            )
        else:
            variant = record_variant(
                version,
                _as_compiled(inspected, path, version.source_filename),
                reference,
                1.0,
                store,
                reporter,
            )
            shipped = [variant] if variant.is_shipped else []
            metrics = metrics or {k: v for k, v in variant.metrics.items() if k != "agreement"}
    return _publish(run, version, metrics, shipped, context=context, reporter=reporter)


def _fetch(version: ModelVersion, folder: Path, store: BlobStore) -> Path:
    path = folder / Path(version.source_filename).name
    with store.open(version.source_sha256) as source, path.open("wb") as target:
        while block := source.read(1 << 20):
            target.write(block)
    return path


def _settle(version: ModelVersion, inspected: Inspected) -> None:
    """Fix labels, preprocessing and signature.

    Labels and preprocessing are those given at upload, else the file's; of a classifier else the
    model's labels and the whole photo, which nothing else may be taken to mean.
    """
    labels = version.labels or inspected.labels
    preprocessing = version.preprocessing
    if inspected.task == "classification":
        labels = labels or label_names(version.model)
        _, height, width, *_ = inspected.inputs[0]["shape"]
        plain = inspected.preprocessing or Preprocessing(width=width, height=height)
        preprocessing = preprocessing or plain.to_manifest()
    elif inspected.preprocessing is not None:
        preprocessing = preprocessing or inspected.preprocessing.to_manifest()
    version.labels = list(labels or ())
    version.preprocessing = preprocessing
    version.signature = signatures.describe(inspected)
    version.architecture = version.architecture or f"uploaded {inspected.kind}"
    version.save()


def _sentence(inspected: Inspected, version: ModelVersion) -> str:
    if inspected.task == "classification":
        return f"{inspected.kind}, {len(version.labels)} labels."
    shapes = [
        ", ".join(f"{one['name']} {one['shape']} {one['dtype']}" for one in side)
        for side in (inspected.inputs, inspected.outputs)
    ]
    return f"{inspected.kind}, no classifier: takes {shapes[0]}; answers {shapes[1]}."


def _as_compiled(inspected: Inspected, path: Path, filename: str) -> CompiledFile:
    """Return an uploaded file that devices take as it is."""
    is_tflite = inspected.runtime == "tflite"
    return CompiledFile(
        runtime=inspected.runtime or "",
        precision=inspected.precision or "unknown",
        filename=filename,
        media_type=tflite.MEDIA_TYPE if is_tflite else coreml.MEDIA_TYPE,
        data=inspected.content or path.read_bytes(),
        requires=inspected.requires,
    )


def _reference(
    version: ModelVersion, inspected: Inspected, path: Path, store: BlobStore
) -> Reference:
    """Return the test and calibration photos of the newest snapshot, as far as there are any."""
    preprocessing = Preprocessing.from_manifest(version.preprocessing)
    test, train = _photos(version)
    images = photos.load_images(test, preprocessing, store)
    model = ml_training.load_keras(path) if inspected.kind == "keras" else None
    count = training_policy(version.model).calibration_photos
    calibration = photos.load_images(photos.calibration_photos(train, count), preprocessing, store)
    if model is not None and len(images):
        probabilities = evaluation.predict_keras(model, images, preprocessing)
    else:
        probabilities = np.zeros((0, len(version.labels)), dtype=np.float32)
    return Reference(model, images, test.targets, probabilities, calibration, preprocessing)


def _photos(version: ModelVersion) -> tuple[photos.PhotoSet, photos.PhotoSet]:
    """Return test and training photos whose labels the version knows, targets by its own order."""
    empty = photos.PhotoSet((), np.zeros(0, dtype=np.int64))
    snapshot = version.model.snapshots.first()
    if snapshot is None:
        return empty, empty
    sets = photos.split_sets(snapshot)
    index = {label: position for position, label in enumerate(version.labels)}
    chosen = {}
    for split in ("test", "train"):
        entries = tuple(entry for entry in sets[split].entries if entry.label in index)
        targets = np.array([index[entry.label] for entry in entries], dtype=np.int64)
        chosen[split] = photos.PhotoSet(entries, targets)
    return chosen["test"], chosen["train"]


def _measure(reference: Reference, version: ModelVersion) -> dict[str, Any]:
    if not len(reference.probabilities):
        return {}
    targets = reference.targets.tolist()
    return evaluation.measure(reference.probabilities, targets, version.labels)


def _publish(
    run: TrainingRun,
    version: ModelVersion,
    metrics: dict[str, Any],
    shipped: Sequence[Variant],
    *,
    context: JobContext,
    reporter: Reporter,
) -> dict[str, Any]:
    if not shipped:
        reasons = "; ".join(filter(None, version.variants.values_list("refusal", flat=True)))
        message = f"No variant of the upload may be shipped: {reasons or 'none was made'}."
        raise Unprocessable(message, code="no_shipped_variant")
    measured = (
        f"{metrics['accuracy']:.1%} on {metrics['count']} test photos"
        if metrics.get("count")
        else str(metrics.get("measured", "not measured, because the model has no test photos yet"))
    )
    outcome = (
        f"Version {version.number} is ready with {len(shipped)} variants, {measured}."
        " Release it when you like."
    )
    # Whatever the row says of its source: here only uploads are compiled.
    attestation = attest(version, shipped, source=ModelVersion.Source.UPLOADED, reporter=reporter)
    with context.holding():
        registry.publish_version(version=version, metrics=metrics, attestation=attestation)
        training.succeed_run(run=run, outcome=outcome)
        result = {"version": version.number, "outcome": outcome}
        context.complete(result)
    return result

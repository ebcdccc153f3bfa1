"""Uploads that are no classifiers: their signature kept, their files compared on drawn inputs.

There is no accuracy without labelled answers. What is measured instead is whether a compiled
file answers as the network does, on the inputs that its self-test is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from server.registry import actions as registry
from server.registry.queries import training_policy
from worker.ml import signatures, vectors
from worker.ml import training as ml_training
from worker.ml.compilers import About, CompiledFile
from worker.ml.compilers.tensors import compile_tensors
from worker.ml.errors import MLError, ModelUnusable

if TYPE_CHECKING:
    from server.blobs import BlobStore
    from server.registry.models import ModelVersion, Variant
    from worker.ml.signatures import Array, Tensor
    from worker.ml.uploads import Inspected
    from worker.pipelines.reporting import Reporter

UNRUN: Final = "structure checked only"


@dataclass(frozen=True)
class _Reference:
    """The Keras network with drawn inputs and its answers to them."""

    model: Any
    inputs: list[Tensor]
    ranges: list[vectors.Range]
    values: list[dict[str, Array]]
    answers: list[dict[str, Array]]


def describe(inspected: Inspected) -> dict[str, Any]:
    """Return what is stored of an upload: its task, what goes in, what comes out."""
    return {"task": inspected.task, "inputs": inspected.inputs, "outputs": inspected.outputs}


def record_upload(
    version: ModelVersion,
    inspected: Inspected,
    compiled: CompiledFile,
    *,
    store: BlobStore,
    reporter: Reporter,
) -> list[Variant]:
    """Record a file that devices take as it is, with what was found when it was run, or why not."""
    metrics: dict[str, Any] = {"measured": "run on drawn inputs; no accuracy is known"}
    if inspected.latency_ms:
        metrics["latency_ms"] = inspected.latency_ms
    if inspected.unchecked:
        metrics = {"measured": f"{UNRUN}: {inspected.unchecked}"}
    if inspected.foreign_operators:
        metrics["foreign_operators"] = inspected.foreign_operators
    kind = f"{compiled.runtime} {compiled.precision}"
    told = inspected.selftest_sentence or f"without a self-test, {metrics['measured']}"
    reporter.say("compiling", f"{kind}: {told}.", level="info" if inspected.selftest else "warning")
    return [_add(version, compiled, metrics, inspected.selftest, "", store)]


def compile_upload(
    version: ModelVersion, path: Path, *, store: BlobStore, reporter: Reporter
) -> list[Variant]:
    """Compile the policy's variants of a network and compare each; return the shipped ones."""
    policy = training_policy(version.model)
    reference = _open(version, path)
    version.weights_sha256 = ml_training.weights_digest(reference.model)
    version.save(update_fields=["weights_sha256"])
    about = About(version.model.name, version.weights_sha256[:12])
    shipped = []
    for step, kind in enumerate(policy.variants):
        reporter.progress("compiling", step, len(policy.variants), {})
        try:
            compiled = compile_tensors(
                reference.model,
                kind,
                reference.inputs,
                calibration=reference.values,
                about=about,
            )
        except MLError as error:
            _refuse(version, kind, str(error), reporter)
            continue
        variant = _measure(version, compiled, reference, policy.variant_tolerance, store, reporter)
        if variant.is_shipped:
            shipped.append(variant)
    reporter.progress("compiling", len(policy.variants), len(policy.variants), {})
    return shipped


def _open(version: ModelVersion, path: Path) -> _Reference:
    model = ml_training.load_keras(path)

    def run(values: Any) -> dict[str, Array]:
        try:
            found = signatures.run_keras(model, values)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ModelUnusable(str(error).splitlines()[0][:200]) from error
        return {name: np.asarray(one) for name, one in found.items()}

    inputs = signatures.settle(signatures.keras_signature(model)[0], run)
    means, stds = (version.preprocessing.get(name) or [0.0] for name in ("mean", "std"))
    ranges = [vectors.choose_range(one, float(means[0]), float(stds[0]) or 1.0) for one in inputs]
    drawn = vectors.draw_candidates(inputs)
    values = [vectors.draw(case, inputs, ranges) for case in drawn]
    answers = [run(one) for one in values]
    kept = [
        place
        for place, one in enumerate(answers)
        if all(np.isfinite(np.asarray(array, np.float64)).all() for array in one.values())
    ]
    return _Reference(
        model, inputs, ranges, [values[place] for place in kept], [answers[place] for place in kept]
    )


def _measure(
    version: ModelVersion,
    compiled: CompiledFile,
    reference: _Reference,
    tolerance: float,
    store: BlobStore,
    reporter: Reporter,
) -> Variant:
    kind = f"{compiled.runtime} {compiled.precision}"
    try:
        run, other, durations_ms = _runner(compiled)
        difference = vectors.compare([run(one) for one in reference.values], reference.answers)
        recorded = vectors.record(run, reference.inputs, reference.ranges, other_run=other)
    except MLError as error:
        metrics: dict[str, Any] = {"measured": f"{UNRUN}: {error.sentence}"}
        reporter.say("compiling", f"{kind}: {metrics['measured']}.", level="warning")
        return _add(version, compiled, metrics, {}, "", store)
    metrics = {
        "measured": f"mean difference {difference['mean']:.2%} of the outputs' spread",
        "difference": difference,
    }
    if durations_ms:
        metrics["latency_ms"] = {
            "p50": round(float(np.percentile(durations_ms, 50)), 3),
            "p95": round(float(np.percentile(durations_ms, 95)), 3),
        }
    refusal = ""
    if not difference["mean"] <= tolerance:
        refusal = (
            f"its answers differ from the network's by {difference['mean']:.1%} of their spread in"
            f" the mean, more than the tolerated {tolerance:.1%}"
        )
    notes = [f"{kind}: {note}" for note in recorded.notes]
    for sentence in (f"{kind}: {metrics['measured']}. {recorded.sentence}.", *notes):
        reporter.say("compiling", sentence, level="warning" if sentence in notes else "info")
    if refusal:
        reporter.say("compiling", f"{kind} is not shipped: {refusal}", level="warning")
    return _add(version, compiled, metrics, {} if refusal else recorded.member, refusal, store)


def _runner(compiled: CompiledFile) -> tuple[vectors.Run, vectors.Run | None, Sequence[float]]:
    if compiled.runtime == "tflite":
        runner = signatures.TFLiteRunner(compiled.data)
        plain = signatures.TFLiteRunner(compiled.data, is_accelerated=False)
        return runner.run, plain.run, runner.durations_ms
    from worker.ml.coreml import CoreMLModel

    # The time of an evaluator in NumPy says nothing of a phone.
    return CoreMLModel(compiled.data).run, None, ()


def _add(
    version: ModelVersion,
    compiled: CompiledFile,
    metrics: dict[str, Any],
    selftest: dict[str, Any],
    refusal: str,
    store: BlobStore,
) -> Variant:
    blob = store.put_bytes(compiled.data)
    return registry.add_variant(
        version=version,
        runtime=compiled.runtime,
        precision=compiled.precision,
        sha256=blob.sha256,
        size_bytes=blob.size_bytes,
        media_type=compiled.media_type,
        filename=compiled.filename,
        requires=compiled.requires,
        metrics=metrics,
        checks=[],
        selftest=selftest,
        is_shipped=not refusal,
        refusal=refusal,
    )


def _refuse(version: ModelVersion, kind: str, reason: str, reporter: Reporter) -> None:
    runtime, precision = kind.split(":")
    registry.add_variant(
        version=version, runtime=runtime, precision=precision, is_shipped=False, refusal=reason
    )
    reporter.say("compiling", f"{runtime} {precision} is not shipped: {reason}", level="warning")

"""Compiling a version's variants, measuring each file and deciding which may ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from server.domain.errors import DomainError
from server.domain.promotion import VariantVerdict, judge_variant, shown_share
from server.registry import actions as registry
from server.registry.statements import statement
from server.trust import attestations
from worker.ml import evaluation
from worker.ml import selftest as ml_selftest
from worker.ml.compilers import COREML_TARGETS, CompiledFile, compile_variant
from worker.ml.compression import RECIPES
from worker.ml.coreml import CoreMLModel, OperatorUnknown
from worker.ml.coreml.comparison import Comparison, compare_answers
from worker.ml.errors import MLError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from server.blobs import BlobStore
    from server.registry.models import ModelVersion, Variant
    from worker.ml.preprocessing import Preprocessing
    from worker.pipelines.compressing import Compressor
    from worker.pipelines.reporting import Reporter


COREML_PHOTOS: Final = 200
"""Test photos that a Core ML file is run over, at most."""

_ROUNDING_PHOTOS: Final = 16


@dataclass(frozen=True)
class Reference:
    """What every compiled file is compared with: Keras on the same test photos.

    ``images`` are N of uint8 (H, W, 3); ``targets`` are int64 (N,) and ``probabilities`` float32
    (N, labels). Without photos N is 0: then structure is all that can be checked, and the variant
    says so.
    """

    model: Any
    images: Sequence[NDArray[np.uint8]]
    targets: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    calibration: Sequence[NDArray[np.uint8]]
    preprocessing: Preprocessing


def compile_variants(
    version: ModelVersion,
    reference: Reference,
    *,
    kinds: Sequence[str],
    tolerance: float,
    min_agreement: float,
    store: BlobStore,
    reporter: Reporter,
    coreml_target: str = COREML_TARGETS[0],
    compressor: Compressor | None = None,
) -> list[Variant]:
    """Compile, measure and record every kind (``runtime:precision``); return the shipped ones.

    Without a ``compressor`` pruned and clustered kinds are not trained on.
    """
    shipped = []
    for step, kind in enumerate(kinds):
        reporter.progress("compiling", step, len(kinds), {})
        runtime, precision = kind.split(":")
        if _is_trained(runtime, precision) and not len(reference.images):
            reason = "its weights are others, and without test photos nobody can say how good"
            _record_refusal(version, runtime, precision, reason, reporter)
            continue
        try:
            compressed = compressor.network_for(runtime, precision) if compressor else None
            compiled = compile_variant(
                reference.model,
                runtime,
                precision,
                labels=version.labels,
                preprocessing=reference.preprocessing,
                calibration_images=reference.calibration,
                name=version.model.name,
                # Not the number: the same weights must give the same bytes in every night.
                version=version.weights_sha256[:12],
                coreml_target=coreml_target,
                compressed=compressed,
            )
        except MLError as error:
            _record_refusal(version, runtime, precision, str(error), reporter)
            continue
        variant = record_variant(
            version, compiled, reference, tolerance, store, reporter, min_agreement=min_agreement
        )
        if variant.is_shipped:
            shipped.append(variant)
    reporter.progress("compiling", len(kinds), len(kinds), {})
    return shipped


def _is_trained(runtime: str, precision: str) -> bool:
    recipe = RECIPES.get((runtime, precision))
    return recipe is not None and recipe.is_tuned


def attest(
    version: ModelVersion, shipped: Sequence[Variant], *, source: str, reporter: Reporter
) -> str:
    """Return the evidence that these files were made here, from what this process holds of them.

    Empty without a key: then a person has to attest the version before it is signed.
    """
    try:
        made = statement(version, shipped, source=source)
        return attestations.attest(made, by=attestations.By.WORKER)
    except DomainError as error:
        reporter.say(
            "publishing",
            f"The version is not attested: {error.detail} Until `python manage.py attest"
            f" {version.model.slug} {version.number}` was run beside the key, nothing signs it.",
            level="warning",
        )
        return ""


def _record_refusal(
    version: ModelVersion, runtime: str, precision: str, reason: str, reporter: Reporter
) -> None:
    registry.add_variant(
        version=version, runtime=runtime, precision=precision, is_shipped=False, refusal=reason
    )
    reporter.say("compiling", f"{runtime} {precision} is not shipped: {reason}", level="warning")


def record_variant(
    version: ModelVersion,
    compiled: CompiledFile,
    reference: Reference,
    tolerance: float,
    store: BlobStore,
    reporter: Reporter,
    *,
    min_agreement: float = 0.0,
) -> Variant:
    """Measure a compiled file, store its bytes and record whether it may ship and why."""
    reference = _affordable(reference, compiled.runtime)
    metrics, checks, probabilities = _measure(compiled, reference, version.labels)
    verdict = None
    if probabilities is not None and len(reference.probabilities):
        verdict = _judge(probabilities, reference, tolerance, min_agreement)
        metrics["gate"] = vars(verdict)
    refusal = _refusal(checks, verdict)
    selftest = {} if refusal else _make_selftest(compiled, reference, reporter)
    blob = store.put_bytes(compiled.data)
    variant = registry.add_variant(
        version=version,
        runtime=compiled.runtime,
        precision=compiled.precision,
        sha256=blob.sha256,
        size_bytes=blob.size_bytes,
        media_type=compiled.media_type,
        filename=compiled.filename,
        requires=compiled.requires,
        metrics=metrics,
        checks=checks,
        selftest=selftest,
        is_shipped=not refusal,
        refusal=refusal,
    )
    reporter.say(
        "compiling",
        f"{compiled.runtime} {compiled.precision}: {blob.size_bytes / 1e6:.2f} MB"
        + (f", {_shown(metrics)}" if metrics.get("count") else "")
        + (f". Not shipped: {refusal}" if refusal else ""),
        level="warning" if refusal else "info",
    )
    return variant


def _measure(
    compiled: CompiledFile, reference: Reference, labels: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, Any]], NDArray[np.float32] | None]:
    """Return the file's own figures, checks and answers to the test photos, (N, labels) float32.

    A file that cannot be run here says so; then there are no answers.
    """
    checks = list(compiled.checks)
    if not len(reference.images):
        return {"measured": "no test photos"}, checks, None
    if compiled.runtime == "coreml":
        return _measure_coreml(compiled, reference, labels)
    probabilities, latency = evaluation.predict_tflite(
        compiled.data, reference.images, reference.preprocessing
    )
    finite = bool(np.isfinite(probabilities).all())
    checks.append(
        {"name": "finite_outputs", "passed": finite, "detail": "every output is a finite number"}
    )
    measured = evaluation.measure(probabilities, reference.targets.tolist(), labels)
    metrics = {**measured, "latency_ms": latency}
    if len(reference.probabilities):
        metrics["agreement"] = evaluation.agreement(probabilities, reference.probabilities)
    return metrics, checks, probabilities


def _affordable(reference: Reference, runtime: str) -> Reference:
    """Return the reference, for Core ML with a bounded sample of its photos, evenly taken.

    NumPy needs a second for a photo where the network is large.
    """
    count = len(reference.images)
    if runtime != "coreml" or count <= COREML_PHOTOS:
        return reference
    places = np.linspace(0, count - 1, COREML_PHOTOS).round().astype(int)
    return replace(
        reference,
        images=[reference.images[place] for place in places],
        targets=reference.targets[places],
        probabilities=reference.probabilities[places]
        if len(reference.probabilities)
        else reference.probabilities,
    )


def _measure_coreml(
    compiled: CompiledFile, reference: Reference, labels: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, Any]], NDArray[np.float32] | None]:
    """Run the file by the published definitions; that is no word about Apple's devices."""
    checks = list(compiled.checks)
    try:
        model = CoreMLModel(compiled.data)
        answers = evaluation.predict_coreml(model, reference.images, reference.preprocessing)
    except OperatorUnknown as error:
        return {"measured": f"structure checked only: {error.sentence}"}, checks, None
    except MLError as error:
        checks.append({"name": "execution", "passed": False, "detail": error.sentence})
        return {"measured": "the file does not run"}, checks, None
    metrics = evaluation.measure(answers, reference.targets.tolist(), labels)
    metrics["measured"] = f"by the MIL definitions on {len(answers)} photos, not on a device"
    if len(reference.probabilities):
        metrics["agreement"] = evaluation.agreement(answers, reference.probabilities)
        compared = _compare_with_source(model, answers, compiled, reference)
        metrics["conversion"] = compared.to_json()
        checks.append({
            "name": "photos", "passed": compared.passed, "detail": compared.sentence
        })  # fmt: skip
    return metrics, checks, answers


def _compare_with_source(
    model: CoreMLModel,
    answers: NDArray[np.float32],
    compiled: CompiledFile,
    reference: Reference,
) -> Comparison:
    """Compare with the very network that was converted, compressed where the file is."""
    source = getattr(compiled, "network", None)
    expected = (
        reference.probabilities
        if source is None
        else evaluation.predict_keras(source, reference.images, reference.preprocessing)
    )
    unrounded = evaluation.predict_coreml(
        model, reference.images[:_ROUNDING_PHOTOS], reference.preprocessing, rounds=False
    )
    return compare_answers(answers, unrounded, expected, model.stored)


def _judge(
    probabilities: NDArray[np.float32],
    reference: Reference,
    tolerance: float,
    min_agreement: float,
) -> VariantVerdict:
    """Compare a file's answers with Keras's on the same photos, pair by pair."""
    ours, theirs = probabilities.argmax(axis=1), reference.probabilities.argmax(axis=1)
    right = zip(
        (ours == reference.targets).tolist(), (theirs == reference.targets).tolist(), strict=True
    )
    return judge_variant(
        (ours == theirs).tolist(), list(right), tolerance=tolerance, min_agreement=min_agreement
    )


def _shown(metrics: dict[str, Any]) -> str:
    return f"{shown_share(metrics['correct'], metrics['count'])} of {metrics['count']} test photos"


def _make_selftest(
    compiled: CompiledFile, reference: Reference, reporter: Reporter
) -> dict[str, Any]:
    """Return pictures with the file's own answers, which devices compare before they use it.

    Empty where this machine cannot run the file, or the file answers nothing clearly.
    """
    kind = f"{compiled.runtime} {compiled.precision}"
    try:
        selftest = ml_selftest.make_selftest(
            compiled.data, reference.preprocessing, runtime=compiled.runtime
        )
    except MLError as error:
        reporter.say("compiling", f"{kind} ships without a self-test: {error}.", level="warning")
        return {}
    reporter.say("compiling", f"{kind}: self-test of {selftest.sentence}.")
    return selftest.member


def _refusal(checks: Sequence[dict[str, Any]], verdict: VariantVerdict | None) -> str:
    """Return why a file may not ship, or nothing."""
    failed = [f"{check['name']}: {check['detail']}" for check in checks if not check["passed"]]
    if failed:
        return "; ".join(failed)
    return verdict.refusal if verdict is not None else ""

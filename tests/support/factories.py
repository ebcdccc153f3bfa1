"""Things that many tests need, made through the same actions as the product's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server import blobs
from server.registry import actions as registry
from server.registry.models import Model, ModelVersion
from server.registry.statements import statement
from server.rollouts import actions as rollouts
from server.rollouts.models import Release
from server.trust import attestations

# As a worker writes it, for networks of 8 × 8 pixels.
PREPROCESSING = {
    "color_space": "RGB", "width": 8, "height": 8, "fit": "stretch", "filter": "bilinear",
    "antialias": True, "dtype": "float32", "range": [0, 255], "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375], "layout": "NHWC",
}  # fmt: skip
LINEAGE = {
    "run": "0f4a9a56-2c1f-4be8-9d8e-6c1d7f1a0f35", "snapshot_digest": "9c" * 32, "seed": 1,
    "pins": {"seed": 1, "threads": 1, "onednn": False}, "weights": "downloaded",
    "weights_sha256": "3f" * 32, "embedded": 12,
}  # fmt: skip
KINDS = {"tflite:float16": b"half", "tflite:int8": b"int8", "coreml:float16": b"core"}


def make_model(
    slug: str = "recyclables", *, labels: Sequence[str] = ("glass", "metal"), **values: Any
) -> Model:
    """Return a model that devices may fetch without a key."""
    return registry.create_model(slug=slug, labels=labels, **{"is_open": True, **values})


def make_version(
    model: Model,
    *,
    content: Mapping[str, bytes] | None = None,
    requires: Mapping[str, dict[str, str]] | None = None,
    selftest: Mapping[str, Any] | None = None,
) -> ModelVersion:
    """Return a published version whose variants are small files of this very version."""
    version = registry.draft_version(
        model=model,
        source=ModelVersion.Source.UPLOADED,
        labels=[label.name for label in model.labels.all()],
        lineage=LINEAGE,
        preprocessing=PREPROCESSING,
    )
    shipped = []
    for kind, data in (content or KINDS).items():
        runtime, precision = kind.split(":")
        blob = blobs.store().put_bytes(b"%s %s %d" % (data, model.slug.encode(), version.number))
        variant = registry.add_variant(
            version=version,
            runtime=runtime,
            precision=precision,
            sha256=blob.sha256,
            size_bytes=blob.size_bytes,
            media_type="application/octet-stream",
            filename=f"{model.slug}.{runtime}",
            requires=(requires or {}).get(kind, {}),
            selftest=dict(selftest or {}),
            is_shipped=True,
        )
        shipped.append(variant)
    attestation = attestations.attest(statement(version, shipped), by=attestations.By.WORKER)
    return registry.publish_version(
        version=version, metrics={"accuracy": 0.9, "count": 40}, attestation=attestation
    )


def release(version: ModelVersion, **values: Any) -> Release:
    """Release a version and have it signed, read back and announced, as the worker does."""
    released = rollouts.release_version(version=version, **values)
    publish(version.model)
    released.refresh_from_db()
    return released


def publish(model: Model) -> str:
    """Sign what the model serves now and announce it, as the worker does; return what came of it.

    The keys are made on first use, in the data folder of this test.
    """
    # Not at the top: the web process's tests use this module too, and know no worker.
    from worker.pipelines import publishing

    return publishing.publish_model(model)

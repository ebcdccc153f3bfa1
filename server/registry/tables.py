"""A version's figures in rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.domain.maturity import label_maturity
from server.http.pages import percent, size
from server.registry.figures import label_figures, shown, shown_accuracy
from server.registry.models import ModelVersion, Variant

# A wider matrix tells nobody anything; the list of the worst pairs does.
MAX_MATRIX_LABELS = 24
WORST_PAIRS = 12


@dataclass(frozen=True)
class Cell:
    """How many photos of one label were called another."""

    count: int
    share: float
    is_hit: bool


@dataclass(frozen=True)
class VariantRow:
    """One compiled file, as people read it."""

    variant: Variant
    size: str
    accuracy: str
    agreement: str
    latency: str
    selftest: str
    verdict: str


@dataclass(frozen=True)
class PatchRow:
    """What a device saves that comes from another version's file."""

    variant: Variant
    base: Variant
    size: str
    saving: str
    state: str
    is_offered: bool


def label_rows(version: ModelVersion) -> list[dict[str, Any]]:
    """Return each label with how often it was found, and how often it was right when said."""
    per_label = version.metrics.get("per_label") or {}
    photos = version.metrics.get("photos") or {}
    rows = (label_figures(label, found) for label, found in per_label.items())
    return [
        {
            "label": row["label"],
            "recall": shown(row["found"], row["shown"]),
            "precision": percent(row["precision"])
            if row["said"] is None
            else shown(row["found"], row["said"]),
            "photos": photos.get(row["label"], "–"),
            "maturity": label_maturity(photos[row["label"]], minimum=0).value
            if row["label"] in photos
            else "",
        }
        for row in rows
    ]


def confusion_table(version: ModelVersion) -> dict[str, Any] | None:
    """Return the matrix with each cell's share of its row, or the worst pairs of a large one."""
    matrix = version.metrics.get("confusion")
    labels = version.labels
    if not matrix or len(matrix) != len(labels):
        return None
    if len(labels) > MAX_MATRIX_LABELS:
        return {"pairs": _worst_pairs(matrix, labels)}
    rows = []
    for index, counts in enumerate(matrix):
        total = sum(counts) or 1
        cells = [
            Cell(count, round(count / total, 3), index == column)
            for column, count in enumerate(counts)
        ]
        rows.append((labels[index], cells))
    return {"labels": labels, "rows": rows}


def _worst_pairs(matrix: list[list[int]], labels: list[str]) -> list[tuple[str, str, int]]:
    pairs = [
        (labels[row], labels[column], count)
        for row, counts in enumerate(matrix)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:WORST_PAIRS]


def variant_rows(version: ModelVersion) -> list[VariantRow]:
    """Return the compiled files with what was measured of each."""
    return [_variant_row(variant) for variant in version.variants.all()]


def _accuracy(metrics: Mapping[str, Any]) -> str:
    """Return the accuracy and, where that needs telling, how it was found."""
    how = str(metrics.get("measured", ""))
    if metrics.get("accuracy") is None:
        return how or "not measured"
    return f"{shown_accuracy(metrics)}, {how}" if how else shown_accuracy(metrics)


def _variant_row(variant: Variant) -> VariantRow:
    latency = (variant.metrics.get("latency_ms") or {}).get("p50")
    agreement = variant.metrics.get("agreement") or {}
    return VariantRow(
        variant=variant,
        size=size(variant.size_bytes) if variant.size_bytes else "–",
        accuracy=_accuracy(variant.metrics),
        agreement=shown(agreement.get("agreeing", 0), agreement.get("count", 0))
        if "agreeing" in agreement
        else percent(agreement.get("top1")),
        latency=f"{latency:.1f} ms" if latency is not None else "–",
        selftest=_selftest(variant),
        verdict="shipped"
        if variant.is_shipped
        else f"not shipped: {variant.refusal or 'no reason'}",
    )


def _selftest(variant: Variant) -> str:
    """Say how many pictures, or drawn inputs, devices try the file on before they use it."""
    if not variant.selftest:
        return "–"
    data = json.loads(variant.selftest["data"])
    if "cases" in data:
        return f"{len(data['cases'])} drawn inputs"
    count = len(data["inputs"])
    return f"{count} picture{'s' if count > 1 else ''}"


def patch_rows(version: ModelVersion) -> list[PatchRow]:
    """Return the patches that lead to the version's files, with what each saves."""
    variants = version.variants.prefetch_related("patches_to__from_variant__version__model")
    return [
        PatchRow(
            variant=variant,
            base=patch.from_variant,
            size=size(patch.size_bytes) if patch.size_bytes is not None else "–",
            saving=percent(1 - patch.size_bytes / variant.size_bytes)
            if patch.size_bytes is not None and variant.size_bytes
            else "–",
            state=_patch_state(patch),
            is_offered=patch.announced_at is not None,
        )
        for variant in variants
        for patch in variant.patches_to.all()
    ]


def _patch_state(patch: Any) -> str:
    if patch.refusal:
        return f"not offered: {patch.refusal}"
    return "offered" if patch.announced_at is not None else "waits to be signed"

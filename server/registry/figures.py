"""A version's figures with their counts and intervals, as they are shown everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from server.domain import maturity
from server.domain.intervals import wilson
from server.http.pages import percent

if TYPE_CHECKING:
    from server.registry.models import Model, ModelVersion


def figures(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return an accuracy with its count and Wilson interval, or None where there is none.

    Versions from before counts were kept beside the share have them worked out.
    """
    accuracy, count = found.get("accuracy"), found.get("count")
    if accuracy is None or not count:
        return None
    correct = found.get("correct", round(accuracy * count))
    return {
        "accuracy": accuracy,
        "correct": correct,
        "count": count,
        "interval": bounds(correct, count),
    }


def label_figures(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return how often a label was found, and how often it was right when said."""
    shown, said = row.get("count", 0), row.get("said")
    hit = row.get("correct", round((row.get("recall") or 0) * shown))
    return {
        "label": name,
        "recall": row.get("recall"),
        "found": hit,
        "shown": shown,
        "recall_interval": bounds(hit, shown),
        "precision": row.get("precision"),
        "said": said,
        "precision_interval": bounds(hit, said) if said is not None else None,
    }


def bounds(hit: int, count: int) -> list[float]:
    """Return Wilson's 95 % interval as a list, lower bound first."""
    interval = wilson(hit, count)
    return [interval.lower, interval.upper]


def shown(hit: int, count: int) -> str:
    """Return a share as people read it: with its 95 % interval and its count."""
    if not count:
        return "–"
    lower, upper = bounds(hit, count)
    return f"{percent(hit / count)} ({lower * 100:.1f}–{upper * 100:.1f}, n = {count})"


def shown_accuracy(found: Mapping[str, Any]) -> str:
    """Return the accuracy among some figures with interval and count, or a dash."""
    known = figures(found)
    if known is None:
        return percent(found.get("accuracy"))
    return shown(known["correct"], known["count"])


def version_maturity(version: ModelVersion) -> str | None:
    """Return how mature a version is by its poorest label; None where nobody counted photos."""
    found = maturity.poorest(version.metrics.get("photos") or {}, minimum=0)
    return found.value if found is not None else None


def version_photos_sentence(version: ModelVersion) -> str:
    """Return the sentence on labels that had too few photos; blank where all had enough."""
    return maturity.describe(version.metrics.get("photos") or {}, minimum=0)


def accepted_photos(model: Model) -> dict[str, int]:
    """Return how many accepted photos each label has now, of ``queries.models_with_photos``."""
    return {label.name: getattr(label, "accepted", 0) for label in model.labels.all()}

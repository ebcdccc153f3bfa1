"""How far a number of photos carries: too few to train, a prototype, thin, or enough."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

# What practitioners give as rules of thumb; the first is a policy (``min_photos_per_label``).
PROTOTYPE_BELOW = 30
THIN_BELOW = 200


class Maturity(StrEnum):
    """What may be expected of a label, or of a model by its poorest label."""

    UNTRAINED = "untrained"
    PROTOTYPE = "prototype"
    THIN = "thin"
    ENOUGH = "enough"


_RANK = {maturity: rank for rank, maturity in enumerate(Maturity)}


def label_maturity(photos: int, *, minimum: int) -> Maturity:
    """Return how mature a label of so many accepted photos is."""
    if photos < minimum:
        return Maturity.UNTRAINED
    if photos < PROTOTYPE_BELOW:
        return Maturity.PROTOTYPE
    return Maturity.THIN if photos < THIN_BELOW else Maturity.ENOUGH


def poorest(photos: Mapping[str, int], *, minimum: int) -> Maturity | None:
    """Return the maturity of the poorest label, or None where there are no labels."""
    found = [label_maturity(count, minimum=minimum) for count in photos.values()]
    return min(found, key=lambda maturity: _RANK[maturity]) if found else None


def describe(photos: Mapping[str, int], *, minimum: int) -> str:
    """Return one sentence on labels with too few photos; blank where every label has enough."""
    parts = []
    for maturity, meaning in (
        (Maturity.UNTRAINED, f"below {minimum} photos and not trained"),
        (Maturity.PROTOTYPE, f"a prototype, below {PROTOTYPE_BELOW} photos"),
        (Maturity.THIN, f"thin, below {THIN_BELOW} photos"),
    ):
        labels = [
            f"{label} {count}"
            for label, count in photos.items()
            if label_maturity(count, minimum=minimum) == maturity
        ]
        if labels:
            parts.append(f"{meaning}: {_some(labels)}")
    return f"{'; '.join(parts)}.".capitalize() if parts else ""


def _some(labels: list[str], most: int = 8) -> str:
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more

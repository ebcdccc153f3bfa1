"""Which photos train, which validate and which test: by contributor, once and for ever.

A unit is a contributor where contributors are known, else a single photo. Units are taken in
the order of a keyed hash and each goes to the split that is least full, relative to its
share of the unit's labels. Plain hashing into ranges leaves the test set of eight contributors
empty in more than a quarter of cases (.85 ** 8); this keeps every split near its share from the
third unit on.
An assignment is stored and never changes, so a photo's split is the same in every night.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "validation", "test"]
# In the order in which ties are resolved: without training photos there is nothing to test.
SPLITS: tuple[Split, ...] = ("train", "test", "validation")


@dataclass(frozen=True)
class Unit:
    """Photos that must share one split."""

    key: str
    label_counts: Mapping[str, int] = field(default_factory=dict)


def assign_splits(
    units: Iterable[Unit],
    pinned: Mapping[str, Split],
    *,
    nonce: str,
    validation_share: float,
    test_share: float,
) -> dict[str, Split]:
    """Return the split of every unit not pinned yet; deterministic in its arguments.

    ``nonce`` is the model's own, so that one contributor's split differs between models.
    """
    shares: dict[Split, float] = {
        "test": test_share,
        "validation": validation_share,
        "train": 1 - test_share - validation_share,
    }
    counts: dict[Split, Counter[str]] = defaultdict(Counter)
    totals: Counter[str] = Counter()
    fresh: list[Unit] = []
    for unit in units:
        if unit.key in pinned:
            counts[pinned[unit.key]].update(unit.label_counts)
            totals.update(unit.label_counts)
        else:
            fresh.append(unit)
    assigned: dict[str, Split] = {}
    for unit in sorted(fresh, key=lambda unit: _order(nonce, unit.key)):
        totals.update(unit.label_counts)
        split = min(SPLITS, key=lambda name: _fullness(name, unit, shares, counts, totals))
        counts[split].update(unit.label_counts)
        assigned[unit.key] = split
    return assigned


def _order(nonce: str, key: str) -> bytes:
    return hashlib.sha256(f"{nonce}\0{key}".encode()).digest()


def _fullness(
    split: Split,
    unit: Unit,
    shares: Mapping[Split, float],
    counts: Mapping[Split, Counter[str]],
    totals: Counter[str],
) -> float:
    """Return how full the split is of the unit's labels, 1 where it has its share of each."""
    return sum(
        count * counts[split][label] / (shares[split] * totals[label])
        for label, count in unit.label_counts.items()
    ) / sum(unit.label_counts.values())


def cap_contributors(
    photos: Iterable[tuple[str, str, str]], *, max_share: float, nonce: str
) -> set[str]:
    """Return the ids of the training photos that stay when no contributor may dominate a label.

    ``photos`` are ``(id, label, contributor)``; a blank contributor is never capped. Of each
    label at most ``max_share`` of its photos, but at least one, come from one contributor. The
    limit is taken from the label's uncapped total; which photos stay follows a keyed hash.
    A cap only makes sense once there are enough contributors to fill the set, so labels with
    fewer contributors than ``1 / max_share`` are left whole.
    """
    by_label: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for photo, label, contributor in photos:
        by_label[label][contributor].append(photo)
    kept: set[str] = set()
    for contributors in by_label.values():
        total = sum(map(len, contributors.values()))
        known = sum(1 for contributor in contributors if contributor)
        limit = max(1, int(max_share * total)) if known >= 1 / max_share else total
        for contributor, ids in contributors.items():
            ordered = sorted(ids, key=lambda photo: _order(nonce, photo))
            kept.update(ordered if not contributor else ordered[:limit])
    return kept

"""Latencies in log-spaced buckets, as the server counts them (docs/telemetry.md).

Bucket ``b`` holds latencies from ``2^(b/4)`` up to, not including, ``2^((b+1)/4)`` milliseconds.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nightferry.manifest import Document
    from nightferry.models import Model

LOWEST, HIGHEST = -24, 71
_PER_DOUBLING = 4
_SMALLEST_MS = 1e-3


def bucket_of(latency_ms: float) -> int:
    """Return the bucket of a latency in milliseconds; the outermost hold what lies beyond."""
    exact = math.floor(_PER_DOUBLING * math.log2(max(latency_ms, _SMALLEST_MS)))
    return min(max(exact, LOWEST), HIGHEST)


class Latencies:
    """Durations of predictions that nobody has been told yet. May be used from any thread."""

    def __init__(self) -> None:
        """Start with none."""
        self._lock = threading.Lock()
        self._timed: dict[tuple[object, ...], tuple[Model, float | None, Counter[int]]] = {}

    def add(self, model: Model, latency_ms: float, limit_ms: float | None) -> int:
        """Count one prediction; return how many of this release wait."""
        key = (model.name, model.label, model.sha256, model.enrolment, limit_ms)
        with self._lock:
            _, _, counts = self._timed.setdefault(key, (model, limit_ms, Counter()))
            counts[bucket_of(latency_ms)] += 1
            return counts.total()

    def take(self) -> list[tuple[Model, Document]]:
        """Return what waits as the ``data`` of ``latency`` events, and forget it."""
        with self._lock:
            timed, self._timed = self._timed, {}
        return [(model, describe(counts, limit)) for model, limit, counts in timed.values()]


def describe(counts: Counter[int], limit_ms: float | None) -> Document:
    """Return the ``data`` of an event about latencies, counted by bucket."""
    data: Document = {
        "latency_ms": round(_median_ms(counts), 3),
        "count": counts.total(),
        "histogram": {str(bucket): count for bucket, count in sorted(counts.items())},
    }
    if limit_ms is not None:
        data["limit_ms"] = limit_ms
    return data


def _median_ms(counts: Counter[int]) -> float:
    """Return the middle, in milliseconds, of the bucket that the median falls into."""
    seen, half = 0, counts.total() / 2
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= half:
            break
    return float(2 ** ((bucket + 0.5) / _PER_DOUBLING))

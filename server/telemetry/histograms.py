"""Latencies in log-spaced buckets: four to each doubling, so that a bucket is 19 % wide.

Bucket ``b`` holds latencies from ``2^(b/4)`` up to, not including, ``2^((b+1)/4)`` milliseconds;
the outermost ones hold what lies beyond. Histograms of equal buckets add up, on the device and
here, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

PER_DOUBLING = 4
LOWEST, HIGHEST = -24, 71  # 16 microseconds to 4 minutes
MOST_BUCKETS = HIGHEST - LOWEST + 1
MOST_COUNTED = 1_000_000


def bucket_of(latency_ms: float) -> int:
    """Return the bucket of a latency above 0, in milliseconds."""
    return min(max(math.floor(PER_DOUBLING * math.log2(latency_ms)), LOWEST), HIGHEST)


def upper_bound_ms(bucket: int) -> float:
    """Return the latency, in milliseconds, that a bucket ends before."""
    return float(2 ** ((bucket + 1) / PER_DOUBLING))


def quantile_ms(counts: Mapping[int, int], share: float) -> float | None:
    """Return the upper bound of the bucket that holds the quantile; None where nothing counts.

    It is at most 19 % above the quantile itself.
    """
    total = sum(counts.values())
    if total <= 0:
        return None
    wanted, seen = share * total, 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= wanted and counts[bucket]:
            return upper_bound_ms(bucket)
    return upper_bound_ms(max(counts))


def read_counts(data: Mapping[str, object]) -> dict[int, int]:
    """Return the buckets that an event's ``data`` describe; empty where they time nothing.

    ``histogram`` maps buckets to counts. Without one, ``latency_ms`` stands for ``count``
    predictions (1 unless given).

    Raises:
        ValueError: they describe something, and it is no such thing.

    """
    histogram = data.get("histogram")
    if histogram is not None:
        return _read_histogram(histogram)
    latency, count = data.get("latency_ms"), data.get("count", 1)
    if latency is None:
        return {}
    if not _is_number(latency) or not 0 < latency < math.inf:  # type: ignore[operator]
        raise ValueError("latency_ms is a number above 0")
    if not _is_count(count):
        raise ValueError("count is a whole number from 1 to a million")
    return {bucket_of(float(latency)): count}  # type: ignore[arg-type, dict-item]


def _read_histogram(histogram: object) -> dict[int, int]:
    if not isinstance(histogram, Mapping) or len(histogram) > MOST_BUCKETS:
        raise ValueError("histogram maps buckets to counts")
    counts: dict[int, int] = {}
    for name, count in histogram.items():
        bucket = int(name) if isinstance(name, str) and len(name) <= len(str(LOWEST)) else None
        if bucket is None or not LOWEST <= bucket <= HIGHEST or not _is_count(count):
            raise ValueError(f"a histogram's buckets are {LOWEST} to {HIGHEST}, with counts")
        counts[bucket] = counts.get(bucket, 0) + count
    return counts


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and 1 <= value <= MOST_COUNTED  # type: ignore[operator]

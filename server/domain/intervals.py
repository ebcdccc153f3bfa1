"""Intervals and paired tests for shares, standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Interval:
    """A two-sided interval of a share."""

    lower: float
    upper: float


def wilson(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval (Wilson 1927, JASA 22:209).

    No trials tell nothing: the interval is then [0, 1].
    """
    if trials == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = (
        z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2)) / (1 + z * z / trials)
    )
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p of McNemar's test over the pairs that disagree.

    Under the null each disagreement falls either way with probability one half (McNemar 1947,
    Psychometrika 12:153), so this is a binomial test; without disagreements p is 1.
    """
    pairs = only_first + only_second
    tail = sum(math.comb(pairs, k) for k in range(min(only_first, only_second) + 1))
    return float(min(1.0, 2 * tail / 2**pairs))

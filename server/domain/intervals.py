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


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """Return the two-sided mid-p of McNemar's test over the pairs that disagree.

    The exact test counts the whole probability of what was seen and is therefore too cautious
    with few pairs; mid-p counts half of it and keeps its level in nearly all cases (Fagerland,
    Lydersen, Laake 2013, BMC Medical Research Methodology 13:91). Without disagreements p is 1.
    """
    pairs, fewer = only_first + only_second, min(only_first, only_second)
    below = sum(math.comb(pairs, k) for k in range(fewer))
    return float(min(1.0, (2 * below + math.comb(pairs, fewer)) / 2**pairs))


def paired_difference(
    only_first: int, only_second: int, pairs: int, *, confidence: float = 0.95
) -> Interval:
    """Return the interval of the first share minus the second, both seen on the same pairs.

    Wald's interval with one pair added to each way of disagreeing (Bonett and Price 2012, Journal
    of Educational and Behavioral Statistics 37:479), which keeps its level for few pairs and does
    not collapse where none disagree. No pairs tell nothing: the interval is then [-1, 1].
    """
    if pairs == 0:
        return Interval(-1.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    first, second = (only_first + 1) / (pairs + 2), (only_second + 1) / (pairs + 2)
    half = z * math.sqrt((first + second - (first - second) ** 2) / (pairs + 2))
    return Interval(max(-1.0, first - second - half), min(1.0, first - second + half))

"""Sample ratio mismatch: arms of unequal size mean that something counts them unequally."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEVEL = 0.001
MIN_PER_ARM = 100


@dataclass(frozen=True)
class SampleRatio:
    """The test of equal arms; ``p_value`` is None below 100 installations per arm."""

    treatment: int
    control: int
    p_value: float | None
    is_mismatch: bool
    sentence: str


def chi_square_p(statistic: float) -> float:
    """Return the upper tail of a chi-square with one degree of freedom.

    It is the two-sided tail of a standard normal: ``erfc(sqrt(x / 2))``.
    """
    return math.erfc(math.sqrt(statistic / 2))


def judge_sample_ratio(treatment: int, control: int) -> SampleRatio:
    """Test the installations assigned to two arms that ought to be equal (Pearson 1900)."""
    counts = f"{treatment} installations in treatment and {control} in control"
    # By the expected size: an arm that is missing altogether is a mismatch too.
    if treatment + control < 2 * MIN_PER_ARM:
        return SampleRatio(treatment, control, None, is_mismatch=False, sentence=counts + ".")
    p_value = chi_square_p((treatment - control) ** 2 / (treatment + control))
    is_mismatch = p_value < LEVEL
    sentence = f"{counts} (p = {p_value:.2g})" + (
        ": too unequal for chance, so something counts them unequally." if is_mismatch else "."
    )
    return SampleRatio(treatment, control, p_value, is_mismatch, sentence)

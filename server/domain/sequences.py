"""Success of predictions, compared at any time: one-sided asymptotic confidence sequences.

Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and
asymptotic confidence sequences", arXiv 2103.06476 (the one-sided boundary of a half-normal
mixture). Success is a ratio of sums over installations, so its variance is that of the delta
method: one installation may send much feedback, and its answers are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Below these the normal approximation says nothing worth hearing.
MIN_SUCCEEDED = 10
MIN_FAILED = 10


@dataclass(frozen=True)
class ArmFeedback:
    """Sums over the installations of one arm that sent feedback.

    With n_i answers of installation i of which s_i were successes: ``answers`` is the sum of n_i,
    ``successes`` of s_i, ``answers_squared`` of n_i^2, ``successes_squared`` of s_i^2, ``products``
    of n_i s_i. ``succeeded`` and ``failed`` count installations with at least one of either.
    """

    installations: int = 0
    answers: int = 0
    successes: int = 0
    answers_squared: int = 0
    successes_squared: int = 0
    products: int = 0
    succeeded: int = 0
    failed: int = 0

    @classmethod
    def collect(cls, pairs: Iterable[tuple[int, int]]) -> ArmFeedback:
        """Sum ``(successes, answers)`` pairs, one per installation."""
        kept = [(successes, answers) for successes, answers in pairs if answers]
        return cls(
            installations=len(kept),
            answers=sum(n for _, n in kept),
            successes=sum(s for s, _ in kept),
            answers_squared=sum(n * n for _, n in kept),
            successes_squared=sum(s * s for s, _ in kept),
            products=sum(s * n for s, n in kept),
            succeeded=sum(s > 0 for s, _ in kept),
            failed=sum(s < n for s, n in kept),
        )

    @property
    def is_enough(self) -> bool:
        """Whether successes and failures came from at least ten installations each."""
        return self.succeeded >= MIN_SUCCEEDED and self.failed >= MIN_FAILED

    @property
    def share(self) -> float:
        """Successes by answers."""
        return self.successes / self.answers

    @property
    def variance(self) -> float:
        """The variance of ``share`` by the delta method (Deng, Knoblich, Lu 2018, KDD, eq. 3)."""
        n, ratio = self.installations, self.share
        squares = (
            self.successes_squared
            - 2 * ratio * self.products
            + ratio * ratio * self.answers_squared
        )
        # Equal answers from everyone leave nothing to estimate from; no ratio is known better
        # than from independent answers of one each.
        least = ratio * (1 - ratio) / self.answers
        return max(squares / self.answers**2 * n / (n - 1), least) if n > 1 else math.inf


@dataclass(frozen=True)
class Comparison:
    """The difference of two success shares with bounds that hold at all times together.

    ``lower`` and ``upper`` are one-sided, each at ``alpha``: together they are no interval of
    that level, but of twice the alpha.
    """

    difference: float
    lower: float
    upper: float
    standard_error: float
    alpha: float


def tuned_rho(*, alpha: float, tuned_for: float) -> float:
    """Return the rho that makes a one-sided boundary nearly tightest at ``tuned_for``.

    Source: arXiv 2103.06476, the approximation ``sqrt((-2 log a + log(-2 log a + 1)) / t)``, with
    twice the alpha because the boundary is one-sided.
    """
    twice = -2 * math.log(2 * alpha)
    return math.sqrt((twice + math.log(twice + 1)) / tuned_for)


def boundary(time: float, *, alpha: float, rho: float) -> float:
    """Return how many standard errors a mean may be off at ``time``, at all times together.

    ``sqrt(2 (t rho^2 + 1) / (t rho^2) log(1 + sqrt(t rho^2 + 1) / (2 alpha)))``
    """
    scaled = time * rho * rho
    return math.sqrt(2 * (scaled + 1) / scaled * math.log(1 + math.sqrt(scaled + 1) / (2 * alpha)))


def compare(
    first: ArmFeedback, second: ArmFeedback, *, alpha: float, tuned_for: int
) -> Comparison | None:
    """Compare the success of two arms, first minus second; None where there is too little.

    ``tuned_for`` counts installations of both arms. Each bound fails at any time with probability
    about ``alpha``, whoever looks however often.
    """
    if not (first.is_enough and second.is_enough):
        return None
    rho = tuned_rho(alpha=alpha, tuned_for=tuned_for)
    error = math.sqrt(first.variance + second.variance)
    width = error * boundary(first.installations + second.installations, alpha=alpha, rho=rho)
    difference = first.share - second.share
    return Comparison(difference, difference - width, difference + width, error, alpha)

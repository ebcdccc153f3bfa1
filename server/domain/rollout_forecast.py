"""What a fleet can decide: how likely and how soon an equal candidate is shown to be no worse.

A console can say before a rollout starts that a fleet is too small for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from server.domain.rollout_policy import RolloutPolicy
from server.domain.sequences import MIN_FAILED, MIN_SUCCEEDED, boundary, tuned_rho

_HALF = 0.5
_GRID = 241  # points of the numerical integration; an odd number, for Simpson's rule
_REACH = 6.0  # standard errors beyond which nothing is integrated
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Forecast:
    """The chance that an equal candidate is promoted by the last of ``by_day``'s days.

    ``by_day[d]`` is the chance after d + 1 days of feedback; ``median_day`` is None where half of
    all rollouts are not decided in time.
    """

    new_per_arm_and_day: int
    days: int
    probability: float
    median_day: int | None
    by_day: tuple[float, ...]
    sentence: str


def forecast(
    policy: RolloutPolicy,
    *,
    new_per_arm_and_day: int,
    success_share: float,
    days: int | None = None,
) -> Forecast:
    """Forecast a candidate as good as the incumbent, looked at daily, for ``days`` days.

    ``new_per_arm_and_day`` counts installations that send their first feedback, one answer each;
    ``days`` is the policy's deadline unless given.

    Raises:
        ValueError: the share does not lie between 0 and 1, or there are no days.

    """
    horizon = math.floor(policy.deadline_days) if days is None else days
    if not 0 < success_share < 1 or horizon < 1:
        message = "a forecast needs a success share between 0 and 1, and at least one day"
        raise ValueError(message)
    by_day = _crossings(policy, new_per_arm_and_day, success_share, horizon)
    median = next((day for day, chance in enumerate(by_day, start=1) if chance >= _HALF), None)
    sentence = (
        f"With {new_per_arm_and_day} new installations per arm and day that send feedback, a"
        f" candidate as good as the incumbent is promoted within {horizon} days in"
        f" {by_day[-1]:.0%} of rollouts"
        + (f", in half of them by day {median}." if median else ".")
        + ("" if median else " Inconclusive rollouts keep the incumbent.")
    )
    return Forecast(new_per_arm_and_day, horizon, by_day[-1], median, by_day, sentence)


def unreachable_stages(policy: RolloutPolicy, *, fleet: int) -> tuple[int, ...]:
    """Return the stages, from 0, that a fleet is too small to complete.

    A stage asks for new installations per arm, and finds them among those it adds.
    """
    before = (0, *policy.stages_bp[:-1])
    return tuple(
        stage
        for stage, (low, high) in enumerate(zip(before, policy.stages_bp, strict=True))
        if fleet * (high - low) < policy.min_installations * 10_000
    )


def reachable_stages(policy: RolloutPolicy, *, fleet: int) -> tuple[int, ...]:
    """Return the policy's stages in basis points without those a fleet is too small to complete.

    Planned before a start: a stage that is left out adds its installations to the next one. The
    last stage always stays.
    """
    kept: list[int] = []
    for bp in policy.stages_bp:
        added = bp - (kept[-1] if kept else 0)
        if fleet * added >= policy.min_installations * 10_000 or bp == policy.stages_bp[-1]:
            kept.append(bp)
    return tuple(kept)


def _crossings(policy: RolloutPolicy, new: int, share: float, days: int) -> tuple[float, ...]:
    """Return the chance of having crossed the boundary by each day.

    The estimate's deviation times its installations is a random walk with normal steps; its
    density below the boundary is carried from day to day by numerical integration (Armitage,
    McPherson, Rowe 1969, JRSS A 132:235). Unit: one step's standard deviation.
    """
    if new < 1:
        return (0.0,) * days
    rho = tuned_rho(alpha=policy.alpha, tuned_for=policy.tuned_for)
    step_error = math.sqrt(2 * share * (1 - share) / new)
    drift = policy.margin / step_error
    crossed, chances = 0.0, []
    density: list[tuple[float, float]] | None = None
    for day in range(1, days + 1):
        width = boundary(2 * new * day, alpha=policy.alpha, rho=rho)
        limit = width * math.sqrt(day) - drift * day
        if min(share, 1 - share) * new * day < max(MIN_SUCCEEDED, MIN_FAILED):
            limit = math.inf
        low = -_REACH * math.sqrt(day)
        high = min(limit, _REACH * math.sqrt(day))
        if density is not None:
            crossed += sum(w * _tail(limit - at) for at, w in density)
        else:
            crossed += _tail(limit)
        chances.append(min(1.0, crossed))
        density = _carry(density, low, high)
    return tuple(chances)


def _tail(distance: float) -> float:
    return 0.5 * math.erfc(distance / math.sqrt(2))


def _carry(
    density: list[tuple[float, float]] | None, low: float, high: float
) -> list[tuple[float, float]]:
    """Return points below the boundary with the probability that Simpson's rule gives each."""
    if high <= low:
        return []
    width = (high - low) / (_GRID - 1)
    points = []
    for index in range(_GRID):
        at = low + index * width
        height = (
            _NORMAL.pdf(at)
            if density is None
            else sum(w * math.exp(-0.5 * (at - before) ** 2) for before, w in density)
            / math.sqrt(2 * math.pi)
        )
        simpson = 1 if index in (0, _GRID - 1) else 4 if index % 2 else 2
        points.append((at, height * simpson * width / 3))
    return points

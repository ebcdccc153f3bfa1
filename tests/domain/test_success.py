from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from server.domain.rollout_forecast import forecast, reachable_stages, unreachable_stages
from server.domain.rollout_policy import RolloutPolicy
from server.domain.sample_ratio import chi_square_p, judge_sample_ratio
from server.domain.sequences import ArmFeedback, boundary, compare, tuned_rho

POLICY = RolloutPolicy()


@given(st.floats(0, 500))
def test_the_chi_square_tail_agrees_with_scipy(statistic):
    assert chi_square_p(statistic) == pytest.approx(stats.chi2.sf(statistic, 1), rel=1e-9)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_the_sample_ratio_agrees_with_scipy(treatment, control):
    answer = judge_sample_ratio(treatment, control)
    if treatment + control < 200:
        assert answer.p_value is None
        assert not answer.is_mismatch
        return
    expected = stats.chisquare([treatment, control]).pvalue
    assert answer.p_value == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert answer.is_mismatch == (expected < 0.001)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 6])
@pytest.mark.parametrize("time", [20, 200, 2000, 20_000])
def test_the_boundary_is_where_the_half_normal_mixture_reaches_one_by_alpha(time, alpha):
    rho = tuned_rho(alpha=alpha, tuned_for=2000)
    total = boundary(time, alpha=alpha, rho=rho) * math.sqrt(time)  # of a unit-variance walk
    peak = total / (time + 1 / rho**2)

    def integrand(slope, of=total):
        prior = 2 * stats.norm.pdf(slope / rho) / rho
        return prior * math.exp(slope * of - slope**2 * time / 2)

    mixture = integrate.quad(integrand, 0, peak + 60 * rho, points=[peak], limit=200)[0]
    # The mixture is 2 exp(z^2 / 2) Phi(z) / sqrt(t rho^2 + 1); the closed form puts for Phi a
    # bound that makes it lie a little outside, by 1 to 2 of the inverse root.
    outside = 1 / math.sqrt(time * rho**2 + 1)
    assert outside * 0.999 <= mixture - 1 / alpha <= outside * 2.001


def test_rho_makes_the_boundary_tightest_about_where_it_is_tuned():
    rho = tuned_rho(alpha=0.05, tuned_for=2000)
    here = boundary(2000, alpha=0.05, rho=rho)
    others = [boundary(2000, alpha=0.05, rho=rho * factor) for factor in (0.25, 0.5, 2, 4)]
    assert here < min(others)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda p: (p[0], sum(p)))))
def test_the_delta_method_agrees_with_numpy(pairs):
    arm = ArmFeedback.collect(pairs)
    kept = np.array([pair for pair in pairs if pair[1]], dtype=float).reshape(-1, 2)
    assert arm.installations == len(kept)
    if len(kept) < 2:
        return
    successes, answers = kept[:, 0], kept[:, 1]
    ratio = successes.sum() / answers.sum()
    linear = (successes - ratio * answers) / answers.mean()
    expected = linear.var(ddof=1) / len(kept)
    least = ratio * (1 - ratio) / answers.sum()
    assert arm.share == pytest.approx(ratio)
    assert arm.variance == pytest.approx(max(expected, least), rel=1e-6, abs=1e-12)


def test_it_is_silent_below_ten_installations_with_either_answer():
    enough = ArmFeedback.collect([(1, 1)] * 10 + [(0, 1)] * 10)
    loud = ArmFeedback.collect([(500, 1000)] * 9)
    few = ArmFeedback.collect([(1, 1)] * 500 + [(0, 1)] * 9)
    assert compare(enough, enough, alpha=0.05, tuned_for=2000).difference == 0
    for silent in (loud, few, ArmFeedback()):
        assert compare(enough, silent, alpha=0.05, tuned_for=2000) is None
        assert compare(silent, enough, alpha=0.05, tuned_for=2000) is None


def feedback_of(random, count, share, *, loyal):
    """Per installation: how much it answers and how well it is served varies, as in life."""
    answers = 1 + random.poisson(2, count) if loyal else np.ones(count, int)
    served = random.beta(share * 10, (1 - share) * 10, count) if loyal else np.full(count, share)
    return np.column_stack([random.binomial(answers, served), answers])


def sums(pairs):
    successes, answers = pairs.T
    parts = (
        np.ones(len(pairs), int), answers, successes, answers**2, successes**2,
        successes * answers, successes > 0, successes < answers,
    )  # fmt: skip
    return tuple(int(part.sum()) for part in parts)


def looks(random, share, *, days=30, new=60, loyal):
    daily = [sums(feedback_of(random, new, share, loyal=loyal)) for _ in range(days)]
    so_far = accumulate(daily, lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)))
    return [ArmFeedback(*total) for total in so_far]


@pytest.mark.parametrize("loyal", [False, True])
@pytest.mark.parametrize("share", [0.9, 0.6])
def test_bounds_hold_at_all_of_thirty_looks_together(share, loyal):
    random = np.random.default_rng(20260101)
    runs, missed_low, missed_high = 400, 0, 0
    for _ in range(runs):
        pairs = zip(
            looks(random, share, loyal=loyal), looks(random, share, loyal=loyal), strict=True
        )
        seen = [compare(a, b, alpha=0.05, tuned_for=2000) for a, b in pairs]
        missed_low += any(c.lower > 0 for c in seen if c)
        missed_high += any(c.upper < 0 for c in seen if c)
    # 5 % are allowed; 8 % of 400 is more than two standard errors above.
    print(f"missed {missed_low / runs:.1%} below, {missed_high / runs:.1%} above")
    assert max(missed_low, missed_high) <= 0.08 * runs


def test_the_forecast_agrees_with_a_simulation():
    random = np.random.default_rng(7)
    days, new = 14, 200
    decided = 0
    for _ in range(300):
        pairs = zip(
            looks(random, 0.9, days=days, new=new, loyal=False),
            looks(random, 0.9, days=days, new=new, loyal=False),
            strict=True,
        )
        seen = [compare(a, b, alpha=POLICY.alpha, tuned_for=POLICY.tuned_for) for a, b in pairs]
        decided += any(c.lower > -POLICY.margin for c in seen if c)
    expected = forecast(POLICY, new_per_arm_and_day=new, success_share=0.9)
    print(f"simulated {decided / 300:.1%}, forecast {expected.probability:.1%}")
    assert decided / 300 == pytest.approx(expected.probability, abs=0.09)


def test_small_fleets_are_told_that_they_cannot_decide_quickly():
    small = forecast(POLICY, new_per_arm_and_day=50, success_share=0.9, days=30)
    large = forecast(POLICY, new_per_arm_and_day=200, success_share=0.9, days=30)
    assert small.probability == pytest.approx(0.25, abs=0.03)
    assert large.probability == pytest.approx(0.85, abs=0.03)
    assert small.median_day is None
    assert large.median_day in range(10, 20)
    assert "Inconclusive rollouts keep the incumbent" in small.sentence
    assert list(large.by_day) == sorted(large.by_day)
    assert forecast(POLICY, new_per_arm_and_day=0, success_share=0.9).probability == 0


def test_stages_that_a_fleet_cannot_fill_are_named():
    assert unreachable_stages(POLICY, fleet=1000) == (0,)
    assert unreachable_stages(POLICY, fleet=100) == (0, 1, 2, 3)
    assert unreachable_stages(POLICY, fleet=2000) == ()
    assert reachable_stages(POLICY, fleet=1000) == (500, 1000, 2500, 5000)
    assert reachable_stages(POLICY, fleet=100) == (2500, 5000)
    assert reachable_stages(POLICY, fleet=2000) == POLICY.stages_bp


@given(st.integers(0, 5000))
def test_planned_stages_can_all_be_completed_but_for_the_last(fleet):
    planned = replace(POLICY, stages_bp=reachable_stages(POLICY, fleet=fleet))
    assert set(unreachable_stages(planned, fleet=fleet)) <= {len(planned.stages_bp) - 1}


@pytest.mark.parametrize("values", [{"success_share": 1.0}, {"success_share": 0.5, "days": 0}])
def test_a_forecast_of_nothing_is_an_error(values):
    with pytest.raises(ValueError, match="at least one day"):
        forecast(POLICY, new_per_arm_and_day=10, **values)

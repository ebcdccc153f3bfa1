from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from server.domain.guardrails import (
    RATIOS,
    StageEvents,
    judge_floor,
    judge_guardrail,
    log_e_value,
)

ALPHA = 0.05 / 6
counts = st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(0, 5000))
stages = st.lists(
    counts.map(lambda c: StageEvents(c[0], c[1], c[0] + c[2], c[1] + c[2])), max_size=6
)


def published(given_stages):
    """The formula as it stands in the literature, by other means: numpy and scipy."""
    ratios = np.array(RATIOS)
    total = np.full(len(ratios), -np.log(len(ratios)))
    for stage in given_stages:
        at_risk = stage.treatment_at_risk + stage.control_at_risk
        if at_risk:
            theta = stage.treatment_at_risk / at_risk
            events = stage.treatment_events + stage.control_events
            total += stage.treatment_events * np.log(ratios)
            total -= events * np.log(1 + theta * (ratios - 1))
    return logsumexp(total)


@given(stages)
def test_the_e_process_agrees_with_scipy(found):
    assert log_e_value(found) == pytest.approx(published(found), abs=1e-9, rel=1e-9)


@given(stages)
def test_it_starts_at_one_and_is_never_negative(found):
    assert log_e_value([]) == pytest.approx(0, abs=1e-12)
    assert log_e_value([StageEvents(0, 0, 50, 50)]) == pytest.approx(0, abs=1e-12)
    # A finite logarithm is a positive value.
    assert math.isfinite(log_e_value(found))


@given(stages, stages)
def test_evidence_for_one_ratio_adds_up_over_stages(first, second):
    for ratio in RATIOS:
        apart = log_e_value(first, [ratio]) + log_e_value(second, [ratio])
        assert log_e_value([*first, *second], [ratio]) == pytest.approx(apart, abs=1e-9)


@given(stages, st.integers(0, 50), st.integers(1, 50))
def test_it_grows_with_events_in_treatment_and_falls_with_events_in_control(before, x, more):
    def after(treatment, control):
        return log_e_value([*before, StageEvents(treatment, control, 500, 500)])

    assert after(x + more, 3) > after(x, 3)
    assert after(3, x + more) < after(3, x)


@given(st.integers(1, 40), st.integers(1, 40))
def test_its_mean_under_equal_rates_is_one(at_risk, events):
    # The arms of ``events`` events are then binomial: the sum over all of them is exact.
    theta = at_risk / (at_risk + 40)
    mean = sum(
        math.comb(events, x)
        * theta**x
        * (1 - theta) ** (events - x)
        * math.exp(log_e_value([StageEvents(x, events - x, 100 * at_risk, 4000)]))
        for x in range(events + 1)
    )
    assert mean == pytest.approx(1, rel=1e-9)


def test_an_event_whose_assignment_was_lost_is_counted_and_nothing_breaks():
    assert math.isfinite(log_e_value([StageEvents(5, 0, 0, 0)]))
    assert log_e_value([StageEvents(5, 0, 0, 0)]) == pytest.approx(0)


def test_a_breach_needs_evidence_of_one_by_alpha():
    # Against a control arm as large, without any event there, ten events are few, eleven enough;
    # with a hundred times as many incumbents, six are.
    calm = judge_guardrail("crash", [StageEvents(10, 0, 60, 60)], alpha=ALPHA)
    breached = judge_guardrail("crash", [StageEvents(11, 0, 60, 60)], alpha=ALPHA)
    assert (calm.is_breached, breached.is_breached) == (False, True)
    assert judge_guardrail("crash", [StageEvents(6, 60, 60, 6000)], alpha=ALPHA).is_breached
    assert breached.log_threshold == pytest.approx(math.log(120))
    assert "rolled back" in breached.sentence
    assert "11 installations with the candidate, 0 with the incumbent" in breached.sentence


def test_a_candidate_that_is_better_is_never_breached():
    better = judge_guardrail("crash", [StageEvents(10, 4000, 5000, 5000)], alpha=ALPHA)
    assert not better.is_breached


@pytest.mark.parametrize(
    ("tried", "failed", "expected"),
    [(19, 19, False), (20, 9, False), (20, 10, True), (400, 199, False), (400, 200, True)],
)
def test_the_hard_floor(tried, failed, expected):
    assert judge_floor(tried=tried, load_failures=failed).is_breached is expected

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.domain.intervals import mcnemar_exact, wilson
from server.domain.promotion import judge_candidate


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(case):
    successes, trials = case
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    interval = wilson(successes, trials)
    assert interval.lower == pytest.approx(expected.low, abs=1e-9)
    assert interval.upper == pytest.approx(expected.high, abs=1e-9)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_agrees_with_the_binomial_test(won, lost):
    expected = stats.binomtest(won, won + lost, 0.5).pvalue if won + lost else 1.0
    assert mcnemar_exact(won, lost) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_the_gate_is_non_inferiority_on_the_same_photos(pairs):
    candidate, incumbent = [c for c, _ in pairs], [i for _, i in pairs]
    verdict = judge_candidate(candidate, incumbent, margin=0.02, most_frequent_share=0.5)
    lost = (sum(incumbent) - sum(candidate)) / len(pairs)
    assert verdict.passes == (lost <= 0.02 + 1e-9)
    assert verdict.only_candidate_right - verdict.only_incumbent_right == sum(candidate) - sum(
        incumbent
    )
    assert str(len(pairs)) in verdict.sentence


def test_a_first_candidate_has_to_beat_guessing():
    guesser = [True] * 30 + [False] * 70
    assert not judge_candidate(guesser, None, margin=0.02, most_frequent_share=0.3).passes
    better = [True] * 31 + [False] * 69
    assert judge_candidate(better, None, margin=0.02, most_frequent_share=0.3).passes


def test_no_test_photos_is_an_error_and_never_a_pass():
    with pytest.raises(ValueError, match="at least one"):
        judge_candidate([], None, margin=0.02, most_frequent_share=0.0)

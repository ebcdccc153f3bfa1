from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.domain.intervals import mcnemar_exact, mcnemar_mid_p, paired_difference, wilson
from server.domain.promotion import judge_candidate, judge_variant

pairs_of_answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)
margins = st.floats(0, 0.2)


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
    fewer, pairs = min(won, lost), won + lost
    half = stats.binom.cdf(fewer, pairs, 0.5) - stats.binom.pmf(fewer, pairs, 0.5) / 2
    assert mcnemar_mid_p(won, lost) == pytest.approx(min(1.0, 2 * half), abs=1e-9)
    assert mcnemar_mid_p(won, lost) <= mcnemar_exact(won, lost) + 1e-12


def test_the_paired_interval_is_the_published_one():
    """Bentur and others' airway data, as Fagerland, Lydersen, Laake (2014) compute them."""
    interval = paired_difference(1, 7, 21)
    assert (interval.lower, interval.upper) == pytest.approx((-0.508, -0.013), abs=5e-4)


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.02), (0.1, 0.02), (0.3, 0.1)])
@pytest.mark.parametrize("count", [20, 100, 400])
def test_the_paired_interval_covers_the_truth(count, lost, won):
    rows = stats.multinomial(count, [won, lost, 1 - won - lost], seed=3).rvs(2000)
    found = [paired_difference(int(w), int(x), count) for w, x, _ in rows]
    covered = sum(i.lower <= won - lost <= i.upper for i in found) / len(found)
    assert covered > 0.93


@given(pairs_of_answers, margins)
def test_the_gate_is_non_inferiority_on_the_same_photos(pairs, margin):
    candidate, incumbent = [c for c, _ in pairs], [i for _, i in pairs]
    verdict = judge_candidate(candidate, incumbent, margin=margin, most_frequent_share=0.5)
    lost = (sum(incumbent) - sum(candidate)) / len(pairs)
    assert verdict.passes == (lost <= margin + 1e-9)
    assert verdict.only_candidate_right - verdict.only_incumbent_right == sum(candidate) - sum(
        incumbent
    )
    assert str(len(pairs)) in verdict.sentence
    assert verdict.difference[0] <= -lost <= verdict.difference[1] or abs(lost) > 0.5


@given(pairs_of_answers, margins)
def test_what_the_gate_finds_holds_for_the_two_the_other_way_round(pairs, margin):
    def find(first, second):
        return judge_candidate(first, second, margin=margin, most_frequent_share=0.5).finding

    candidate, incumbent = [c for c, _ in pairs], [i for _, i in pairs]
    there, back = find(candidate, incumbent), find(incumbent, candidate)
    if there == "better":
        assert back in {"worse", "no_worse", "within_margin"}
    if there in {"worse", "undecided"}:
        assert back in {"better", "no_worse", "within_margin"}
    if sum(candidate) == sum(incumbent):
        assert {there, back} <= {"no_worse", "within_margin"}


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 300), margins)
def test_one_photo_more_won_never_turns_a_pass_into_a_refusal(won, lost, same, margin):
    def passes(won, lost):
        candidate = [True] * won + [False] * lost + [True] * same
        incumbent = [False] * won + [True] * lost + [True] * same
        return judge_candidate(candidate, incumbent, margin=margin, most_frequent_share=0.5).passes

    if lost and passes(won, lost):
        assert passes(won + 1, lost - 1)


@pytest.mark.parametrize(
    ("won", "lost", "count", "finding", "passes"),
    [
        # Ten photos lost and one won is no chance; whether it matters is for the margin to say.
        (1, 10, 100, "worse", False),
        (1, 10, 1000, "no_worse", True),
        (10, 1, 100, "better", True),
        # Few pairs that differ: one photo of twenty is beyond two points, and may be chance.
        (0, 1, 20, "undecided", False),
        (0, 1, 50, "within_margin", True),
        (0, 0, 20, "within_margin", True),
        (0, 0, 400, "no_worse", True),
        (0, 6, 100, "worse", False),
        (0, 3, 100, "undecided", False),
    ],
)
def test_what_passes_and_what_is_refused(won, lost, count, finding, passes):
    candidate = [True] * (count - lost) + [False] * lost
    incumbent = [False] * won + [True] * (count - won)
    verdict = judge_candidate(candidate, incumbent, margin=0.02, most_frequent_share=0.5)
    assert (verdict.finding, verdict.passes) == (finding, passes)


def test_a_first_candidate_has_to_beat_guessing():
    guesser = [True] * 30 + [False] * 70
    assert not judge_candidate(guesser, None, margin=0.02, most_frequent_share=0.3).passes
    better = [True] * 31 + [False] * 69
    assert judge_candidate(better, None, margin=0.02, most_frequent_share=0.3).passes


def test_no_test_photos_is_an_error_and_never_a_pass():
    with pytest.raises(ValueError, match="at least one"):
        judge_candidate([], None, margin=0.02, most_frequent_share=0.0)
    with pytest.raises(ValueError, match="at least one"):
        judge_variant([], None, tolerance=0.03, min_agreement=0.9)


@given(pairs_of_answers, st.floats(0, 0.2))
def test_a_variant_may_lose_what_is_tolerated_and_no_more(pairs, tolerance):
    same = [ours == theirs for ours, theirs in pairs]
    verdict = judge_variant(same, pairs, tolerance=tolerance, min_agreement=0.0)
    lost = sum(theirs for _, theirs in pairs) - sum(ours for ours, _ in pairs)
    assert verdict.passes == (lost <= tolerance * len(pairs) + 1e-9)
    assert bool(verdict.refusal) != verdict.passes


def test_a_variant_that_errs_elsewhere_is_refused_though_it_is_as_accurate():
    pairs = [(True, False)] * 20 + [(False, True)] * 20 + [(True, True)] * 60
    same = [ours == theirs for ours, theirs in pairs]
    verdict = judge_variant(same, pairs, tolerance=0.03, min_agreement=0.9)
    assert not verdict.passes
    assert "60 of 100" in verdict.refusal
    # Without labelled photos agreement is all there is.
    assert not judge_variant(same, None, tolerance=0.03, min_agreement=0.9).passes
    assert judge_variant([True] * 9 + [False], None, tolerance=0.0, min_agreement=0.9).passes

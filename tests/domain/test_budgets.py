"""Who stays in a budget search, and what is chosen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.budgets import Budget, Candidate, choose, explain, halve, is_sure, misses
from server.domain.errors import InvalidInput, Unprocessable

COUNT = 200


@st.composite
def candidates(draw, precision: str = ""):
    parameters = draw(st.integers(1_000, 4_000_000))
    return Candidate(
        network="mobilenet_v2_0.35_96",
        depth=f"layer_{draw(st.integers(0, 10**6))}",
        parameters=parameters,
        multiply_adds=draw(st.integers(1, 10**9)),
        size_bytes=parameters,
        precision=precision,
        correct=draw(st.integers(0, COUNT)),
        count=COUNT,
        latency_ms=draw(st.floats(0.1, 50)),
        round=1,
    )


budgets = st.builds(
    Budget,
    max_size_bytes=st.none() | st.integers(1_000, 5_000_000),
    max_latency_ms=st.none() | st.floats(0.1, 60),
    min_accuracy=st.none() | st.floats(0.01, 1),
)


@given(st.lists(candidates(), min_size=1, max_size=20), budgets, st.integers(1, 8))
def test_halving_loses_nobody_and_says_why_each_was_dropped(found, budget, keep) -> None:
    kept, dropped = halve(found, budget, keep)
    assert len(kept) <= keep
    assert len(kept) + len(dropped) == len(found)
    assert all(one.dropped for one in dropped)
    assert not any(one.dropped for one in kept)
    # The order they came in does not matter to who stays.
    again, _ = halve(found[::-1], budget, keep)
    figures = [(one.correct, one.parameters, one.multiply_adds) for one in kept]
    assert figures == [(one.correct, one.parameters, one.multiply_adds) for one in again]


@given(st.lists(candidates(), min_size=1, max_size=20), budgets, st.integers(1, 8))
def test_who_keeps_to_the_bounds_for_sure_is_never_lost_to_who_may_not(found, budget, keep) -> None:
    kept, dropped = halve(found, budget, keep)
    able = [one for one in dropped if "others did better" in one.dropped]
    if any(is_sure(one, budget) for one in able):
        assert any(is_sure(one, budget) for one in kept)


@given(st.lists(candidates("int8"), min_size=1, max_size=12), budgets)
def test_what_is_chosen_keeps_to_the_budget_and_nothing_that_does_is_better(found, budget) -> None:
    if all(misses(one, budget) for one in found):
        with pytest.raises(Unprocessable, match="The nearest is") as caught:
            choose(found, budget)
        assert caught.value.code == "budget_not_met"
        return
    chosen = choose(found, budget)
    assert not misses(chosen, budget)
    rivals = [one for one in found if not misses(one, budget)]
    if budget.min_accuracy is None:
        assert chosen.accuracy == max(one.accuracy for one in rivals)
    else:
        assert chosen.size_bytes == min(one.size_bytes for one in rivals)
    assert budget.describe() in explain(chosen, found, budget)


def test_the_nearest_is_named_where_nothing_keeps_to_the_budget() -> None:
    one = Candidate(
        network="mobilenet_v2_0.35_96", depth="features", precision="int8", parameters=400_000,
        multiply_adds=10**7, size_bytes=600_000, correct=160, count=200, latency_ms=2.0,
    )  # fmt: skip
    with pytest.raises(Unprocessable) as caught:
        choose([one], Budget(max_size_bytes=500_000))
    assert "mobilenet_v2_0.35_96 at features int8: 600,000 bytes" in caught.value.detail


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"max_size_bytes": -1},
        {"max_size_bytes": True},
        {"min_accuracy": 85},
        {"max_latency_ms": "fast"},
        {"max_size_bytes": 10**6, "networks": ["no_such_net"]},
        {"max_size_bytes": 10**6, "networks": "small_cnn"},
        {"max_size_bytes": 10**6, "finalists": 7},
        {"max_size_bytes": 10**6, "colour": "red"},
        {"max_latency_ms": float("nan")},
    ],
)
def test_a_budget_that_says_nothing_sensible_is_refused(values) -> None:
    with pytest.raises(InvalidInput) as caught:
        Budget.read(values)
    assert caught.value.code == "invalid_budget"

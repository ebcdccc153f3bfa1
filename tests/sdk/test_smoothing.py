"""A live video's label is steady, follows what is shown, and begins anew with another model."""

from __future__ import annotations

import itertools

import nightferry
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nightferry import Smoother

LABELS = ("can", "cup", "jar")
CAN, CUP = {"can": 0.9, "cup": 0.1}, {"can": 0.1, "cup": 0.9}
UNSURE = {"can": 0.4, "cup": 0.35, "jar": 0.25}

frames = st.lists(
    st.tuples(st.dictionaries(st.sampled_from(LABELS), st.floats(0, 1)), st.floats(0, 0.3)),
    min_size=1,
    max_size=60,
)


def _show(smoother: Smoother, *shown: dict[str, float], start_s: float = 0.0) -> list[str | None]:
    return [
        smoother.add(one.items(), at_s=start_s + index / 30).label
        for index, one in enumerate(shown)
    ]


def test_a_label_is_named_once_it_led_for_a_while_and_outlives_a_flicker() -> None:
    smoother = Smoother()
    said = _show(smoother, *[CAN] * 10)
    assert said[:2] == [None, None]
    assert set(said[2:]) == {"can"}
    assert set(_show(smoother, CUP, CAN, UNSURE, CAN, start_s=10 / 30)) == {"can"}


def test_another_label_is_named_in_its_turn_and_uncertainty_names_none() -> None:
    smoother = Smoother()
    _show(smoother, *[CAN] * 10)
    said = _show(smoother, *[CUP] * 60, start_s=10 / 30)
    assert said[0] == "can"
    assert said[-1] == "cup"
    assert sum(one != two for one, two in itertools.pairwise(said)) <= 2, "no flicker"
    unsure = {"can": 0.34, "cup": 0.33, "jar": 0.33}
    assert _show(smoother, *[unsure] * 90, start_s=70 / 30)[-1] is None


def test_it_begins_anew_with_another_model_after_a_pause_and_on_demand() -> None:
    smoother = Smoother(frames=1)
    assert smoother.add(CAN.items(), at_s=0, key="v1").label == "can"
    assert smoother.add(UNSURE.items(), at_s=0.01, key="v1").label == "can"
    assert smoother.add(UNSURE.items(), at_s=0.02, key="v2").label is None
    assert smoother.add(CAN.items(), at_s=0.03, key="v2").label is None, "one frame of two"
    assert smoother.add(CAN.items(), at_s=9.0, key="v2").label == "can"
    smoother.reset()
    assert smoother.add(UNSURE.items(), at_s=9.1, key="v2").label is None


def test_the_formula_is_the_documented_one() -> None:
    smoother = Smoother(half_life_s=0.5, frames=1)
    smoother.add([("can", 0.8), ("cup", 0.2)], at_s=1.0)
    answer = smoother.add([("can", 0.0), ("cup", 1.0)], at_s=1.5)
    assert dict(answer.ranked) == pytest.approx({"can": 0.4, "cup": 0.6})


@given(frames)
def test_whatever_comes_the_answer_is_sound(shown: list[tuple[dict[str, float], float]]) -> None:
    smoother, now, before = Smoother(), 0.0, None
    for frame, step in shown:
        now += step
        answer = smoother.add(frame.items(), at_s=now)
        confidences = [value for _, value in answer.ranked]
        assert confidences == sorted(confidences, reverse=True)
        assert all(0 <= value <= 1 for value in confidences)
        assert sum(confidences) <= 1 + 1e-9
        assert answer.is_new == (answer.label != before)
        if answer.label is None:
            assert answer.confidence == 0
        else:
            assert answer.confidence >= 0.4, "never named below the lower threshold"
        if answer.is_new and answer.label is not None:
            assert answer.confidence >= 0.6
            assert answer.ranked[0][0] == answer.label
        before = answer.label


@given(frames, st.integers(1, 4))
def test_the_order_of_pairs_and_labels_that_are_nought_do_not_matter(
    shown: list[tuple[dict[str, float], float]], count: int
) -> None:
    one, other, now = Smoother(frames=count), Smoother(frames=count), 0.0
    for frame, step in shown:
        now += step
        padded = dict.fromkeys(reversed(LABELS), 0.0) | frame
        first = one.add(frame.items(), at_s=now)
        second = other.add(reversed(padded.items()), at_s=now)
        assert (first.label, first.confidence) == (second.label, pytest.approx(second.confidence))


def test_numbers_that_are_none_count_as_nought_and_time_runs_forward() -> None:
    smoother = Smoother(frames=1)
    answer = smoother.add([("can", float("nan")), ("cup", float("inf")), ("jar", -1.0)], at_s=5)
    assert (answer.label, answer.confidence) == (None, 0.0)
    smoother.add(CAN.items(), at_s=5)
    assert smoother.add(CAN.items(), at_s=4).ranked[0][0] == "can"
    assert Smoother().add([]).ranked == ()


@pytest.mark.parametrize(
    "arguments", [{"half_life_s": 0}, {"leave": 0.9}, {"enter": 2}, {"frames": 0}, {"margin": -1}]
)
def test_arguments_out_of_bounds_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(nightferry.ConfigurationError):
        Smoother(**arguments)

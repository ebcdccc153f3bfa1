"""The measure behind the practitioners' table: people kept apart, gains weighed against chance."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.ml import tuning
from worker.ml.embeddings import TOP

DEPTHS = ("low", "middle", "high", TOP)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.randoms())
def test_a_person_is_in_one_fold_whatever_the_order(people: list[int], random: object) -> None:
    groups = [f"person{number}" for number in people]
    folds = tuning.fold_by_group(groups)
    assert sorted(np.concatenate(folds)) == list(range(len(groups)))
    fold_of = {groups[row]: number for number, rows in enumerate(folds) for row in rows}
    assert all(fold_of[groups[row]] == n for n, rows in enumerate(folds) for row in rows)
    order = list(range(len(groups)))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = tuning.fold_by_group([groups[row] for row in order])
    assert {groups[order[row]]: n for n, rows in enumerate(again) for row in rows} == fold_of


def trial(depth: str, right: int, count: int = 200) -> tuning.Trial:
    answers = np.arange(count) < right
    return tuning.Trial("linear" if depth == TOP else "lower", depth, answers)


def test_a_lower_depth_has_to_win_by_more_than_asked_and_more_than_chance() -> None:
    terms = tuning.Terms(lower_min_gain=0.02)
    for right, chosen in ((150, TOP), (153, TOP), (154, "low"), (190, "low")):
        found, gain = tuning.choose_depth({"low": trial("low", right), TOP: trial(TOP, 150)}, terms)
        assert found.depth == chosen
        assert (gain is not None) == (chosen == "low")
    # As many points, but won on some photos and lost on others.
    mixed = tuning.Trial("lower", "low", np.roll(trial("low", 155).right, 60))
    found, _ = tuning.choose_depth({"low": mixed, TOP: trial(TOP, 150)}, terms)
    assert found.depth == TOP


def test_similar_is_the_upper_half_and_large_counts_the_smallest_label() -> None:
    assert [tuning.is_similar(depth, DEPTHS) for depth in DEPTHS] == [False, False, True, True]
    labels = np.array([0] * 60 + [1] * 50)
    assert tuning.is_large(labels, 2, tuning.Terms(fine_tune_min_photos_per_label=50))
    assert not tuning.is_large(labels, 2, tuning.Terms(fine_tune_min_photos_per_label=51))
    assert not tuning.is_large(labels, 3, tuning.Terms(fine_tune_min_photos_per_label=1))


def test_the_sentence_weighs_the_gain_against_the_patch() -> None:
    present = trial(TOP, 150)
    tried = tuning.Trial("fine_tune", "low", trial("low", 156).right)
    for needed, verdict in ((0.02, "it is kept"), (0.05, "it is not kept")):
        gain = tuning.measure_gain(tried, present, needed)
        sentence = tuning.describe_trial(tried, present, gain, 700_000)
        assert "78.0% of 200 validation photos, 3.0 points more" in sentence
        assert "0.7 MB" in sentence
        assert verdict in sentence


def test_probing_finds_the_depth_that_tells_labels_apart() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 3
    noise = generator.normal(size=(120, 16)).astype(np.float32)
    telling = noise.copy()
    telling[np.arange(120), labels] += 5
    reports: list[int] = []
    trials = tuning.probe(
        {"low": telling, TOP: noise},
        labels,
        [f"person{row // 6}" for row in range(120)],
        label_count=3,
        progress=lambda _stage, step, _total, _metrics: reports.append(step),
    )
    assert trials["low"].accuracy > 0.9
    assert trials[TOP].accuracy < 0.6
    assert reports == [1, 2]
    assert tuning.choose_depth(trials, tuning.Terms())[0].depth == "low"


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=2, max_size=40),
    st.integers(2, 40),
)
def test_whoever_sent_the_photos_every_label_can_be_learnt_where_there_are_two_photos(
    sent: list[tuple[int, int]], most: int
) -> None:
    groups = [f"person{person}" for person, _ in sent]
    rows = tuning.sample(groups, most)
    assert len(rows) == min(most, len(sent))
    labels = np.array([label for _, label in sent])[rows]
    chosen = [groups[row] for row in rows]
    folds, is_by_person = tuning.fold_for_probes(chosen, labels)
    assert sorted(np.concatenate(folds)) == list(range(len(rows)))
    for held in folds:
        kept = np.delete(np.arange(len(rows)), held)
        assert len(kept)
        if is_by_person:
            assert not {chosen[row] for row in held} & {chosen[row] for row in kept}
            assert set(labels[held]) <= set(labels[kept])


def test_one_person_alone_is_judged_on_photos_not_seen_and_the_sentence_says_so() -> None:
    labels = np.arange(40) % 2
    features = np.eye(2, dtype=np.float32)[labels]
    trials = tuning.probe(
        {"low": features, TOP: features}, labels, ["somebody"] * 40, label_count=2,
        progress=lambda *_: None,
    )  # fmt: skip
    assert trials[TOP].accuracy == 1.0
    sentence = tuning.describe_choice(trials[TOP], None, trials)
    assert "100.0% of 40 photos it did not see" in sentence


def test_nobody_who_sent_very_many_is_alone_in_the_sample() -> None:
    groups = [f"person{number % 3}" for number in range(90)] + ["person0"] * 3000
    chosen = {groups[row] for row in tuning.sample(groups, 60)}
    assert chosen == {"person0", "person1", "person2"}

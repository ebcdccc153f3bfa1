from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.domain.splits import Unit, assign_splits, cap_contributors

SHARES = {"validation_share": 0.15, "test_share": 0.15}
units = st.dictionaries(
    st.text("abcdefghij", min_size=1, max_size=6),
    st.dictionaries(st.sampled_from(["glass", "metal", "paper"]), st.integers(1, 20), min_size=1),
    max_size=40,
).map(lambda found: [Unit(key, counts) for key, counts in found.items()])


@given(units, units)
def test_a_unit_keeps_its_split_whatever_arrives_later(early, late):
    first = assign_splits(early, {}, nonce="m", **SHARES)
    second = assign_splits([*early, *late], first, nonce="m", **SHARES)
    assert set(first) == {unit.key for unit in early}
    assert not set(first) & set(second)
    assert set(first) | set(second) == {unit.key for unit in (*early, *late)}


@given(units)
def test_the_order_of_arrival_within_a_night_does_not_matter(found):
    assert assign_splits(found, {}, nonce="m", **SHARES) == assign_splits(
        found[::-1], {}, nonce="m", **SHARES
    )


def test_three_contributors_already_fill_three_splits():
    people = [Unit(f"contributor:{n}", {"a": 5, "b": 5}) for n in range(3)]
    assert set(assign_splits(people, {}, nonce="m", **SHARES).values()) == {
        "train",
        "validation",
        "test",
    }


def test_shares_are_met_per_label_when_units_are_single_photos():
    photos = [Unit(f"photo:{n}", {"abc"[n % 3]: 1}) for n in range(600)]
    splits = assign_splits(photos, {}, nonce="m", **SHARES)
    counts = Counter((splits[p.key], next(iter(p.label_counts))) for p in photos)
    for label in "abc":
        assert abs(counts["test", label] - 30) <= 1
        assert abs(counts["validation", label] - 30) <= 1


def test_a_contributor_who_floods_a_label_is_cut_to_the_cap():
    photos = [(f"{n}", "glass", f"person{n}") for n in range(40)]
    photos += [(f"flood{n}", "glass", "flooder") for n in range(60)]
    kept = cap_contributors(photos, max_share=0.05, nonce="m")
    assert sum(1 for photo in kept if photo.startswith("flood")) == 5
    assert len(kept) == 45


def test_few_contributors_are_not_capped_and_unknown_ones_never():
    few = [(f"{n}", "glass", f"person{n % 4}") for n in range(40)]
    unknown = [(f"{n}", "glass", "") for n in range(40)]
    assert len(cap_contributors(few, max_share=0.05, nonce="m")) == 40
    assert len(cap_contributors(unknown, max_share=0.05, nonce="m")) == 40

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.cohorts import (
    CONTROL_START,
    cohort,
    fnv1a32,
    holdout_seed,
    in_range,
    split_seed,
)
from server.domain.errors import InvalidInput

# GrowthBook, specVersion 0.8.0, hash version 2 (packages/sdk-js/test/cases.json, MIT): published
# buckets times 10000.
GROWTHBOOK_V2 = [
    ("seed", "a", 505),
    ("seed", "b", 2696),
    ("foo", "ab", 2575),
    ("foo", "def", 2019),
    ("89123klj", "8952klfjas09ujkasdf", 1240),
    ("90850943850283058242805", "123", 7516),
    ("()**(%$##$%#$#", '___)((*":&', 128),
    ("feature", "123", 5231),
    ("experiment", "1", 4413),
    ("holdout", "1", 8043),
    ("experiment", "123", 1736),
    ("bandit-exp", "1", 5305),
    ("feature-exp", "d123", 6468),
    ("feature-exp", "i123", 9943),
]


@pytest.mark.parametrize(("seed", "unit", "expected"), GROWTHBOOK_V2)
def test_published_vectors(seed, unit, expected):
    assert cohort(seed, unit) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)]
)
def test_fnv1a_agrees_with_its_authors(text, expected):
    assert fnv1a32(text.encode()) == expected


@given(st.binary(), st.binary())
def test_a_hash_can_be_continued(first, second):
    assert fnv1a32(first + second) == fnv1a32(second, fnv1a32(first))


@pytest.mark.parametrize(
    ("seed", "unit", "code"),
    [
        ("s:", "", "missing_unit"),
        ("s:", "a b", "invalid_unit"),
        ("s:", "a\n", "invalid_unit"),
        ("s:", "é", "invalid_unit"),
        ("", "a", "invalid_seed"),
        ("a b", "a", "invalid_seed"),
    ],
)
def test_what_is_no_id_is_refused_and_never_replaced(seed, unit, code):
    with pytest.raises(InvalidInput) as raised:
        cohort(seed, unit)
    assert raised.value.code == code


def test_ranges_are_half_open():
    assert in_range(0, 0, 1)
    assert not in_range(1, 0, 1)
    assert not in_range(0, 0, 0)


def test_two_rollouts_of_a_tenth_share_a_hundredth():
    first, second = split_seed("r7", "n1"), split_seed("r8", "n2")
    units = [f"i{number}" for number in range(200_000)]
    one = [cohort(first, unit) < 1000 for unit in units]
    other = [cohort(second, unit) < 1000 for unit in units]
    both = sum(a and b for a, b in zip(one, other, strict=True))
    assert both / len(units) == pytest.approx(0.01, abs=0.002)
    assert sum(one) / len(units) == pytest.approx(0.1, abs=0.003)


def test_the_holdout_is_independent_of_a_split():
    split, holdout = split_seed("r7", "n1"), holdout_seed("m")
    held = [f"i{n}" for n in range(60_000) if cohort(holdout, f"i{n}") < 1000]
    treated = sum(cohort(split, unit) < CONTROL_START for unit in held)
    assert treated / len(held) == pytest.approx(0.5, abs=0.025)

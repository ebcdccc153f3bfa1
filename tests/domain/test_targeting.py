from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.errors import InvalidInput
from server.domain.targeting import ATTRIBUTES, OPERATORS, Rule, match, read_rules
from server.domain.versions import parse_version


def test_versions_are_ordered_as_semver_org_says():
    # Rules 11.2, 11.3 and 11.4.4 of Semantic Versioning 2.0.0.
    ascending = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2"]
    ascending += ["1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "2.0.0", "2.1.0", "2.1.1", "2.10.0"]
    assert all(parse_version(low) < parse_version(high) for low, high in pairwise(ascending))
    assert parse_version("1.0.0+build.5") == parse_version("1.0.0")


def test_versions_of_systems_are_taken_too():
    assert parse_version("16") == parse_version("16.0.0")
    assert parse_version("10.0.19045.3803") > parse_version("10.0.19045")
    assert all(parse_version(text) is None for text in ("", "v1", "1..2", "1.2.3.4.5", "٣.1", "1-"))


@given(st.lists(st.integers(0, 10**9 - 1), min_size=3, max_size=3), st.integers(0, 2))
def test_a_greater_number_is_a_greater_version(numbers, place):
    greater = [n + (i == place) for i, n in enumerate(numbers)]
    if greater[place] < 10**9:
        assert parse_version(".".join(map(str, numbers))) < parse_version(
            ".".join(map(str, greater))
        )


@pytest.mark.parametrize(
    ("operator", "values", "matching", "other"),
    [
        ("is", ["android", "ios"], "Android", "windows"),
        ("is_not", ["android"], "ios", "ANDROID"),
        ("starts_with", ["pixel"], "Pixel 8", "galaxy"),
        ("version_at_least", ["2.10.0"], "2.10.0", "2.9.9"),
        ("version_below", ["2.10.0"], "2.10.0-rc.1", "2.10"),
        ("version_is", ["2.10.0", "3.0.0"], "3", "3.0.1"),
    ],
)
def test_every_operator(operator, values, matching, other):
    rules = read_rules([{"attribute": "app_version", "operator": operator, "values": values}])
    assert match(rules, {"app_version": matching}).is_matched
    refused = match(rules, {"app_version": other})
    assert not refused.is_matched
    assert other in refused.reason


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("attributes", [{}, {"platform": ""}])
def test_a_missing_attribute_matches_nothing_and_is_named(operator, attributes):
    answer = match((Rule("platform", operator, ("1.0",)),), attributes)
    assert not answer.is_matched
    assert "platform is not stated" in answer.reason


def test_what_is_no_version_matches_no_version_and_says_so():
    answer = match((Rule("app_version", "version_below", ("2.0",)),), {"app_version": "latest"})
    assert not answer.is_matched
    assert "'latest' is no version" in answer.reason


def test_all_rules_have_to_hold():
    rules = (Rule("platform", "is", ("ios",)), Rule("app_version", "version_at_least", ("2.0",)))
    assert match(rules, {"platform": "ios", "app_version": "2.1"}).is_matched
    assert not match(rules, {"platform": "ios", "app_version": "1.9"}).is_matched
    assert match((), {}).is_matched


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        ({}, "takes a list"),
        ([{}] * 21, "at most 20"),
        ([{"attribute": "platform"}], "exactly the members"),
        ([["a"]], "exactly the members"),
        ([{"attribute": "colour", "operator": "is", "values": ["x"]}], "'colour' is not known"),
        ([{"attribute": [], "operator": "is", "values": ["x"]}], "is not known"),
        ([{"attribute": "platform", "operator": "like", "values": ["x"]}], "'like' is not known"),
        ([{"attribute": "platform", "operator": {}, "values": ["x"]}], "is not known"),
        ([{"attribute": "platform", "operator": "is", "values": []}], "1 to 200 texts"),
        ([{"attribute": "platform", "operator": "is", "values": [1]}], "1 to 200 texts"),
        (
            [{"attribute": "platform", "operator": "version_below", "values": ["1", "2"]}],
            "takes one value",
        ),
        (
            [{"attribute": "platform", "operator": "version_is", "values": ["new"]}],
            "'new' is no version",
        ),
    ],
)
def test_rules_that_say_nothing_clear_are_refused(values, fact):
    with pytest.raises(InvalidInput, match=fact) as raised:
        read_rules(values)
    assert raised.value.code == "invalid_targeting"


@given(
    st.lists(
        st.builds(
            dict,
            attribute=st.sampled_from(ATTRIBUTES),
            operator=st.sampled_from(OPERATORS),
            values=st.lists(st.text(max_size=5), max_size=3),
        ),
        max_size=4,
    ),
    st.dictionaries(st.sampled_from(ATTRIBUTES), st.text(max_size=10)),
)
def test_rules_that_are_read_can_be_matched_against_anything(values, attributes):
    try:
        rules = read_rules(values)
    except InvalidInput:
        return
    assert match(rules, attributes).reason

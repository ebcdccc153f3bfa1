from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.assignment import (
    RULES,
    ChannelState,
    Installation,
    Requirements,
    RolloutFacts,
    assign,
)
from server.domain.cohorts import cohort, split_seed
from server.domain.errors import InvalidInput
from server.domain.targeting import Rule

ROLLOUT = RolloutFacts("r7", "nonce", "v9", 1000)
CHANNEL = ChannelState("recyclables", "v8", ROLLOUT)
units = st.text("abcdef0123456789-", min_size=1, max_size=36)
coverages = st.integers(0, 5000)


def unit_in(low: int, high: int) -> str:
    seed = split_seed("r7", "nonce")
    return next(f"i{n}" for n in range(100_000) if low <= cohort(seed, f"i{n}") < high)


TREATED, CONTROLLED, OUTSIDE = unit_in(0, 1000), unit_in(5000, 6000), unit_in(3000, 4000)


def ask(channel: ChannelState, unit: str, **more):
    return assign(channel, Installation(unit, **more))


def test_the_arms_and_everyone_else():
    answers = [ask(CHANNEL, unit) for unit in (TREATED, CONTROLLED, OUTSIDE)]
    assert [answer.release for answer in answers] == ["v9", "v8", "v8"]
    assert [answer.enrolment for answer in answers] == ["r7:treatment", "r7:control", ""]
    assert [tuple(step.rule for step in answer.steps) for answer in answers] == [RULES] * 3
    assert "is outside [0, 1000) and [5000, 6000)" in answers[2].reason


def test_a_first_release_is_compared_with_the_embedded_model():
    first = replace(CHANNEL, incumbent=None)
    assert ask(first, TREATED).release == "v9"
    assert ask(first, CONTROLLED).arm == "control"
    assert ask(first, CONTROLLED).release is None


def test_the_earlier_rule_decides():
    golden = replace(CHANNEL, golden="v3", holdout_bp=10_000)
    needy = replace(golden, rollout=replace(ROLLOUT, requirements=Requirements({"sdk": "2"})))
    overridden = replace(needy, overrides={TREATED: "v5"})
    killed = replace(overridden, is_killed=True)
    expected = [(killed, "v8", "kill"), (overridden, "v5", "override")]
    expected += [
        (needy, "v8", "compatibility"),
        (golden, "v3", "holdout"),
        (CHANNEL, "v9", "split"),
    ]
    for channel, release, rule in expected:
        answer = ask(channel, TREATED)
        assert (answer.release, answer.steps[-1].rule) == (release, rule)
        assert [step.outcome for step in answer.steps[:-1]] == ["passed"] * (len(answer.steps) - 1)
        assert (answer.arm is None) == (rule != "split")


def test_overrides_and_the_holdout_hold_between_rollouts():
    idle = replace(CHANNEL, rollout=None, golden="v3", holdout_bp=10_000)
    assert ask(idle, OUTSIDE).release == "v3"
    assert ask(replace(idle, overrides={OUTSIDE: "v5"}), OUTSIDE).release == "v5"
    assert ask(replace(idle, golden=None), OUTSIDE).reason == "no rollout is running"


def test_nobody_gets_what_was_revoked():
    channel = replace(
        CHANNEL, overrides={TREATED: "v5"}, golden="v3", holdout_bp=10_000,
        revoked=frozenset({"v3", "v5", "v9"}),
    )  # fmt: skip
    answer = ask(channel, TREATED, enrolled="r7:treatment")
    assert answer.release == "v8"
    assert [step.reason for step in answer.steps if "revoked" in step.reason] == [
        "its override v5 was revoked",
        "the golden version v3 was revoked",
        "the candidate v9 was revoked",
    ]


@pytest.mark.parametrize(
    ("needed", "stated", "fact"),
    [
        ({"versions": {"app_version": "2.0"}}, {}, "app_version is not stated"),
        (
            {"versions": {"app_version": "2.0"}},
            {"attributes": {"app_version": "1.9"}},
            "this is 1.9",
        ),
        ({"versions": {"app_version": "2.0"}}, {"attributes": {"app_version": "2.1"}}, ""),
        ({"operators": frozenset({"GELU"})}, {}, "states none"),
        ({"operators": frozenset({"GELU"})}, {"operators": frozenset({"RELU"})}, "GELU"),
        ({"operators": frozenset({"GELU"})}, {"operators": frozenset({"GELU"})}, ""),
        ({"labels": "abc"}, {"labels": "abd"}, "list of labels"),
        ({"labels": "abc"}, {}, ""),
    ],
)
def test_a_candidate_that_does_not_fit_leaves_the_incumbent(needed, stated, fact):
    channel = replace(CHANNEL, rollout=replace(ROLLOUT, requirements=Requirements(**needed)))
    answer = ask(channel, TREATED, **stated)
    assert answer.release == ("v8" if fact else "v9")
    assert fact in answer.reason
    assert not (fact and answer.enrolment)


def test_an_echo_keeps_its_arm_when_targeting_no_longer_matches_or_the_rollout_pauses():
    for rollout in (
        replace(ROLLOUT, targeting=(Rule("platform", "is", ("ios",)),)),
        replace(ROLLOUT, is_paused=True),
    ):
        channel = replace(CHANNEL, rollout=rollout)
        assert ask(channel, TREATED).arm is None
        assert ask(channel, TREATED, enrolled="r7:treatment").release == "v9"
        assert ask(channel, CONTROLLED, enrolled="r7:control").arm == "control"


@pytest.mark.parametrize("echo", ["r6:treatment", "r7:control", "r7:", "treatment", ":", "r7:🚢"])
def test_an_echo_chooses_nothing(echo):
    assert ask(CHANNEL, TREATED, enrolled=echo).arm == "treatment"
    assert ask(CHANNEL, OUTSIDE, enrolled=echo).arm is None
    assert ask(CHANNEL, OUTSIDE, enrolled="r7:treatment").release == "v8"


def test_a_missing_id_is_refused_even_where_nothing_runs():
    with pytest.raises(InvalidInput) as raised:
        ask(ChannelState("recyclables", "v8", is_killed=True), "")
    assert raised.value.code == "missing_unit"


def test_coverage_beyond_half_would_make_the_arms_overlap():
    with pytest.raises(ValueError, match="0 to 5000"):
        replace(ROLLOUT, coverage_bp=5001)


@given(units, st.lists(coverages, min_size=2, max_size=6).map(sorted))
def test_growing_coverage_moves_nobody(unit, ramp):
    seen = [
        ask(replace(CHANNEL, rollout=replace(ROLLOUT, coverage_bp=bp)), unit).arm for bp in ramp
    ]
    joined = [arm for arm in seen if arm]
    assert len(set(joined)) <= 1
    assert seen == [None] * (len(seen) - len(joined)) + joined


@given(units, coverages, st.sampled_from(["", "r7:treatment", "r7:control", "r1:control"]))
def test_the_arm_is_what_the_cohort_says_whatever_is_echoed(unit, coverage, echo):
    channel = replace(CHANNEL, rollout=replace(ROLLOUT, coverage_bp=coverage))
    place = cohort(split_seed("r7", "nonce"), unit)
    is_treated, is_control = place < coverage, 5000 <= place < 5000 + coverage
    assert not (is_treated and is_control)
    answer = ask(channel, unit, enrolled=echo)
    assert answer.arm == ("treatment" if is_treated else "control" if is_control else None)
    assert ask(channel, unit, enrolled=answer.enrolment).arm == answer.arm
    assert answer.release == ("v9" if is_treated else "v8")


@given(
    units,
    st.builds(
        ChannelState,
        model=st.just("m"),
        incumbent=st.sampled_from([None, "v8"]),
        rollout=st.none() | st.builds(
            RolloutFacts, st.just("r7"), st.just("n"), st.just("v9"), coverages, st.booleans()
        ),
        is_killed=st.booleans(),
        overrides=st.dictionaries(units, st.sampled_from(["v1", "v9"])),
        golden=st.sampled_from([None, "v3"]),
        revoked=st.frozensets(st.sampled_from(["v1", "v3", "v9"])),
    ),
    st.text(max_size=12),
)  # fmt: skip
def test_every_answer_names_its_steps_and_serves_nothing_revoked(unit, channel, echo):
    answer = ask(channel, unit, enrolled=echo)
    rules = tuple(step.rule for step in answer.steps)
    assert rules == RULES[: len(rules)]
    assert [step.outcome for step in answer.steps].count("decided") == 1
    assert all(step.reason for step in answer.steps)
    assert answer.release not in channel.revoked
    assert answer == ask(channel, unit, enrolled=echo)

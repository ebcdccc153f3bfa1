from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.guardrails import StageEvents
from server.domain.rollout_policy import EVENT_GUARDRAILS, RolloutPolicy
from server.domain.rollout_verdict import Evidence, judge_ratchet, judge_rollout
from server.domain.sequences import ArmFeedback
from server.domain.stages import TRANSITIONS, Progress, StageFacts

POLICY = RolloutPolicy()
START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=7)
GOOD = ArmFeedback.collect([(1, 1)] * 9000 + [(0, 1)] * 1000)
BAD = ArmFeedback.collect([(1, 1)] * 8500 + [(0, 1)] * 1500)
LITTLE = ArmFeedback.collect([(1, 1)] * 90 + [(0, 1)] * 12)
LAST = len(POLICY.stages_bp) - 1
CLEAN = Evidence(
    progress=Progress("running", LAST, START, NOW - timedelta(days=2)),
    now=NOW,
    data_until=NOW,
    stage_facts=StageFacts(500, 500),
    assigned_treatment=5000,
    assigned_control=5010,
    treatment=GOOD,
    control=GOOD,
)
CRASHES = {"crash": (StageEvents(20, 0, 100, 100),)}
LATE = {"now": START + timedelta(days=14), "data_until": START + timedelta(days=14)}


def at_stage(number: int) -> Evidence:
    return replace(CLEAN, progress=replace(CLEAN.progress, stage=number))


# Each takes what the ones before it add: whatever comes earlier in the order wins.
ORDER = [
    ("promote", "promote", {}),
    ("wait", "wait", {"stage_facts": StageFacts(3, 3)}),
    ("hold", "hold", {"assigned_control": 6000}),
    ("floor", "roll_back", {"load_tried": 40, "load_failures": 30}),
    ("guardrail", "roll_back", {"guardrails": CRASHES}),
    ("kill", "kill", {"is_killed": True, "kill_reason": "it is wrong about glass"}),
]


@pytest.mark.parametrize("count", range(len(ORDER)))
def test_the_order_is_kill_guardrail_floor_hold_wait_promote(count):
    changes = {name: value for _, _, more in ORDER[: count + 1] for name, value in more.items()}
    rule, action, _ = ORDER[count]
    verdict = judge_rollout(replace(CLEAN, **changes), POLICY)
    assert (verdict.rule, verdict.action) == (rule, action)
    assert [check.rule for check in verdict.checks] == [r for r, _, _ in ORDER[::-1]][
        : len(ORDER) - count
    ]
    assert verdict.checks[-1].sentence == verdict.sentence


def test_a_clean_stage_grows_by_one_and_the_last_is_promoted():
    assert [judge_rollout(at_stage(n), POLICY).verb for n in range(LAST + 1)] == [
        *["advance"] * LAST,
        "promote",
    ]
    assert "grows to 5 %" in judge_rollout(at_stage(0), POLICY).sentence


def test_a_proven_loss_of_success_is_rolled_back_at_any_stage():
    verdict = judge_rollout(replace(at_stage(1), treatment=BAD), POLICY)
    assert (verdict.action, verdict.rule) == ("roll_back", "guardrail")
    assert "surely worse" in verdict.sentence


def test_inconclusive_waits_and_keeps_the_incumbent_at_the_deadline():
    unsure = replace(CLEAN, treatment=LITTLE, control=LITTLE)
    assert judge_rollout(unsure, POLICY).action == "wait"
    late = judge_rollout(replace(unsure, **LATE), POLICY)
    assert late.action == "expire"
    assert "the incumbent stays" in late.sentence
    silent = replace(CLEAN, treatment=ArmFeedback(), control=ArmFeedback(), **LATE)
    assert "too little feedback" in judge_rollout(silent, POLICY).sentence
    assert judge_rollout(silent, RolloutPolicy(needs_feedback=False)).action == "promote"


@pytest.mark.parametrize("stage", range(LAST + 1))
def test_the_deadline_promotes_from_the_last_stage_only(stage):
    late = judge_rollout(replace(at_stage(stage), **LATE), POLICY)
    assert late.action == ("promote" if stage == LAST else "expire")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"assigned_treatment": 5000, "assigned_control": 5500}, "unequal"),
        ({"in_both_arms": 200}, "in both arms"),
        ({"data_until": NOW - timedelta(hours=25)}, "no new data since 25.0 hours"),
        ({"data_until": None}, "no new data since 168.0 hours"),
    ],
)
def test_doubtful_data_hold_the_rollout(change, fact):
    verdict = judge_rollout(replace(CLEAN, **change), POLICY)
    assert verdict.action == "hold"
    assert verdict.verb is None
    assert fact in verdict.sentence
    late = {**LATE, **change}
    assert judge_rollout(replace(CLEAN, **late), POLICY).action == "expire"


def test_a_few_restored_backups_hold_nothing():
    assert judge_rollout(replace(CLEAN, in_both_arms=4), POLICY).action == "promote"
    assert judge_rollout(replace(CLEAN, in_both_arms=100), POLICY).action == "promote"


def test_a_paused_rollout_grows_no_more_and_is_still_guarded():
    paused = replace(CLEAN, progress=replace(CLEAN.progress, state="paused"))
    assert judge_rollout(paused, POLICY).action == "wait"
    assert judge_rollout(replace(paused, guardrails=CRASHES), POLICY).action == "roll_back"


def test_the_ratchet_stops_promotion_below_the_golden_version():
    fallen = replace(CLEAN, treatment=BAD, control=BAD, golden=GOOD)
    verdict = judge_rollout(fallen, POLICY)
    assert (verdict.action, verdict.rule) == ("wait", "promote")
    assert "-5.00 points from the golden version's" in verdict.sentence
    assert judge_ratchet(GOOD, BAD, POLICY).stops_promotion is False
    assert judge_ratchet(GOOD, ArmFeedback(), POLICY).comparison is None


def test_unknown_guardrails_and_closed_rollouts_are_errors():
    with pytest.raises(ValueError, match="no such guardrails: heat"):
        replace(CLEAN, guardrails={"heat": ()})
    with pytest.raises(ValueError, match="nothing to decide"):
        judge_rollout(replace(CLEAN, progress=Progress("expired", 1, START, START)), POLICY)


small = st.integers(0, 300)
events = st.tuples(small, small, small, small).map(
    lambda c: StageEvents(c[0], c[1], c[0] + c[2], c[1] + c[3])
)
answers = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40).map(
    lambda pairs: ArmFeedback.collect((s, s + f) for s, f in pairs)
)
evidences = st.builds(
    Evidence,
    progress=st.builds(
        Progress,
        st.sampled_from(["running", "paused"]),
        st.integers(0, LAST),
        st.just(START),
        st.just(START + timedelta(days=1)),
    ),
    now=st.datetimes(datetime(2026, 1, 2), datetime(2026, 2, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    data_until=st.none() | st.just(NOW),
    is_killed=st.booleans(),
    guardrails=st.dictionaries(
        st.sampled_from(EVENT_GUARDRAILS), st.lists(events, max_size=3).map(tuple)
    ),
    load_tried=small,
    load_failures=small,
    stage_facts=st.builds(StageFacts, small, small),
    assigned_treatment=small,
    assigned_control=small,
    in_both_arms=st.integers(0, 10),
    treatment=answers,
    control=answers,
    golden=answers,
)


@given(evidences)
def test_a_stored_decision_can_be_taken_again(evidence):
    verdict = judge_rollout(evidence, POLICY)
    stored = json.loads(json.dumps(evidence.dump(), allow_nan=False))
    policy = RolloutPolicy.read(json.loads(json.dumps(POLICY.dump())))
    assert Evidence.load(stored) == evidence
    assert judge_rollout(Evidence.load(stored), policy) == verdict
    json.dumps(verdict.dump(), allow_nan=False)


@given(evidences)
def test_the_state_machine_takes_every_verdict(evidence):
    verdict = judge_rollout(evidence, POLICY)
    assert verdict.sentence
    assert verdict.verb is None or verdict.verb in TRANSITIONS[evidence.progress.state]
    assert not (verdict.verb == "advance" and evidence.progress.stage == LAST)
    assert not (verdict.verb == "promote" and evidence.progress.stage < LAST)

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.domain.errors import Conflict, InvalidInput
from server.domain.rollout_policy import RolloutPolicy
from server.domain.stages import (
    FINAL_STATES,
    TRANSITIONS,
    Progress,
    StageFacts,
    apply,
    coverage_bp,
    deadline_at,
    judge_stage,
)

POLICY = RolloutPolicy()
START = datetime(2026, 1, 1, tzinfo=UTC)
VERBS = sorted({verb for verbs in TRANSITIONS.values() for verb in verbs})


class Rollout(RuleBasedStateMachine):
    """Any verbs at any times, outages of weeks among them."""

    @initialize()
    def draft(self):
        self.progress, self.now, self.ramp = Progress(), START, [0]

    @rule(
        verb=st.sampled_from([*VERBS, *["advance"] * 5, *["start"] * 3]), hours=st.floats(0, 2000)
    )
    def act(self, verb, hours):
        self.now += timedelta(hours=hours)
        before = self.progress
        allowed = verb in TRANSITIONS[before.state]
        is_last = before.stage == len(POLICY.stages_bp) - 1
        if not allowed or (verb == "advance" and is_last):
            with pytest.raises(Conflict) as refused:
                apply(before, verb, POLICY, now=self.now)
            finished = "rollout_finished" if before.state in FINAL_STATES else "verb_not_allowed"
            assert refused.value.code == ("last_stage" if allowed else finished)
            return
        self.progress = apply(before, verb, POLICY, now=self.now)
        assert self.progress.state == TRANSITIONS[before.state][verb]
        assert self.progress.stage - before.stage == (verb == "advance")
        if verb in {"start", "advance", "resume"}:
            assert self.progress.stage_started_at == self.now
        self.ramp.append(coverage_bp(self.progress, POLICY))

    @invariant()
    def coverage_grows_by_one_stage_until_the_end(self):
        ramp = (0, *POLICY.stages_bp)
        for before, after in zip(self.ramp, self.ramp[1:], strict=False):
            assert after in {0, before, ramp[min(ramp.index(before) + 1, len(ramp) - 1)]}
        if self.progress.state in FINAL_STATES:
            assert coverage_bp(self.progress, POLICY) == 0


TestRollout = Rollout.TestCase


def test_a_stage_waits_for_hours_and_for_both_arms():
    progress = apply(Progress(), "start", POLICY, now=START)
    early = judge_stage(progress, StageFacts(19, 20), POLICY, now=START + timedelta(hours=23))
    assert early.missing == (
        "23.0 of 24 hours in this stage",
        "19 of 20 installations with a first inference in treatment",
    )
    assert judge_stage(
        progress, StageFacts(20, 20), POLICY, now=START + timedelta(hours=24)
    ).is_complete


def test_after_an_outage_the_next_stage_has_its_own_hours():
    progress = apply(Progress(), "start", POLICY, now=START)
    later = START + timedelta(days=9)
    progress = apply(progress, "advance", POLICY, now=later)
    assert coverage_bp(progress, POLICY) == 500
    assert not judge_stage(progress, StageFacts(900, 900), POLICY, now=later).is_complete


def test_the_deadline_counts_from_the_start_and_pauses_do_not_move_it():
    progress = apply(Progress(), "start", POLICY, now=START)
    paused = apply(progress, "pause", POLICY, now=START + timedelta(days=2))
    resumed = apply(paused, "resume", POLICY, now=START + timedelta(days=5))
    assert deadline_at(resumed, POLICY) == START + timedelta(days=14)
    assert deadline_at(Progress(), POLICY) is None


def test_a_policy_is_read_back_as_it_was_dumped():
    policy = RolloutPolicy.read({"stages_bp": [500, 5000], "min_hours": 2, "needs_feedback": False})
    assert policy.stages_bp == (500, 5000)
    assert RolloutPolicy.read(policy.dump()) == policy
    assert POLICY.guardrail_alpha == pytest.approx(0.05 / 6)


def test_a_refusal_names_the_verbs_that_people_have():
    with pytest.raises(Conflict) as raised:
        apply(Progress("running"), "start", POLICY, now=START)
    assert raised.value.detail.endswith("it takes pause, advance, roll back, kill.")


@pytest.mark.parametrize(
    "values",
    [
        {"colour": 1},
        {"stages_bp": [500, 100]},
        {"stages_bp": [0, 100]},
        {"stages_bp": [100, 5001]},
        {"stages_bp": []},
        {"stages_bp": [1.5]},
        {"stages_bp": 100},
        {"min_hours": -1},
        {"min_hours": True},
        {"min_hours": float("nan")},
        {"min_hours": 10**400},
        {"min_installations": 0},
        {"min_installations": "20"},
        {"alpha": 0.5},
        {"alpha": 0},
        {"margin": 0},
        {"needs_feedback": 1},
        {"deadline_days": float("inf")},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values):
    with pytest.raises(InvalidInput) as raised:
        RolloutPolicy.read(values)
    assert raised.value.code == "invalid_policy"
    assert next(iter(values)).split("_")[0] in raised.value.detail

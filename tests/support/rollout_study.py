"""Whole rollouts, simulated: a fleet that polls, fails and answers, judged by the real rules.

Only the devices are made up. Every look goes through ``judge_rollout`` and every change through
the state machine; chance comes from the generator that is handed in.

An installation may err once, on the look at which it is newly assigned (``on_update``), or at any
look (``daily``). Both arms are counted as assigned. Of the new installations a share sends
feedback, in unequal numbers and of unequal quality, a look later.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np

from server.domain.guardrails import StageEvents
from server.domain.rollout_policy import EVENT_GUARDRAILS, RolloutPolicy
from server.domain.rollout_verdict import Evidence, judge_rollout
from server.domain.sequences import ArmFeedback
from server.domain.stages import Progress, StageFacts, apply

START = datetime(2026, 1, 1, tzinfo=UTC)
CALM = {"load_failure": 0.005, "crash": 0.0, "inference_error": 0.01, "latency": 0.02}
CALM_DAILY = {"crash": 0.001, "silence": 0.005}
ARMS = ("treatment", "control")
LOADS = 0.97  # of those assigned, who have a first inference


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The devices and how the two arms behave; rates are shares of installations."""

    installations: int
    growth_per_day: float = 0.02
    polls_per_day: float = 0.8
    feedback_share: float = 0.5
    success: tuple[float, float] = (0.9, 0.9)
    on_update: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {name: (rate, rate) for name, rate in CALM.items()}
    )
    daily: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {name: (rate, rate) for name, rate in CALM_DAILY.items()}
    )

    def with_rate(self, name: str, treatment: float, control: float) -> Fleet:
        return replace(self, on_update={**self.on_update, name: (treatment, control)})


@dataclass(frozen=True)
class Ending:
    """How one rollout ended, after how many days and with how many exposed installations."""

    action: str
    rule: str
    day: float
    exposed: int
    held: bool
    sentence: str


def run(
    fleet: Fleet,
    policy: RolloutPolicy,
    random: np.random.Generator,
    *,
    days: int = 30,
    looks_per_day: int = 1,
    goes_on: bool = False,
) -> Ending:
    """Run one rollout. With ``goes_on`` a promotion is put off, to be judged for all the days."""
    simulated = _Simulated(fleet, policy, random, looks_per_day)
    held = False
    for look in range(1, days * looks_per_day + 1):
        now = START + timedelta(days=look / looks_per_day)
        simulated.live()
        verdict = judge_rollout(simulated.evidence(now), policy)
        held = held or verdict.action == "hold"
        is_over = verdict.action in {"roll_back", "expire", "promote"}
        if is_over and not (goes_on and verdict.action == "promote"):
            day = look / looks_per_day
            exposed = simulated.assigned[0]
            return Ending(verdict.action, verdict.rule, day, exposed, held, verdict.sentence)
        if verdict.action == "advance":
            simulated.advance(now)
    return Ending("none", "", days, simulated.assigned[0], held, "")


class _Simulated:
    def __init__(self, fleet, policy, random, looks_per_day):
        self.fleet, self.policy, self.random = fleet, policy, random
        self.looks_per_day = looks_per_day
        self.poll_chance = 1 - (1 - fleet.polls_per_day) ** (1 / looks_per_day)
        self.progress = apply(Progress(), "start", policy, now=START)
        self.size = float(fleet.installations)
        self.assigned = [0, 0]
        self.new_in_stage = [0, 0]
        # Per guardrail and arm: who had no event yet, and the stages' counts.
        self.clean = {name: [0, 0] for name in EVENT_GUARDRAILS}
        self.stages = {name: [[0, 0, 0, 0]] for name in EVENT_GUARDRAILS}
        self.feedback = [np.zeros(8, int), np.zeros(8, int)]
        self.waiting = [0, 0]
        self.load_tried = self.load_failures = 0
        # Cohorts are a hash: the arms' sizes differ by chance, once and for the whole rollout.
        self.skew = 1 + random.normal(0, 1, 2) / np.sqrt(fleet.installations / 2)

    def live(self):
        self.size *= 1 + self.fleet.growth_per_day / self.looks_per_day
        coverage = self.policy.stages_bp[self.progress.stage] / 10_000
        for arm in range(2):
            due = max(0, round(self.size * coverage * self.skew[arm]) - self.assigned[arm])
            self._assign(arm, int(self.random.binomial(due, self.poll_chance)))

    def _assign(self, arm, new):
        self.assigned[arm] += new
        self.new_in_stage[arm] += new
        for name in EVENT_GUARDRAILS:
            fresh = 0
            if name in self.fleet.on_update:
                fresh = int(self.random.binomial(new, self.fleet.on_update[name][arm]))
            if name == "load_failure" and arm == 0:
                self.load_tried += new
                self.load_failures += fresh
            self.clean[name][arm] += new
            later = 0
            if name in self.fleet.daily:
                chance = self.fleet.daily[name][arm] / self.looks_per_day
                later = int(self.random.binomial(self.clean[name][arm] - fresh, chance))
            counts = self.stages[name][-1]
            counts[2 + arm] += new
            counts[arm] += fresh + later
            self.clean[name][arm] -= fresh + later
        self.feedback[arm] += self._answers(self.waiting[arm], self.fleet.success[arm])
        self.waiting[arm] = int(self.random.binomial(new, self.fleet.feedback_share))

    def _answers(self, count, share):
        answers = 1 + self.random.poisson(2, count)
        served = self.random.beta(share * 10, (1 - share) * 10, count)
        right = self.random.binomial(answers, served)
        columns = (
            np.ones(count, int), answers, right, answers**2, right**2, right * answers,
            right > 0, right < answers,
        )  # fmt: skip
        return np.array([int(column.sum()) for column in columns])

    def advance(self, now):
        self.progress = apply(self.progress, "advance", self.policy, now=now)
        self.new_in_stage = [0, 0]
        for name, counts in self.stages.items():
            counts.append([0, 0, *self.clean[name]])

    def evidence(self, now):
        return Evidence(
            progress=self.progress,
            now=now,
            data_until=now,
            guardrails={
                name: tuple(StageEvents(*counts) for counts in stages)
                for name, stages in self.stages.items()
            },
            load_tried=self.load_tried,
            load_failures=self.load_failures,
            stage_facts=StageFacts(*(int(new * LOADS) for new in self.new_in_stage)),
            assigned_treatment=self.assigned[0],
            assigned_control=self.assigned[1],
            treatment=ArmFeedback(*map(int, self.feedback[0])),
            control=ArmFeedback(*map(int, self.feedback[1])),
        )

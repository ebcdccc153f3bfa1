"""What to do with a rollout now: one pure function over evidence that is stored with its answer.

Order: kill, guardrail, hard floor, hold, wait, promote. What harms is looked at first and at any
time; what allows comes last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from server.domain.guardrails import (
    FloorVerdict,
    GuardrailVerdict,
    StageEvents,
    judge_floor,
    judge_guardrail,
)
from server.domain.rollout_policy import EVENT_GUARDRAILS, RolloutPolicy
from server.domain.sample_ratio import SampleRatio, judge_sample_ratio
from server.domain.sequences import ArmFeedback, Comparison, compare
from server.domain.stages import (
    OPEN_STATES,
    Progress,
    StageFacts,
    StageVerdict,
    Verb,
    deadline_at,
    is_last_stage,
    judge_stage,
)

Action = Literal["kill", "roll_back", "hold", "wait", "advance", "promote", "expire"]

# A handful of installations restored from a backup is no fault of the counting.
_FEWEST_IN_BOTH_ARMS = 5


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything a verdict is made from, apart from the policy.

    Installations are distinct. ``assigned_*`` count the whole rollout without overrides;
    ``stage_facts`` the present stage; ``load_*`` the candidate only. ``data_until`` is the time of
    the newest event that the counts contain. ``golden`` is the feedback of the golden holdout.
    """

    progress: Progress
    now: datetime
    data_until: datetime | None = None
    is_killed: bool = False
    kill_reason: str = ""
    guardrails: Mapping[str, tuple[StageEvents, ...]] = field(default_factory=dict)
    load_tried: int = 0
    load_failures: int = 0
    stage_facts: StageFacts = field(default_factory=StageFacts)
    assigned_treatment: int = 0
    assigned_control: int = 0
    in_both_arms: int = 0
    treatment: ArmFeedback = field(default_factory=ArmFeedback)
    control: ArmFeedback = field(default_factory=ArmFeedback)
    golden: ArmFeedback = field(default_factory=ArmFeedback)

    def __post_init__(self) -> None:
        unknown = set(self.guardrails) - set(EVENT_GUARDRAILS)
        if unknown:
            message = f"no such guardrails: {', '.join(sorted(unknown))}"
            raise ValueError(message)

    def dump(self) -> dict[str, Any]:
        """Return the evidence as JSON values, which ``load`` takes back."""
        values = asdict(self)
        values["guardrails"] = {
            name: [asdict(stage) for stage in stages] for name, stages in self.guardrails.items()
        }
        progress = values["progress"]
        for members, name in (
            (values, "now"),
            (values, "data_until"),
            (progress, "started_at"),
            (progress, "stage_started_at"),
        ):
            members[name] = members[name].isoformat() if members[name] else None
        return values

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Evidence:
        """Read what ``dump`` wrote: a stored decision can be taken again."""
        progress = values["progress"]
        return cls(
            **{
                **values,
                "progress": Progress(
                    progress["state"],
                    progress["stage"],
                    _time(progress["started_at"]),
                    _time(progress["stage_started_at"]),
                ),
                "now": datetime.fromisoformat(values["now"]),
                "data_until": _time(values["data_until"]),
                "guardrails": {
                    name: tuple(StageEvents(**stage) for stage in stages)
                    for name, stages in values["guardrails"].items()
                },
                "stage_facts": StageFacts(**values["stage_facts"]),
                **{arm: ArmFeedback(**values[arm]) for arm in ("treatment", "control", "golden")},
            }
        )


@dataclass(frozen=True)
class Check:
    """One rule of the order: whether it decided, and the sentence that says why."""

    rule: str
    is_deciding: bool
    sentence: str


@dataclass(frozen=True)
class RatchetVerdict:
    """The incumbent beside the golden version: many small losses add up, and this sees them."""

    stops_promotion: bool
    comparison: Comparison | None
    sentence: str


@dataclass(frozen=True)
class RolloutVerdict:
    """The answer: what to do, the rule that said so, and everything that was looked at."""

    action: Action
    rule: str
    sentence: str
    checks: tuple[Check, ...]
    guardrails: tuple[GuardrailVerdict, ...]
    success_harm: Comparison | None
    success: Comparison | None
    floor: FloorVerdict
    sample_ratio: SampleRatio
    stage: StageVerdict
    ratchet: RatchetVerdict

    @property
    def verb(self) -> Verb | None:
        """The verb that carries the action out; a rollout that holds or waits stays as it is."""
        if self.action == "hold" or self.action == "wait":  # noqa: PLR1714 - narrows the type
            return None
        return self.action

    def dump(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        return asdict(self)


def judge_rollout(evidence: Evidence, policy: RolloutPolicy) -> RolloutVerdict:
    """Say what to do with an open rollout at ``evidence.now``.

    Raises:
        ValueError: the rollout is neither running nor paused.

    """
    if evidence.progress.state not in OPEN_STATES:
        message = f"a {evidence.progress.state} rollout has nothing to decide"
        raise ValueError(message)
    return _Judgement(evidence, policy).conclude()


def judge_ratchet(
    incumbent: ArmFeedback, golden: ArmFeedback, policy: RolloutPolicy
) -> RatchetVerdict:
    """Say whether the incumbent has fallen below the golden version by more than the margin."""
    comparison = compare(incumbent, golden, alpha=policy.alpha, tuned_for=policy.tuned_for)
    if comparison is None:
        return RatchetVerdict(
            stops_promotion=False,
            comparison=None,
            sentence="There is too little feedback to compare the incumbent with a golden version.",
        )
    stops = comparison.upper < -policy.margin
    seen = f"The incumbent's success is {_points(comparison.difference)} from the golden version's"
    sentence = seen + (
        f", surely more than {_points(-policy.margin)}: promotion stops until a person"
        " releases a better version or chooses another golden one."
        if stops
        else f" (at most {_points(comparison.upper)})."
    )
    return RatchetVerdict(stops, comparison, sentence)


class _Judgement:
    """The parts of one verdict, each computed once."""

    def __init__(self, evidence: Evidence, policy: RolloutPolicy) -> None:
        self.evidence = evidence
        self.policy = policy
        alpha = policy.guardrail_alpha
        self.guardrails = tuple(
            judge_guardrail(name, evidence.guardrails.get(name, ()), alpha=alpha)
            for name in EVENT_GUARDRAILS
        )
        self.harm = self._compare(alpha)
        self.success = self._compare(policy.alpha)
        self.floor = judge_floor(tried=evidence.load_tried, load_failures=evidence.load_failures)
        self.sample_ratio = judge_sample_ratio(
            evidence.assigned_treatment, evidence.assigned_control
        )
        self.stage = judge_stage(evidence.progress, evidence.stage_facts, policy, now=evidence.now)
        self.ratchet = judge_ratchet(evidence.control, evidence.golden, policy)

    def conclude(self) -> RolloutVerdict:
        rules: tuple[tuple[str, Action, tuple[bool, str]], ...] = (
            ("kill", "kill", self._kill()),
            ("guardrail", "roll_back", self._guardrail()),
            ("floor", "roll_back", (self.floor.is_breached, self.floor.sentence)),
            ("hold", self._unless_overdue("hold"), self._hold()),
            ("wait", self._unless_overdue("wait"), self._wait()),
            ("promote", self._grown(), self._promote()),
        )
        # What no rule decided was not shown to be good enough yet.
        action = self._unless_overdue("wait")
        checks: list[Check] = []
        for rule, decided, (is_deciding, sentence) in rules:
            checks.append(Check(rule, is_deciding, sentence))
            if is_deciding:
                action = decided
                break
        return self._verdict(action, tuple(checks))

    def _verdict(self, action: Action, checks: tuple[Check, ...]) -> RolloutVerdict:
        sentence = checks[-1].sentence
        if action == "expire":
            sentence = f"The deadline has come, and the incumbent stays. {sentence}"
        return RolloutVerdict(
            action,
            checks[-1].rule,
            sentence,
            checks,
            self.guardrails,
            self.harm,
            self.success,
            self.floor,
            self.sample_ratio,
            self.stage,
            self.ratchet,
        )

    def _compare(self, alpha: float) -> Comparison | None:
        return compare(
            self.evidence.treatment,
            self.evidence.control,
            alpha=alpha,
            tuned_for=self.policy.tuned_for,
        )

    def _unless_overdue(self, action: Action) -> Action:
        deadline = deadline_at(self.evidence.progress, self.policy)
        return "expire" if deadline and self.evidence.now >= deadline else action

    def _grown(self) -> Action:
        is_last = is_last_stage(self.evidence.progress, self.policy)
        return "promote" if is_last else self._unless_overdue("advance")

    def _kill(self) -> tuple[bool, str]:
        if self.evidence.is_killed:
            return True, f"Killed: {self.evidence.kill_reason or 'no reason was given'}."
        return False, "Not killed."

    def _guardrail(self) -> tuple[bool, str]:
        breached = [verdict.sentence for verdict in self.guardrails if verdict.is_breached]
        if self.harm and self.harm.upper < 0:
            breached.append(
                f"success: the candidate is {_points(self.harm.difference)} from the incumbent,"
                f" surely worse (at most {_points(self.harm.upper)}); it is rolled back."
            )
        if breached:
            return True, " ".join(breached)
        return False, "No guardrail is breached."

    def _hold(self) -> tuple[bool, str]:
        reasons = []
        if self.sample_ratio.is_mismatch:
            reasons.append(self.sample_ratio.sentence)
        evidence = self.evidence
        assigned = evidence.assigned_treatment + evidence.assigned_control
        both, most = evidence.in_both_arms, self.policy.max_both_arms_share * assigned
        if both >= _FEWEST_IN_BOTH_ARMS and both > most:
            reasons.append(f"{both} of {assigned} installations were seen in both arms.")
        silence = self._hours_without_data()
        if silence > self.policy.max_data_age_hours:
            reasons.append(f"There are no new data since {silence:.1f} hours.")
        if reasons:
            return True, "Held. " + " ".join(reasons)
        return False, "Nothing speaks against the data."

    def _hours_without_data(self) -> float:
        evidence = self.evidence
        known = (evidence.data_until, evidence.progress.started_at)
        latest = max((time for time in known if time), default=evidence.now)
        return (evidence.now - latest) / timedelta(hours=1)

    def _wait(self) -> tuple[bool, str]:
        if self.evidence.progress.state == "paused":
            return True, "Paused by a person."
        if self.stage.is_complete:
            return False, "The stage has run its course."
        return True, "Waiting for " + "; ".join(self.stage.missing) + "."

    def _promote(self) -> tuple[bool, str]:
        if not is_last_stage(self.evidence.progress, self.policy):
            stage = self.evidence.progress.stage + 1
            grown = self.policy.stages_bp[stage] / 100
            return True, f"The stage is clean: coverage grows to {grown:g} %."
        if self.ratchet.stops_promotion:
            return False, self.ratchet.sentence
        return self._judge_success()

    def _judge_success(self) -> tuple[bool, str]:
        margin = _points(-self.policy.margin)
        if self.success is None:
            seen = "There is too little feedback to compare success"
        else:
            seen = (
                f"The candidate's success is {_points(self.success.difference)} from the"
                f" incumbent's (at least {_points(self.success.lower)})"
            )
            if self.success.lower > -self.policy.margin:
                return True, f"{seen}, within the margin of {margin}: it is promoted."
        if not self.policy.needs_feedback:
            return True, f"{seen}; every guardrail is clean, which is all that is asked."
        return False, f"{seen}: it is not shown that it loses less than {margin}."


def _points(share: float) -> str:
    return f"{100 * share:+.2f} points"


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None

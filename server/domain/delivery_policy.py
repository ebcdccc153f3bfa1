"""How a model's new versions reach devices: in stages or at once, after whose approval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from server.domain.cohorts import COHORTS
from server.domain.errors import InvalidInput
from server.domain.rollout_forecast import Forecast, forecast, reachable_stages
from server.domain.rollout_policy import RolloutPolicy
from server.domain.targeting import Rule, read_rules

Way = Literal["auto", "staged", "direct"]
WAYS: tuple[Way, ...] = ("auto", "staged", "direct")
Preference = Literal["stated", "fastest"]
PREFERENCES: tuple[Preference, ...] = ("stated", "fastest")

_MOST_APPROVALS = 10
_LIKELY = 0.5
# Where nobody sends feedback, a fleet has to fill some stages for guardrails to mean anything.
_FEWEST_STAGES = 3
_USUAL_SUCCESS = 0.9
_LEAST_SHARE, _MOST_SHARE = 0.01, 0.99


@dataclass(frozen=True, kw_only=True)
class DeliveryPolicy:
    """A model's delivery policy.

    ``rollout``: ``staged`` always rolls out in stages, ``direct`` never, ``auto`` where the fleet
    can decide. ``policy`` holds members of :class:`RolloutPolicy`, ``targeting`` rules that new
    rollouts take over. ``approvals`` says how many people have to approve, by channel.
    ``holdout_bp`` is the share that stays on a golden version, where one is chosen. ``prefer`` says
    which of the files that it accepts a device is given: the first of its own order (``stated``),
    or the one measured ``fastest`` on its class of devices.
    """

    rollout: Way = "auto"
    policy: Mapping[str, object] = field(default_factory=dict)
    targeting: tuple[Rule, ...] = ()
    approvals: Mapping[str, int] = field(default_factory=dict)
    holdout_bp: int = 200
    prefer: Preference = "stated"

    @classmethod
    def read(cls, values: Mapping[str, object]) -> DeliveryPolicy:
        """Return the policy that ``values`` describe; what is not understood is refused.

        Raises:
            InvalidInput: ``invalid_policy`` or ``invalid_targeting``.

        """
        known = {one.name for one in fields(cls)}
        for name in values:
            if name not in known:
                raise _refused(f"has no member {name!r}; it takes {', '.join(sorted(known))}")
        way = values.get("rollout", "auto")
        if way not in WAYS:
            raise _refused(f"takes for rollout one of {', '.join(WAYS)}, not {way!r}")
        policy, approvals = values.get("policy", {}), values.get("approvals", {})
        if not isinstance(policy, Mapping) or not isinstance(approvals, Mapping):
            raise _refused("takes objects for policy and approvals")
        RolloutPolicy.read(policy)
        for channel, count in approvals.items():
            if type(count) is not int or not 0 <= count <= _MOST_APPROVALS:
                raise _refused(f"takes 0 to {_MOST_APPROVALS} approvals for {channel!r}")
        holdout_bp = values.get("holdout_bp", cls.holdout_bp)
        if type(holdout_bp) is not int or not 0 <= holdout_bp <= COHORTS:
            raise _refused(f"takes for holdout_bp 0 to {COHORTS} basis points")
        prefer = values.get("prefer", cls.prefer)
        if prefer not in PREFERENCES:
            raise _refused(f"takes for prefer one of {', '.join(PREFERENCES)}, not {prefer!r}")
        return cls(
            rollout=way,
            policy=dict(policy),
            targeting=read_rules(values.get("targeting", [])),
            approvals=dict(approvals),
            holdout_bp=holdout_bp,
            prefer=prefer,
        )


@dataclass(frozen=True)
class FleetFacts:
    """What the field looks like: installations seen lately, and those of them with feedback."""

    installations: int = 0
    feedback_share: float = 0.0
    success_share: float | None = None


@dataclass(frozen=True)
class Plan:
    """The way a version takes to devices, with the policy it would roll out by and the reason."""

    is_staged: bool
    policy: RolloutPolicy
    forecast: Forecast
    sentence: str


def plan_stages(policy: RolloutPolicy, fleet: FleetFacts) -> RolloutPolicy:
    """Return the policy without the stages that the fleet is too small to complete.

    Of a fleet that nobody has heard of yet nothing is known, and all stages stay.
    """
    if fleet.installations == 0:
        return policy
    stages = reachable_stages(policy, fleet=fleet.installations)
    return RolloutPolicy.read({**policy.dump(), "stages_bp": list(stages)})


def foresee(policy: RolloutPolicy, fleet: FleetFacts) -> Forecast:
    """Forecast a rollout in this fleet."""
    share = fleet.success_share if fleet.success_share is not None else _USUAL_SUCCESS
    arm = fleet.installations * policy.stages_bp[-1] / COHORTS
    new = int(arm * fleet.feedback_share / policy.deadline_days)
    return forecast(
        policy,
        new_per_arm_and_day=new,
        success_share=min(max(share, _LEAST_SHARE), _MOST_SHARE),
        days=max(1, int(policy.deadline_days)),
    )


def plan_delivery(delivery: DeliveryPolicy, fleet: FleetFacts) -> Plan:
    """Choose between stages and a release to everyone, and say why."""
    asked = RolloutPolicy.read(delivery.policy)
    policy = plan_stages(asked, fleet)
    seen = foresee(policy, fleet)
    count = f"{fleet.installations} installations were seen in the last 7 days"
    if delivery.rollout == "direct":
        return Plan(is_staged=False, policy=policy, forecast=seen, sentence="The policy says so.")
    if delivery.rollout == "staged":
        sentence = f"The policy says so; {count}."
        return Plan(is_staged=True, policy=policy, forecast=seen, sentence=sentence)
    is_reached = fleet.installations * policy.stages_bp[-1] >= policy.min_installations * COHORTS
    if not is_reached:
        sentence = f"{count}, too few to compare {policy.min_installations} in each arm."
        return Plan(is_staged=False, policy=policy, forecast=seen, sentence=sentence)
    if not policy.needs_feedback:
        sentence = f"{count}, enough for the guardrails, which are all that the policy asks for."
        return Plan(is_staged=True, policy=policy, forecast=seen, sentence=sentence)
    if seen.probability >= _LIKELY:
        return Plan(
            is_staged=True, policy=policy, forecast=seen, sentence=f"{count}. {seen.sentence}"
        )
    reachable = len(reachable_stages(asked, fleet=fleet.installations))
    if reachable >= min(_FEWEST_STAGES, len(asked.stages_bp)):
        alone = RolloutPolicy.read({**policy.dump(), "needs_feedback": False})
        sentence = (
            f"{count}; too few of them send feedback to compare success, so the guardrails decide"
            " alone."
        )
        return Plan(is_staged=True, policy=alone, forecast=seen, sentence=sentence)
    sentence = f"{count}, too few to decide: {seen.sentence}"
    return Plan(is_staged=False, policy=policy, forecast=seen, sentence=sentence)


def _refused(fact: str) -> InvalidInput:
    return InvalidInput(f"The delivery policy {fact}.", code="invalid_policy")

"""What a rollout is judged by, read from what devices reported."""

from __future__ import annotations

from datetime import datetime

from server.domain.delivery_policy import FleetFacts
from server.domain.rollout_verdict import Evidence
from server.domain.sequences import ArmFeedback
from server.domain.stages import StageFacts
from server.registry.models import Model
from server.rollouts.models import Release, Rollout
from server.telemetry import queries as telemetry

SEEN_WITHIN_DAYS = 7


def gather(rollout: Rollout, *, now: datetime) -> Evidence:
    """Return everything that is known of an open rollout; a fixed number of queries."""
    entered = [datetime.fromisoformat(at) for at in rollout.stages_entered]
    facts = telemetry.arm_facts(rollout.key, entered)
    treatment, control = facts["treatment"], facts["control"]
    heard = [stage.last_event_at for stage in (*treatment, *control) if stage.last_event_at]
    return Evidence(
        progress=rollout.progress,
        now=now,
        data_until=max(heard, default=None),
        guardrails=telemetry.guardrail_events(facts),
        load_tried=sum(stage.tried for stage in treatment),
        load_failures=sum(stage.load_failures for stage in treatment),
        stage_facts=StageFacts(treatment[-1].first_inference, _control_seen(rollout, control[-1])),
        assigned_treatment=sum(stage.assigned for stage in treatment),
        assigned_control=sum(stage.assigned for stage in control),
        in_both_arms=telemetry.in_both_arms(rollout.key),
        treatment=telemetry.total_feedback(treatment),
        control=telemetry.total_feedback(control),
        golden=golden_feedback(rollout.channel.golden),
    )


def _control_seen(rollout: Rollout, stage: telemetry.StageFacts) -> int:
    """Return how many of a stage's control arm are seen to live with what they run."""
    if rollout.incumbent_id is not None:
        return stage.first_inference
    # Beside a first release, an app without a model of its own has nothing to predict with.
    return max(stage.first_inference, stage.assigned)


def golden_feedback(golden: Release | None) -> ArmFeedback:
    """Return the feedback of the golden holdout, which has a release of its own."""
    if golden is None or not golden.is_living:
        return ArmFeedback()
    channel = golden.channel
    return telemetry.release_facts(channel.model.slug, channel.name, golden.label).feedback


def fleet_facts(model: Model, channel: str) -> FleetFacts:
    """Return what the field looked like in the last days."""
    seen = telemetry.fleet(model, days=SEEN_WITHIN_DAYS)
    installations = sum(
        share.installations for share in seen.versions if share.channel in ("", channel)
    )
    newest = (
        Release.objects.filter(
            channel__model=model,
            channel__name=channel,
            audience=Release.Audience.EVERYONE,
            announced_at__isnull=False,
        )
        .order_by("-label_number")
        .first()
    )
    if newest is None:
        return FleetFacts(installations)
    facts = telemetry.release_facts(model.slug, channel, newest.label)
    if not facts.installations:
        return FleetFacts(installations)
    feedback = facts.feedback
    return FleetFacts(
        installations,
        min(1.0, feedback.installations / facts.installations),
        feedback.share if feedback.is_enough else None,
    )

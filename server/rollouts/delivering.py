"""The way of a new version to devices: in stages or at once, as the delivery policy says."""

from __future__ import annotations

from django.db import transaction

from server.registry.models import ModelVersion
from server.rollouts import actions, releasing, staging


@transaction.atomic
def deliver_version(
    *, version: ModelVersion, reason: str, channel: str = actions.PRODUCTION
) -> str:
    """Release a version that passed its gate, or let it roll out; return what was done and why.

    Raises:
        Conflict: as ``release_version``.

    """
    plan = staging.plan(model=version.model, channel=channel)
    stream = releasing.lock_channel(version.model, channel)
    if not plan.is_staged and staging.open_rollout(stream) is None:
        release = actions.release_version(version=version, channel=channel, reason=reason)
        return f"Released on {channel} as {release.label}, to everyone at once. {plan.sentence}"
    rollout = staging.queue_version(
        version=version, channel=channel, policy=plan.policy, reason=reason
    )
    if rollout.is_open:
        done = f"Rolls out on {channel} in stages ({rollout.candidate.label}, {rollout})."  # type: ignore[union-attr]
    elif missing := staging.missing_approvals(rollout):
        done = f"Waits as {rollout} for {missing} approval{'s' if missing > 1 else ''}."
    else:
        done = f"Waits as {rollout} until the one under way on {channel} has ended."
    return f"{done} {plan.sentence}"

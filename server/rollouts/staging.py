"""Rollouts: every verb, by people and by the periodic look. One change is one transaction.

What changes a rollout holds its channel, names the revision it has seen, and adds a decision with
everything it was made from: whatever is killed half-way happened wholly or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog
from django.db import IntegrityError, transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from server.domain.cohorts import check_unit
from server.domain.delivery_policy import (
    DeliveryPolicy,
    Plan,
    foresee,
    plan_delivery,
    plan_stages,
)
from server.domain.errors import Conflict, InvalidInput
from server.domain.rollout_policy import RolloutPolicy
from server.domain.rollout_verdict import RolloutVerdict, judge_rollout
from server.domain.stages import OPEN_STATES, Verb, apply
from server.domain.targeting import read_rules
from server.http import audit
from server.registry.models import Model, ModelVersion
from server.rollouts import evidence as evidence_queries
from server.rollouts import queries, releasing, webhooks
from server.rollouts.models import (
    Approval,
    Channel,
    Override,
    Release,
    Rollout,
    RolloutDecision,
    Signing,
)

if TYPE_CHECKING:
    from server.rollouts.releasing import Actor

log = structlog.get_logger(__name__)

MOST_ALLOWED = 1000
# A look that finds nothing new is written down this often all the same.
_SAME_AGAIN_S = 3600


# Drafts, and what waits


@transaction.atomic
def create_rollout(
    *,
    version: ModelVersion,
    channel: str = "production",
    policy: Mapping[str, Any] | None = None,
    targeting: Sequence[Mapping[str, Any]] | None = None,
    allow_list: Sequence[str] = (),
    reason: str = "",
    notes: str = "",
    actor: Actor = None,
) -> Rollout:
    """Draft a rollout of a published version; it reaches nobody before it is started.

    What is not given comes from the model's delivery policy.

    Raises:
        Conflict: as ``release_version``.
        InvalidInput: ``invalid_policy``, ``invalid_targeting``, ``invalid_channel``,
            ``invalid_unit`` or ``too_many_installations``.

    """
    delivery = DeliveryPolicy.read(version.model.delivery_policy)
    stream = releasing.lock_channel(version.model, channel)
    releasing.check_releasable(stream, version)
    values = {**delivery.policy, **(policy or {})}
    rules = version.model.delivery_policy.get("targeting", []) if targeting is None else targeting
    read_rules(list(rules))
    rollout = Rollout.objects.create(
        channel=stream,
        version=version,
        policy=RolloutPolicy.read(values).dump(),
        has_own_stages="stages_bp" in (policy or {}),
        targeting=list(rules),
        allow_list=_check_installations(allow_list),
        reason=reason,
        notes=notes,
        created_by_id=releasing.id_of(actor),
    )
    audit.record(
        actor=actor,
        action="rollout.create",
        subject=rollout,
        detail={"version": version.number, "reason": reason},
    )
    return rollout


@transaction.atomic
def change_rollout(
    *,
    rollout: Rollout,
    policy: Mapping[str, Any] | None = None,
    targeting: Sequence[Mapping[str, Any]] | None = None,
    allow_list: Sequence[str] | None = None,
    actor: Actor = None,
) -> Rollout:
    """Change a rollout that has not started.

    Raises:
        Conflict: ``rollout_finished``; ``coverage_lowered`` where an open one is asked to cover
            less than it does; ``rollout_frozen`` for anything else about one that has started.
        InvalidInput: as ``create_rollout``.

    """
    rollout = _lock(rollout)
    wanted = RolloutPolicy.read({**rollout.policy, **(policy or {})})
    if rollout.is_finished:
        message = f"The rollout is {rollout.get_state_display()}, which is final; start a new one."
        raise Conflict(message, code="rollout_finished")
    if rollout.is_open:
        _refuse_change(rollout, wanted)
    rollout.policy = wanted.dump()
    rollout.has_own_stages = rollout.has_own_stages or "stages_bp" in (policy or {})
    if targeting is not None:
        read_rules(list(targeting))
        rollout.targeting = list(targeting)
    if allow_list is not None:
        rollout.allow_list = _check_installations(allow_list)
    rollout.revision += 1
    rollout.save()
    # Who approved has approved of something else.
    rollout.approvals.all().delete()
    audit.record(
        actor=actor, action="rollout.change", subject=rollout, detail={"policy": rollout.policy}
    )
    return rollout


def _refuse_change(rollout: Rollout, wanted: RolloutPolicy) -> None:
    stages = wanted.stages_bp
    if max(stages[: rollout.stage + 1]) < rollout.coverage_bp:
        message = (
            f"The rollout covers {rollout.coverage_bp / 100:g} % per arm, and coverage only grows:"
            " nobody changes arm. Roll it back instead."
        )
        raise Conflict(message, code="coverage_lowered")
    message = (
        "The policy of a rollout is frozen when it starts, so that what is promised of its"
        " statistics holds. Roll it back and start a new one."
    )
    raise Conflict(message, code="rollout_frozen")


def _check_installations(units: Sequence[str]) -> list[str]:
    if len(units) > MOST_ALLOWED:
        message = f"A list of installations takes up to {MOST_ALLOWED}."
        raise InvalidInput(message, code="too_many_installations")
    for unit in units:
        check_unit(unit)
    return sorted(set(units))


@transaction.atomic
def queue_rollout(*, rollout: Rollout, actor: Actor = None, reason: str = "") -> Rollout:
    """Let a draft start as soon as nothing else is under way; it takes the waiting one's place.

    Raises:
        Conflict: ``verb_not_allowed`` or ``rollout_finished``.

    """
    rollout = _lock(rollout)
    for waiting in _waiting(rollout.channel):
        _move(waiting, "supersede", reason=f"{rollout} came in its place", actor=actor)
    _move(rollout, "queue", reason=reason, actor=actor)
    start_waiting(channel=rollout.channel)
    rollout.refresh_from_db()
    return rollout


@transaction.atomic
def start_waiting(*, channel: Channel, now: datetime | None = None) -> Rollout | None:
    """Start what waits, if nothing is under way and everybody has approved who has to."""
    channel = releasing.lock_channel(channel.model, channel.name)
    waiting = _waiting(channel).first()
    if waiting is None or open_rollout(channel) is not None:
        return None
    if missing_approvals(waiting):
        return None
    try:
        with transaction.atomic():
            return _start(waiting, actor=None, reason="its turn has come", now=now)
    except Conflict as conflict:
        # What it would replace has changed since, or it was recalled.
        waiting.refresh_from_db()
        _move(waiting, "supersede", reason=conflict.detail)
        return None


def _waiting(channel: Channel) -> QuerySet[Rollout]:
    return channel.rollouts.filter(state="queued").select_related("channel__model", "version")


@transaction.atomic
def approve_rollout(*, rollout: Rollout, actor: Actor) -> Approval:
    """Note that a person approves; saying it twice changes nothing.

    Raises:
        Conflict: ``own_rollout`` (somebody else has to), ``rollout_finished`` or
            ``verb_not_allowed``.

    """
    rollout = _lock(rollout)
    person = releasing.id_of(actor)
    if rollout.is_finished:
        message = "The rollout has ended; there is nothing left to approve."
        raise Conflict(message, code="rollout_finished")
    if rollout.is_open:
        message = "The rollout has started; there is nothing left to approve."
        raise Conflict(message, code="verb_not_allowed")
    if person is None or person == rollout.created_by_id:
        message = "Whoever drafted a rollout cannot approve it; somebody else has to."
        raise Conflict(message, code="own_rollout")
    approval, is_new = Approval.objects.get_or_create(rollout=rollout, by_id=person)
    if is_new:
        audit.record(actor=actor, action="rollout.approve", subject=rollout)
    start_waiting(channel=rollout.channel)
    return approval


def missing_approvals(rollout: Rollout) -> int:
    """Return how many people still have to approve before it may start."""
    channel = rollout.channel
    policy = DeliveryPolicy.read(channel.model.delivery_policy)
    return max(0, policy.approvals.get(channel.name, 0) - rollout.approvals.count())


# Verbs of people


@transaction.atomic
def start_rollout(*, rollout: Rollout, actor: Actor = None, reason: str = "") -> Rollout:
    """Give the candidate its label and let the first stage begin once it is signed.

    Raises:
        Conflict: ``rollout_open`` (another one is under way), ``approval_missing``, as
            ``release_version`` or as ``stages.apply``.

    """
    return _start(_lock(rollout), actor=actor, reason=reason)


@transaction.atomic
def pause_rollout(*, rollout: Rollout, actor: Actor = None, reason: str = "") -> Rollout:
    """Take nobody new and grow no further; who takes part stays in its arm."""
    return _act(rollout, "pause", actor=actor, reason=reason)


@transaction.atomic
def resume_rollout(*, rollout: Rollout, actor: Actor = None, reason: str = "") -> Rollout:
    """Go on; the stage's hours start anew."""
    return _act(rollout, "resume", actor=actor, reason=reason)


@transaction.atomic
def advance_rollout(*, rollout: Rollout, actor: Actor = None, reason: str = "") -> Rollout:
    """Enter the next stage now, on a person's word."""
    return _act(rollout, "advance", actor=actor, reason=reason)


@transaction.atomic
def roll_back_rollout(*, rollout: Rollout, actor: Actor = None, reason: str = "") -> Rollout:
    """Give everybody the incumbent again, under a new label."""
    return _act(rollout, "roll_back", actor=actor, reason=reason)


@transaction.atomic
def kill_rollout(*, rollout: Rollout, actor: Actor = None, reason: str = "") -> Rollout:
    """End the rollout and revoke the candidate's files; what waits for its turn ends too."""
    rollout = _lock(rollout)
    for waiting in _waiting(rollout.channel):
        if waiting.pk != rollout.pk:
            _move(waiting, "kill", actor=actor, reason=f"{rollout} was killed")
    return _move(rollout, "kill", actor=actor, reason=reason or "killed by hand")


VERBS = {
    "start": start_rollout,
    "pause": pause_rollout,
    "resume": resume_rollout,
    "advance": advance_rollout,
    "rollback": roll_back_rollout,
    "kill": kill_rollout,
    "queue": queue_rollout,
}


def open_rollout(channel: Channel) -> Rollout | None:
    """Return the rollout that is under way on the channel."""
    rollouts = channel.rollouts.filter(state__in=OPEN_STATES)
    return rollouts.select_related("channel__model", "version", "candidate").first()


def require_no_open_rollout(channel: Channel) -> None:
    """Refuse what would change the incumbent of a comparison under way.

    Raises:
        Conflict: ``rollout_open``.

    """
    rollout = open_rollout(channel)
    if rollout is not None:
        message = f"{rollout} is under way: end it first, or draft a rollout that waits its turn."
        raise Conflict(message, code="rollout_open", rollout=rollout.key)


def end_for_recall(
    channel: Channel, withdrawn: QuerySet[Release], *, actor: Actor, reason: str
) -> None:
    """End the rollout under way where its candidate or its incumbent is being recalled."""
    rollout = open_rollout(channel)
    if rollout is None:
        return
    gone = set(withdrawn.filter(channel=channel).values_list("pk", flat=True))
    if rollout.candidate_id in gone:
        _move(_lock(rollout), "kill", actor=actor, reason=reason)
    elif rollout.incumbent_id in gone:
        _move(_lock(rollout), "roll_back", actor=actor, reason=reason)


def _act(rollout: Rollout, verb: Verb, *, actor: Actor, reason: str) -> Rollout:
    return _move(_lock(rollout), verb, actor=actor, reason=reason)


def _lock(rollout: Rollout) -> Rollout:
    """Hold the model, the channel and the rollout, in this order."""
    channel = rollout.channel
    releasing.lock_channel(channel.model, channel.name)
    rows = Rollout.objects.select_for_update(of=("self",))
    return rows.select_related("channel__model", "version", "candidate", "incumbent").get(
        pk=rollout.pk
    )


# The periodic look


@dataclass(frozen=True)
class Look:
    """What was seen of a rollout, and which revision of it was looked at."""

    rollout: int
    revision: int
    evidence: dict[str, Any]
    verdict: RolloutVerdict


def judge(*, rollout: Rollout, now: datetime) -> Look:
    """Gather the evidence and judge; writes nothing."""
    seen = evidence_queries.gather(rollout, now=now)
    verdict = judge_rollout(seen, rollout.rules)
    return Look(rollout.pk, rollout.revision, seen.dump(), verdict)


def look_at(*, rollout: Rollout, now: datetime) -> RolloutDecision | None:
    """Judge an open rollout and carry the verdict out; None where there was nothing to decide.

    The evidence is gathered without holding anything, so that a person who kills never waits for
    it. If anything changed meanwhile, the look is dropped: the next one sees the change.
    """
    rollout.refresh_from_db()
    if not rollout.is_open or rollout.candidate is None:
        return None
    if rollout.candidate.announced_at is None:
        # Nobody can have got it: there is nothing to see before it is signed.
        return None
    return record_look(look=judge(rollout=rollout, now=now), now=now)


@transaction.atomic
def record_look(*, look: Look, now: datetime) -> RolloutDecision | None:
    """Store a look with all its inputs and move as it says, if nobody moved meanwhile."""
    found = Rollout.objects.select_related("channel__model").filter(pk=look.rollout).first()
    if found is None:
        return None
    rollout = _lock(found)
    if rollout.revision != look.revision:
        log.info("look_dropped", rollout=rollout.pk)
        return None
    verdict = look.verdict
    if verdict.verb is None:
        if _is_same_again(rollout, look, now):
            return None
        return _stay(rollout, look, now=now)
    _move(rollout, verdict.verb, reason=verdict.sentence, look=look, now=now)
    return rollout.decisions.get(number=rollout.revision)


def _is_same_again(rollout: Rollout, look: Look, now: datetime) -> bool:
    """Say whether the newest decision was the same, by the same evidence, and not long ago."""
    last = rollout.decisions.order_by("-number").first()
    if last is None or last.verb or last.rule != look.verdict.rule:
        return False
    without_time = [{**seen, "now": None} for seen in (last.evidence, look.evidence)]
    return without_time[0] == without_time[1] and (now - last.at).total_seconds() < _SAME_AGAIN_S


def _stay(rollout: Rollout, look: Look, *, now: datetime) -> RolloutDecision:
    _compare_and_set(rollout, {})
    return _decide(rollout, rollout, "", reason=look.verdict.sentence, look=look, now=now)


# What a change is made of


def _start(rollout: Rollout, *, actor: Actor, reason: str, now: datetime | None = None) -> Rollout:
    channel, now = rollout.channel, now or timezone.now()
    # Refused before anything is written: the state first, then what is in the way.
    apply(rollout.progress, "start", rollout.rules, now=now)
    require_no_open_rollout(channel)
    missing = missing_approvals(rollout)
    if missing:
        people = "one more person has" if missing == 1 else f"{missing} more people have"
        message = f"On {channel.name}, {people} to approve a rollout before it starts."
        raise Conflict(message, code="approval_missing", missing=missing)
    releasing.check_releasable(channel, rollout.version)
    rollout.incumbent = queries.current_release(channel)
    rollout.candidate = releasing.append(
        channel,
        rollout.version,
        kind=Release.Kind.UPDATE,
        audience=Release.Audience.ROLLOUT,
        actor=actor,
        reason=rollout.reason or f"candidate of {rollout}",
        notes=rollout.notes,
    )
    if not rollout.has_own_stages:
        facts = evidence_queries.fleet_facts(channel.model, channel.name)
        rollout.policy = plan_stages(rollout.rules, facts).dump()
    for device in rollout.allow_list:
        Override.objects.update_or_create(
            channel=channel,
            device=device,
            defaults={
                "release": rollout.candidate,
                "rollout": rollout,
                "reason": f"on the list of {rollout}",
                "created_by_id": releasing.id_of(actor),
            },
        )
    fields = {
        "incumbent": rollout.incumbent,
        "candidate": rollout.candidate,
        "policy": rollout.policy,
    }
    _move(rollout, "start", actor=actor, reason=reason, now=now, fields=fields)
    releasing.publish_release(rollout.candidate)
    return rollout


def _move(
    rollout: Rollout,
    verb: Verb,
    *,
    actor: Actor = None,
    reason: str = "",
    look: Look | None = None,
    now: datetime | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Rollout:
    """Apply a verb to a locked rollout, with everything that follows from it."""
    now = now or timezone.now()
    after = apply(rollout.progress, verb, rollout.rules, now=now)
    before = Rollout(state=rollout.state, stage=rollout.stage)
    values: dict[str, Any] = {
        **(fields or {}),
        "state": after.state,
        "stage": after.stage,
        "started_at": after.started_at,
        "stage_started_at": after.stage_started_at,
    }
    if verb in {"start", "advance"}:
        values["stages_entered"] = [*rollout.stages_entered, now.isoformat()]
    was_open = rollout.is_open
    rollout.state = after.state
    if rollout.is_finished:
        values |= {"ended_at": now, "outcome": reason}
    _compare_and_set(rollout, values)
    _decide(before, rollout, verb, reason=reason, look=look, now=now, actor=actor)
    if was_open and rollout.is_finished:
        _end(rollout, verb, reason=reason, now=now, actor=actor)
    releasing.bump_epoch()
    audit.record(
        actor=actor,
        action=f"rollout.{verb}",
        subject=rollout,
        detail={"reason": reason, "state": rollout.state, "stage": rollout.stage},
    )
    webhooks.tell(rollout.channel, event=f"rollout.{verb}", detail=_told(before, rollout, reason))
    return rollout


def _compare_and_set(rollout: Rollout, values: Mapping[str, Any]) -> None:
    """Write if the row is as it was seen, and take the next revision.

    Raises:
        Conflict: ``rollout_changed``.

    """
    seen = Rollout.objects.filter(pk=rollout.pk, revision=rollout.revision)
    try:
        with transaction.atomic():
            changed = seen.update(revision=F("revision") + 1, **values)
    except IntegrityError as error:
        message = "Another rollout is under way or waiting on this channel already."
        raise Conflict(message, code="rollout_open") from error
    if not changed:
        message = "The rollout has changed meanwhile; look again before you decide."
        raise Conflict(message, code="rollout_changed")
    rollout.refresh_from_db()


def _decide(
    before: Rollout,
    after: Rollout,
    verb: str,
    *,
    reason: str,
    look: Look | None,
    now: datetime,
    actor: Actor = None,
) -> RolloutDecision:
    return RolloutDecision.objects.create(
        rollout=after,
        number=after.revision,
        at=now,
        verb=verb,
        rule=look.verdict.rule if look else "",
        sentence=reason,
        state_before=before.state,
        state_after=after.state,
        stage_before=before.stage,
        stage_after=after.stage,
        evidence=look.evidence if look else {},
        verdict=look.verdict.dump() if look else {},
        policy=after.policy,
        actor_id=releasing.id_of(actor),
    )


def _told(before: Rollout, rollout: Rollout, reason: str) -> dict[str, Any]:
    return {
        "rollout": rollout.key,
        "version": rollout.version.number,
        "label": rollout.candidate.label if rollout.candidate else None,
        "state_before": before.state,
        "state": rollout.state,
        "stage": rollout.stage,
        "coverage_bp": rollout.coverage_bp,
        "reason": reason,
    }


def _end(rollout: Rollout, verb: Verb, *, reason: str, now: datetime, actor: Actor) -> None:
    """Do what the end of an open rollout asks for: everybody one release, by a label they take."""
    channel = rollout.channel
    candidate = rollout.candidate
    if candidate is None:
        return
    rollout.overrides.all().delete()
    if verb == "promote":
        _promote(rollout, candidate, now=now, actor=actor)
        return
    if verb == "kill":
        why = reason or "killed"
        releasing.kill_releases(channel.releases.filter(version=candidate.version_id), why)
    else:
        releasing.withdraw_releases(channel.releases.filter(pk=candidate.pk))
    releasing.want_signature(channel.model)
    if candidate.announced_at is not None:
        again = releasing.append_again(
            channel, reason=f"{candidate.label} was withdrawn: {reason}", actor=actor
        )
        if again is not None and queries.patch_pairs(again):
            releasing.build_patches(again)
    releasing.request_publication(model=channel.model)


def _promote(rollout: Rollout, candidate: Release, *, now: datetime, actor: Actor) -> None:
    channel = rollout.channel
    newest = channel.releases.filter(audience=Release.Audience.EVERYONE).first()
    if newest is not None and newest.counter > candidate.counter:
        # Some have seen a newer label of the incumbent, and would refuse this one.
        releasing.withdraw_releases(channel.releases.filter(pk=candidate.pk))
        release = releasing.append(
            channel,
            candidate.version,
            kind=Release.Kind.UPDATE,
            actor=actor,
            reason=f"{candidate.label} was promoted",
            notes=candidate.notes,
        )
        releasing.publish_release(release)
        return
    Release.objects.filter(pk=candidate.pk).update(audience=Release.Audience.EVERYONE)
    # It is signed already; what it replaced stays listed for a while, for who was just told of it.
    Signing.objects.filter(pk=channel.model_id).update(settle_at=now + releasing.SETTLE_AFTER)


# Pins: overrides and the golden version


@transaction.atomic
def set_override(
    *, model: Model, channel: str, device: str, version: ModelVersion, reason: str = "",
    actor: Actor = None,
) -> Override:  # fmt: skip
    """Give one installation a version, whatever the others get; it is never analysed.

    Raises:
        InvalidInput: ``missing_unit`` or ``invalid_unit``.
        Conflict: ``nothing_released``, or as ``release_version``.

    """
    check_unit(device)
    stream = releasing.lock_channel(model, channel)
    release = _release_for(stream, version, reason=f"for installations by name: {reason}",
                           actor=actor)  # fmt: skip
    known = Override.objects.filter(channel=stream, device=device).first()
    override, _ = Override.objects.update_or_create(
        channel=stream,
        device=device,
        defaults={
            "release": release,
            "rollout": None,
            "reason": reason,
            "created_by_id": releasing.id_of(actor),
        },
    )
    if known is not None and known.release_id != release.pk:
        _let_go(stream, known.release, is_followed=False)
    audit.record(
        actor=actor,
        action="override.set",
        subject=f"{stream} {device}",
        detail={"label": release.label, "version": version.number, "reason": reason},
    )
    releasing.bump_epoch()
    releasing.request_publication(model=model)
    return override


@transaction.atomic
def remove_override(*, override: Override, actor: Actor = None) -> None:
    """Let the installation have again what it would have without."""
    channel = override.channel
    stream = releasing.lock_channel(channel.model, channel.name)
    release = override.release
    audit.record(actor=actor, action="override.remove", subject=f"{stream} {override.device}")
    override.delete()
    _let_go(stream, release)
    releasing.bump_epoch()
    releasing.request_publication(model=channel.model)


@transaction.atomic
def set_golden(
    *, model: Model, channel: str, version: ModelVersion | None, actor: Actor = None
) -> Channel:
    """Choose the version that the holdout stays on, or none.

    It gets a release of its own, so that its feedback is the holdout's alone.

    Raises:
        Conflict: ``nothing_released``, or as ``release_version``.

    """
    stream = releasing.lock_channel(model, channel)
    before = stream.golden
    stream.golden = None
    if version is not None:
        stream.golden = _pin(stream, version, reason="golden version", actor=actor)
    stream.save(update_fields=["golden"])
    if before is not None:
        _let_go(stream, before, is_followed=version is not None)
    audit.record(
        actor=actor,
        action="channel.set_golden",
        subject=stream,
        detail={"version": version.number if version else None},
    )
    releasing.bump_epoch()
    releasing.request_publication(model=model)
    return stream


def _release_for(channel: Channel, version: ModelVersion, *, reason: str, actor: Actor) -> Release:
    """Return a living release of the version that installations may be pinned to."""
    standing = queries.standing(channel)
    for release in (standing.newest, standing.candidate):
        if release is not None and release.version_id == version.pk:
            return release
    return _pin(channel, version, reason=reason, actor=actor)


def _pin(channel: Channel, version: ModelVersion, *, reason: str, actor: Actor) -> Release:
    releasing.check_version(version)
    if queries.current_release(channel) is None:
        message = f"{channel.name} serves nothing yet; release a version to everyone first."
        raise Conflict(message, code="nothing_released")
    if releasing.shipped_files(version) & queries.killed_files(channel):
        message = f"Version {version} holds files that were killed on {channel.name} or recalled."
        raise Conflict(message, code="version_revoked")
    return releasing.append(
        channel,
        version,
        kind=Release.Kind.UPDATE,
        audience=Release.Audience.PINNED,
        actor=actor,
        reason=reason.rstrip(": "),
    )


def _let_go(channel: Channel, release: Release, *, is_followed: bool = True) -> None:
    """Withdraw a pinned release that nobody needs any more, so that its devices can go on."""
    is_golden = channel.golden_id == release.pk
    if release.audience != Release.Audience.PINNED or release.overrides.exists() or is_golden:
        return
    releasing.withdraw_releases(channel.releases.filter(pk=release.pk))
    releasing.want_signature(channel.model)
    current = queries.current_release(channel)
    was_given = release.announced_at is not None
    if is_followed and was_given and current is not None and current.counter < release.counter:
        releasing.append_again(channel, reason=f"{release.label} was withdrawn")


# New versions


def plan(*, model: Model, channel: str) -> Plan:
    """Return how a new version of the model would reach the channel's devices, and why."""
    policy = DeliveryPolicy.read(model.delivery_policy)
    made = plan_delivery(policy, evidence_queries.fleet_facts(model, channel))
    if made.is_staged or not policy.approvals.get(channel):
        return made
    # Released to everyone at once, nobody would have been asked.
    sentence = f"{made.sentence} {channel} asks for approvals, so it waits as a rollout for them."
    return replace(made, is_staged=True, sentence=sentence)


def forecast_rollout(rollout: Rollout) -> str:
    """Say what the fleet can decide by the rollout's policy."""
    facts = evidence_queries.fleet_facts(rollout.channel.model, rollout.channel.name)
    policy = rollout.rules
    if not rollout.is_open and not rollout.has_own_stages:
        policy = plan_stages(policy, facts)
    stages = ", ".join(f"{bp / 100:g} %" for bp in policy.stages_bp)
    seen = f"{facts.installations} installations were seen in the last 7 days"
    if not policy.needs_feedback:
        return f"{seen}; stages {stages}. Clean guardrails are all that is asked."
    return f"{seen}; stages {stages}. {foresee(policy, facts).sentence}"


@transaction.atomic
def queue_version(
    *, version: ModelVersion, channel: str, policy: RolloutPolicy, reason: str
) -> Rollout:
    """Draft a rollout of a nightly candidate and let it start when its turn comes.

    Raises:
        Conflict: as ``create_rollout``.

    """
    rollout = create_rollout(version=version, channel=channel, policy=policy.dump(), reason=reason)
    return queue_rollout(rollout=rollout, reason="the newest candidate that passed its gate")

"""Every write to channels and releases. Labels only grow; a rollback is a new label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from server.domain.errors import Conflict, InvalidInput
from server.http import audit
from server.registry.models import SLUG, Model, ModelVersion
from server.rollouts import queries
from server.rollouts.models import Channel, DecisionEpoch, Release

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

    Actor = AbstractBaseUser | AnonymousUser | None

PRODUCTION = "production"


@transaction.atomic
def release_version(
    *,
    version: ModelVersion,
    channel: str = PRODUCTION,
    actor: Actor = None,
    reason: str = "",
    notes: str = "",
    is_mandatory: bool = False,
) -> Release:
    """Put a published version on a channel under the next label.

    Raises:
        Conflict: ``version_not_published``, ``no_shipped_variant``, ``model_retired``,
            ``version_revoked`` (files of it were killed here before) or ``identical_release``
            (the channel serves these very files already).
        InvalidInput: ``invalid_channel``.

    """
    if version.model.retired_at is not None:
        message = f"{version.model.slug} is retired; nothing more is released."
        raise Conflict(message, code="model_retired")
    if version.state != ModelVersion.State.PUBLISHED:
        message = f"Version {version} is {version.state}; only a published version is released."
        raise Conflict(message, code="version_not_published")
    if not version.variants.filter(is_shipped=True).exists():
        message = f"Version {version} has no variant that may be shipped."
        raise Conflict(message, code="no_shipped_variant")
    stream = _lock_channel(version.model, channel)
    if _shipped(version) & queries.killed_files(stream):
        message = (
            f"Version {version} holds files that were killed on {channel}; train on other photos"
            " or upload another."
        )
        raise Conflict(message, code="version_revoked")
    current = queries.current_release(stream)
    if current is not None and _shipped(current.version) == _shipped(version):
        message = (
            f"{channel} serves the very files of version {version} already, as {current.label}."
        )
        raise Conflict(message, code="identical_release")
    is_older = current is not None and version.number < current.version.number
    return _append(
        stream,
        version,
        kind=Release.Kind.ROLLBACK if is_older else Release.Kind.UPDATE,
        actor=actor,
        reason=reason or "released by hand",
        notes=notes,
        is_mandatory=is_mandatory,
    )


@transaction.atomic
def roll_back(
    *,
    model: Model,
    channel: str = PRODUCTION,
    to: ModelVersion | None = None,
    actor: Actor = None,
    reason: str = "",
) -> Release:
    """Release an earlier version again, under a new label.

    Without ``to``, the version of the newest earlier release that was not killed.

    Raises:
        Conflict: ``nothing_to_roll_back_to``, or as ``release_version``.

    """
    stream = _lock_channel(model, channel)
    current = queries.current_release(stream)
    if to is None:
        earlier = queries.earlier_release(stream, current)
        if earlier is None:
            message = f"{channel} of {model.slug} has no earlier version to go back to."
            raise Conflict(message, code="nothing_to_roll_back_to")
        to = earlier.version
    if current is not None and to.number >= current.version.number:
        message = f"Version {to} is not older than {current.version}, which {channel} serves now."
        raise Conflict(message, code="not_an_earlier_version")
    return release_version(
        version=to,
        channel=channel,
        actor=actor,
        reason=reason or f"rollback to version {to.number}",
    )


@transaction.atomic
def kill(
    *, model: Model, channel: str = PRODUCTION, actor: Actor = None, reason: str = ""
) -> Release | None:
    """Revoke the version a channel serves; devices drop it at their next poll.

    The incumbent before it is released again under a new label and returned; without one, None:
    devices then go back to the model embedded in their app.

    Raises:
        Conflict: ``nothing_released``.

    """
    stream = _lock_channel(model, channel)
    current = queries.current_release(stream)
    if current is None:
        message = f"{channel} of {model.slug} serves nothing that could be killed."
        raise Conflict(message, code="nothing_released")
    why = reason or "killed by hand"
    stream.releases.filter(version=current.version, killed_at__isnull=True).update(
        killed_at=timezone.now(), killed_reason=why
    )
    audit.record(actor=actor, action="release.kill", subject=current, detail={"reason": why})
    _bump_epoch()
    incumbent = queries.earlier_release(stream, current)
    if incumbent is None:
        return None
    return _append(
        stream,
        incumbent.version,
        kind=Release.Kind.ROLLBACK,
        actor=actor,
        reason=f"{current.label} was killed: {why}",
    )


def touch_decisions() -> None:
    """Have every web process load its decision set again (a key, a policy or a model changed)."""
    _bump_epoch()


def _shipped(version: ModelVersion) -> set[str]:
    return set(version.variants.filter(is_shipped=True).values_list("sha256", flat=True))


def _lock_channel(model: Model, name: str) -> Channel:
    try:
        SLUG(name)
    except ValidationError as error:
        message = "A channel's name takes small letters, digits, - and _."
        raise InvalidInput(message, code="invalid_channel") from error
    channel, _ = Channel.objects.get_or_create(model=model, name=name)
    return Channel.objects.select_for_update().get(pk=channel.pk)


def _append(
    channel: Channel,
    version: ModelVersion,
    *,
    kind: Release.Kind,
    actor: Actor,
    reason: str,
    notes: str = "",
    is_mandatory: bool = False,
) -> Release:
    release = Release.objects.create(
        channel=channel,
        label_number=channel.next_label,
        version=version,
        kind=kind,
        reason=reason,
        notes=notes,
        is_mandatory=is_mandatory,
        created_by_id=actor.pk if actor is not None and actor.is_authenticated else None,
    )
    channel.next_label += 1
    channel.save(update_fields=["next_label"])
    audit.record(
        actor=actor,
        action=f"release.{kind}",
        subject=release,
        detail={"version": version.number, "reason": reason},
    )
    _bump_epoch()
    return release


def _bump_epoch() -> None:
    changed = DecisionEpoch.objects.filter(pk=1).update(number=F("number") + 1)
    if not changed:
        DecisionEpoch.objects.get_or_create(pk=1, defaults={"number": 1})

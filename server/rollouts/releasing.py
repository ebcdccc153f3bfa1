"""What every write to a channel is made of: locks, new labels, withdrawals, wishes to be signed.

Whoever writes holds the model's ``Signing`` row first and the channel's after it, so that a model's
changes come one after the other, and nobody waits for somebody who waits for him.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from server.domain.errors import Conflict, InvalidInput
from server.http import audit
from server.jobs import actions as jobs
from server.jobs import names
from server.jobs.queries import find_unfinished
from server.registry.models import SLUG, Model, ModelVersion
from server.rollouts import queries
from server.rollouts.models import Channel, DecisionEpoch, Release, Signing

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

    Actor = AbstractBaseUser | AnonymousUser | None

# What a release replaced stays signed for so long, for devices that have just been told of it.
SETTLE_AFTER = dt.timedelta(seconds=60)


def lock_channel(model: Model, name: str) -> Channel:
    """Hold the model's channel of that name, which is made where there is none.

    Raises:
        InvalidInput: ``invalid_channel``.

    """
    try:
        SLUG(name)
    except ValidationError as error:
        message = "A channel's name takes small letters, digits, - and _."
        raise InvalidInput(message, code="invalid_channel") from error
    lock_signing(model)
    channel, _ = Channel.objects.get_or_create(model=model, name=name)
    return Channel.objects.select_for_update().get(pk=channel.pk)


def lock_signing(model: Model) -> Signing:
    """Hold the model's row, so that its changes come one after the other."""
    Signing.objects.get_or_create(model=model)
    return Signing.objects.select_for_update().get(pk=model.pk)


def check_releasable(channel: Channel, version: ModelVersion) -> None:
    """Refuse a version that may not be given to devices of the channel.

    Raises:
        Conflict: ``version_not_published``, ``no_shipped_variant``, ``model_retired``,
            ``version_revoked`` or ``identical_release``.

    """
    check_version(version)
    files = shipped_files(version)
    if files & queries.killed_files(channel):
        message = (
            f"Version {version} holds files that were killed on {channel.name} or recalled; train"
            " on other photos or upload another."
        )
        raise Conflict(message, code="version_revoked")
    current = queries.current_release(channel)
    if current is not None and shipped_files(current.version) == files:
        message = (
            f"{channel.name} serves the very files of version {version} already, as"
            f" {current.label}."
        )
        raise Conflict(message, code="identical_release")


def check_version(version: ModelVersion) -> None:
    """Refuse a version that may be given to no device.

    Raises:
        Conflict: ``version_not_published``, ``no_shipped_variant`` or ``model_retired``.

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


def shipped_files(version: ModelVersion) -> set[str]:
    """Return the hashes of what devices may be given of the version."""
    return set(version.variants.filter(is_shipped=True).values_list("sha256", flat=True))


def append(
    channel: Channel,
    version: ModelVersion,
    *,
    kind: Release.Kind,
    actor: Actor,
    reason: str,
    audience: Release.Audience = Release.Audience.EVERYONE,
    notes: str = "",
    is_mandatory: bool = False,
) -> Release:
    """Put a version on a locked channel under the next label; the counter grows with it."""
    signing = Signing.objects.get(pk=channel.model_id)
    # Others that hold the same lock may have given labels away since this row was read.
    channel.refresh_from_db(fields=["next_label"])
    release = Release.objects.create(
        channel=channel,
        label_number=channel.next_label,
        counter=signing.next_counter,
        version=version,
        kind=kind,
        audience=audience,
        reason=reason,
        notes=notes,
        is_mandatory=is_mandatory,
        created_by_id=id_of(actor),
    )
    channel.next_label += 1
    channel.save(update_fields=["next_label"])
    Signing.objects.filter(pk=signing.pk).update(next_counter=F("next_counter") + 1)
    audit.record(
        actor=actor,
        action=f"release.{kind}",
        subject=release,
        detail={
            "version": version.number,
            "reason": reason,
            "counter": release.counter,
            "audience": str(audience),
        },
    )
    want_signature(channel.model)
    bump_epoch()
    return release


def append_again(channel: Channel, *, reason: str, actor: Actor = None) -> Release | None:
    """Release what the channel serves under a new label, for devices that have seen newer ones.

    A device installs nothing below the highest counter it has seen, so that going back is going
    on. None where the channel serves nothing.
    """
    current = queries.current_release(channel)
    if current is None:
        return None
    return append(
        channel,
        current.version,
        kind=Release.Kind.ROLLBACK,
        actor=actor,
        reason=reason,
        notes=current.notes,
    )


def kill_releases(releases: QuerySet[Release], why: str) -> None:
    """Revoke the releases."""
    releases.filter(killed_at__isnull=True).update(killed_at=timezone.now(), killed_reason=why)


def withdraw_releases(releases: QuerySet[Release]) -> None:
    """Give the releases to nobody any more, without revoking their files."""
    living = releases.filter(killed_at__isnull=True, withdrawn_at__isnull=True)
    living.update(withdrawn_at=timezone.now())


def publish_release(release: Release) -> None:
    """Have a release signed; its patches first, so that the first device is offered them."""
    # The job of the patches asks for the signing.
    if queries.patch_pairs(release):
        build_patches(release)
    else:
        request_publication(model=release.channel.model)


def build_patches(release: Release) -> None:
    """Queue the patches that lead to a release."""
    jobs.enqueue(
        name=names.BUILD_PATCHES,
        args={"release_id": release.pk, "model": release.channel.model.slug},
        unique_key=f"patches:{release.pk}",
    )


@transaction.atomic
def request_publication(*, model: Model) -> None:
    """Queue the signing of what is wanted by now, unless a job for just that waits already."""
    signing = lock_signing(model)
    key = f"publish:{model.pk}:{signing.wanted}"
    if find_unfinished(key) is None:
        jobs.enqueue(name=names.PUBLISH, args={"model": model.slug}, unique_key=key, max_attempts=5)


def want_signature(model: Model) -> None:
    """Note that signed metadata have to state something new."""
    Signing.objects.get_or_create(model=model)
    row = Signing.objects.filter(pk=model.pk)
    # Since when something is wanted: more of it does not put off what waits already.
    row.filter(wanted__lte=F("signed")).update(wanted_at=timezone.now())
    row.update(wanted=F("wanted") + 1)


def bump_epoch() -> None:
    """Have every web process load its decision set again."""
    changed = DecisionEpoch.objects.filter(pk=1).update(number=F("number") + 1)
    if not changed:
        DecisionEpoch.objects.get_or_create(pk=1, defaults={"number": 1})


def id_of(actor: Actor) -> int | None:
    """Return the id of an account, or None where no person acted."""
    return actor.pk if actor is not None and actor.is_authenticated else None

"""Every write to channels and releases. Labels only grow; a rollback is a new label.

A change is signed before devices hear of it: it raises what the model's ``Signing`` row wants and
queues the job that signs, reads back and then calls :func:`announce`. Only a kill also takes
effect at once, by what is no longer offered.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from server import blobs
from server.domain.errors import Conflict, InvalidInput
from server.http import audit
from server.jobs import actions as jobs
from server.jobs import names
from server.jobs.queries import find_unfinished
from server.registry.models import SLUG, Model, ModelVersion, Variant
from server.rollouts import queries
from server.rollouts.models import Channel, DecisionEpoch, Patch, Recall, Release, Signing
from server.trust.targets import SignedTarget

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

    Actor = AbstractBaseUser | AnonymousUser | None

PRODUCTION = "production"
# What a release replaced stays signed for so long, for devices that have just been told of it.
SETTLE_AFTER = dt.timedelta(seconds=60)
# A patch that saves less is not worth its trouble on a device.
LARGEST_PATCH = 0.7


@dataclass(frozen=True)
class Publication:
    """What is signed of a model at one moment, and what may be announced after it."""

    model: Model
    wanted: int
    targets: Sequence[SignedTarget]
    releases: Sequence[int]
    patches: Sequence[int]
    embedded: Sequence[str]


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
            ``version_revoked`` (files of it were killed here before, or recalled) or
            ``identical_release`` (the channel serves these very files already).
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
            f"Version {version} holds files that were killed on {channel} or recalled; train on"
            " other photos or upload another."
        )
        raise Conflict(message, code="version_revoked")
    current = queries.current_release(stream)
    if current is not None and _shipped(current.version) == _shipped(version):
        message = (
            f"{channel} serves the very files of version {version} already, as {current.label}."
        )
        raise Conflict(message, code="identical_release")
    is_older = current is not None and version.number < current.version.number
    release = _append(
        stream,
        version,
        kind=Release.Kind.ROLLBACK if is_older else Release.Kind.UPDATE,
        actor=actor,
        reason=reason or "released by hand",
        notes=notes,
        is_mandatory=is_mandatory,
    )
    # The patches first, so that the first device is offered them; their job asks for the signing.
    if queries.patch_pairs(release):
        _build_patches(release)
    else:
        request_publication(model=version.model)
    return release


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
    audit.record(actor=actor, action="release.kill", subject=current, detail={"reason": why})
    incumbent = _withdraw(
        stream, current, stream.releases.filter(version=current.version), actor=actor, why=why
    )
    _want_signature(model)
    request_publication(model=model)
    return incumbent


@transaction.atomic
def recall_version(*, version: ModelVersion, reason: str = "", actor: Actor = None) -> Recall:
    """Withdraw a version from every channel for good; devices delete its files at their next poll.

    Releases of other versions that hold one of its very files go with it. Where a channel served
    it, the version before it is released again, as after a kill. Calling twice changes nothing.
    """
    model = version.model
    _lock_signing(model)
    known = Recall.objects.filter(version=version).first()
    if known is not None:
        return known
    why = reason or "recalled by hand"
    recall = Recall.objects.create(version=version, reason=why, created_by_id=_id_of(actor))
    audit.record(actor=actor, action="version.recall", subject=version, detail={"reason": why})
    withdrawn = queries.releases_with_files_of(version)
    for channel in Channel.objects.filter(releases__in=withdrawn).distinct().order_by("pk"):
        stream = Channel.objects.select_for_update().get(pk=channel.pk)
        current = queries.current_release(stream)
        mine = withdrawn.filter(channel=stream)
        if current is not None and mine.filter(pk=current.pk).exists():
            _withdraw(stream, current, mine, actor=actor, why=why)
        else:
            _kill(mine, why)
    _bump_epoch()
    _want_signature(model)
    request_publication(model=model)
    return recall


@transaction.atomic
def prepare_publication(*, model: Model) -> Publication:
    """Return what is to be signed of the model now, all of it as of one moment."""
    signing = _lock_signing(model)
    releases = queries.listed_releases(model)
    patches = queries.listed_patches(releases, queries.revoked_files(model))
    return Publication(
        model=model,
        wanted=signing.wanted,
        targets=queries.signed_targets(model),
        releases=[release.pk for release in releases],
        patches=[patch.pk for patch in patches],
        embedded=queries.emptied_channels(model),
    )


@transaction.atomic
def announce(*, publication: Publication, now: dt.datetime | None = None) -> list[Release]:
    """Let devices have what the publication signed; return the releases that are new to them.

    To be called only after the signed metadata were read back. What was killed since stays
    withdrawn; calling twice changes nothing, and neither does one that a newer came before.
    """
    now = now or timezone.now()
    signing = _lock_signing(publication.model)
    if signing.signed > publication.wanted:
        return []
    found = Release.objects.filter(
        pk__in=publication.releases, announced_at__isnull=True, killed_at__isnull=True
    )
    fresh = list(found.select_related("channel__model", "version"))
    Release.objects.filter(pk__in=[release.pk for release in fresh]).update(announced_at=now)
    Patch.objects.filter(pk__in=publication.patches, announced_at__isnull=True).update(
        announced_at=now
    )
    channels = publication.model.channels
    channels.exclude(name__in=publication.embedded).update(embedded_at=None)
    channels.filter(name__in=publication.embedded, embedded_at=None).update(embedded_at=now)
    for release in fresh:
        audit.record(actor=None, action="release.announce", subject=release)
    still = {release.pk for release in queries.listed_releases(publication.model)}
    signing.settle_at = now + SETTLE_AFTER if still != set(publication.releases) else None
    signing.signed = max(signing.signed, publication.wanted)
    signing.signed_at, signing.failure, signing.failed_at = now, "", None
    signing.save()
    _bump_epoch()
    return fresh


@transaction.atomic
def note_signing_failure(*, model: Model, reason: str) -> bool:
    """Keep why a model's changes could not be signed; return whether that is news."""
    signing = _lock_signing(model)
    is_news = signing.failure != reason
    signing.failure, signing.failed_at = reason, timezone.now()
    signing.save(update_fields=["failure", "failed_at"])
    return is_news


@transaction.atomic
def request_publication(*, model: Model) -> None:
    """Queue the signing of what is wanted by now, unless a job for just that waits already."""
    signing = _lock_signing(model)
    key = f"publish:{model.pk}:{signing.wanted}"
    if find_unfinished(key) is None:
        jobs.enqueue(name=names.PUBLISH, args={"model": model.slug}, unique_key=key, max_attempts=5)


@transaction.atomic
def record_patch(
    *, from_variant: Variant, to_variant: Variant, algorithm: str, data: bytes | None, refusal: str
) -> Patch:
    """Keep a patch if it is small enough, else that there is none and why.

    ``data`` is None where none could be made, which ``refusal`` explains.
    """
    values: dict[str, object] = {"state": Patch.State.REFUSED, "refusal": refusal}
    if data is not None:
        share = len(data) / to_variant.size_bytes
        values["size_bytes"] = len(data)
        if share < LARGEST_PATCH:
            sha256 = blobs.store().put_bytes(data).sha256
            values |= {"state": Patch.State.OFFERED, "sha256": sha256, "refusal": ""}
        else:
            values["refusal"] = f"{share:.0%} of the whole file, which saves too little"
    patch, is_new = Patch.objects.get_or_create(
        from_variant=from_variant, to_variant=to_variant, algorithm=algorithm, defaults=values
    )
    if is_new and patch.state == Patch.State.OFFERED:
        _want_signature(to_variant.version.model)
    return patch


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
    _lock_signing(model)
    channel, _ = Channel.objects.get_or_create(model=model, name=name)
    return Channel.objects.select_for_update().get(pk=channel.pk)


def _lock_signing(model: Model) -> Signing:
    """Hold the model's row, so that its changes come one after the other."""
    Signing.objects.get_or_create(model=model)
    return Signing.objects.select_for_update().get(pk=model.pk)


def _want_signature(model: Model) -> None:
    """Note that signed metadata have to state something new."""
    Signing.objects.get_or_create(model=model)
    row = Signing.objects.filter(pk=model.pk)
    # Since when something is wanted: more of it does not put off what waits already.
    row.filter(wanted__lte=F("signed")).update(wanted_at=timezone.now())
    row.update(wanted=F("wanted") + 1)


def _build_patches(release: Release) -> None:
    """Queue the patches that lead to a release."""
    jobs.enqueue(
        name=names.BUILD_PATCHES,
        args={"release_id": release.pk, "model": release.channel.model.slug},
        unique_key=f"patches:{release.pk}",
    )


def _withdraw(
    channel: Channel, current: Release, releases: QuerySet[Release], *, actor: Actor, why: str
) -> Release | None:
    """Kill the releases and serve the newest earlier version that lives, if there is one."""
    _kill(releases, why)
    _bump_epoch()
    incumbent = queries.earlier_release(channel, current)
    if incumbent is None:
        return None
    release = _append(
        channel,
        incumbent.version,
        kind=Release.Kind.ROLLBACK,
        actor=actor,
        reason=f"{current.label} was killed: {why}",
    )
    if queries.patch_pairs(release):
        _build_patches(release)
    return release


def _kill(releases: QuerySet[Release], why: str) -> None:
    releases.filter(killed_at__isnull=True).update(killed_at=timezone.now(), killed_reason=why)


def _id_of(actor: Actor) -> int | None:
    return actor.pk if actor is not None and actor.is_authenticated else None


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
    signing = Signing.objects.get(pk=channel.model_id)
    release = Release.objects.create(
        channel=channel,
        label_number=channel.next_label,
        counter=signing.next_counter,
        version=version,
        kind=kind,
        reason=reason,
        notes=notes,
        is_mandatory=is_mandatory,
        created_by_id=_id_of(actor),
    )
    channel.next_label += 1
    channel.save(update_fields=["next_label"])
    Signing.objects.filter(pk=signing.pk).update(next_counter=F("next_counter") + 1)
    audit.record(
        actor=actor,
        action=f"release.{kind}",
        subject=release,
        detail={"version": version.number, "reason": reason, "counter": release.counter},
    )
    _want_signature(channel.model)
    _bump_epoch()
    return release


def _bump_epoch() -> None:
    changed = DecisionEpoch.objects.filter(pk=1).update(number=F("number") + 1)
    if not changed:
        DecisionEpoch.objects.get_or_create(pk=1, defaults={"number": 1})

"""Every write to channels and releases. Labels only grow; a rollback is a new label.

A change is signed before devices hear of it: it raises what the model's ``Signing`` row wants and
queues the job that signs, reads back and then calls :func:`announce`. Only a kill also takes
effect at once, by what is no longer offered.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from server import blobs
from server.domain.delivery_policy import DeliveryPolicy
from server.domain.errors import Conflict
from server.http import audit
from server.registry.models import Model, ModelVersion, Variant
from server.rollouts import queries, releasing, staging, targets, vouching, webhooks
from server.rollouts.models import Channel, Patch, Recall, Release
from server.rollouts.releasing import SETTLE_AFTER, request_publication
from server.trust.targets import SignedTarget

if TYPE_CHECKING:
    from server.rollouts.releasing import Actor

__all__ = ["SETTLE_AFTER", "request_publication"]

PRODUCTION = "production"
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
    revoked: Sequence[str] = ()
    # Why releases are left out, by their id.
    refused: Mapping[int, str] = field(default_factory=dict)


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
            ``version_revoked`` (files of it were killed here before, or recalled),
            ``identical_release`` (the channel serves these very files already) or
            ``rollout_open`` (a rollout is under way there).
        InvalidInput: ``invalid_channel``.

    """
    releasing.check_version(version)
    stream = releasing.lock_channel(version.model, channel)
    staging.require_no_open_rollout(stream)
    releasing.check_releasable(stream, version)
    current = queries.current_release(stream)
    is_older = current is not None and version.number < current.version.number
    release = releasing.append(
        stream,
        version,
        kind=Release.Kind.ROLLBACK if is_older else Release.Kind.UPDATE,
        actor=actor,
        reason=reason or "released by hand",
        notes=notes,
        is_mandatory=is_mandatory,
    )
    releasing.publish_release(release)
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
    stream = releasing.lock_channel(model, channel)
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
    devices then go back to the model embedded in their app. While a rollout is under way, its
    candidate is what is killed, and the rollout ends.

    Raises:
        Conflict: ``nothing_released``.

    """
    stream = releasing.lock_channel(model, channel)
    why = reason or "killed by hand"
    rollout = staging.open_rollout(stream)
    if rollout is not None:
        staging.kill_rollout(rollout=rollout, actor=actor, reason=why)
        return queries.current_release(stream)
    current = queries.current_release(stream)
    if current is None:
        message = f"{channel} of {model.slug} serves nothing that could be killed."
        raise Conflict(message, code="nothing_released")
    audit.record(actor=actor, action="release.kill", subject=current, detail={"reason": why})
    incumbent = _withdraw(
        stream, current, stream.releases.filter(version=current.version), actor=actor, why=why
    )
    releasing.want_signature(model)
    request_publication(model=model)
    webhooks.tell(
        stream,
        event="release.killed",
        detail={
            "label": current.label,
            "version": current.version.number,
            "reason": why,
            "now_serving": incumbent.label if incumbent else None,
        },
    )
    return incumbent


@transaction.atomic
def recall_version(*, version: ModelVersion, reason: str = "", actor: Actor = None) -> Recall:
    """Withdraw a version from every channel for good; devices delete its files at their next poll.

    Releases of other versions that hold one of its very files go with it. Where a channel served
    it, the version before it is released again, as after a kill. Calling twice changes nothing.
    """
    model = version.model
    releasing.lock_signing(model)
    known = Recall.objects.filter(version=version).first()
    if known is not None:
        return known
    why = reason or "recalled by hand"
    person = releasing.id_of(actor)
    recall = Recall.objects.create(version=version, reason=why, created_by_id=person)
    audit.record(actor=actor, action="version.recall", subject=version, detail={"reason": why})
    withdrawn = queries.releases_with_files_of(version)
    for channel in Channel.objects.filter(releases__in=withdrawn).distinct().order_by("pk"):
        stream = Channel.objects.select_for_update().get(pk=channel.pk)
        staging.end_for_recall(stream, withdrawn, actor=actor, reason=f"{version} was recalled")
        current = queries.current_release(stream)
        mine = withdrawn.filter(channel=stream)
        if current is not None and mine.filter(pk=current.pk).exists():
            _withdraw(stream, current, mine, actor=actor, why=why)
        else:
            releasing.kill_releases(mine, why)
    releasing.bump_epoch()
    releasing.want_signature(model)
    request_publication(model=model)
    return recall


@transaction.atomic
def prepare_publication(*, model: Model) -> Publication:
    """Return what is to be signed of the model now, all of it as of one moment.

    A version that nobody attested is left out, and only that: what was killed or recalled is
    signed all the same, and so is what devices were given before.
    """
    signing = releasing.lock_signing(model)
    listed = queries.listed_releases(model)
    # What is checked is what is signed: these very objects, read once.
    files = queries.shipped_files(listed)
    refused = vouching.refusals(model, listed, files)
    releases = [release for release in listed if release.pk not in refused]
    revoked = queries.revoked_files(model, refused=refused)
    embedded = queries.emptied_channels(model)
    patches = queries.listed_patches(releases, revoked)
    policy = targets.of_policy(
        model.slug,
        min_counter=queries.lowest_counter(model, releases or listed),
        revoked=revoked,
        embedded=embedded,
    )
    return Publication(
        model=model,
        wanted=signing.wanted,
        targets=[
            *targets.of_releases(model.slug, releases, files),
            *targets.of_patches(model.slug, patches),
            policy,
        ],
        releases=[release.pk for release in releases],
        patches=[patch.pk for patch in patches],
        embedded=embedded,
        revoked=revoked,
        refused=refused,
    )


@transaction.atomic
def announce(*, publication: Publication, now: dt.datetime | None = None) -> list[Release]:
    """Let devices have what the publication signed; return the releases that are new to them.

    To be called only after the signed metadata were read back. What was killed since stays
    withdrawn; calling twice changes nothing, and neither does one that a newer came before.
    """
    now = now or timezone.now()
    signing = releasing.lock_signing(publication.model)
    if signing.signed > publication.wanted:
        return []
    found = Release.objects.filter(
        pk__in=publication.releases,
        announced_at__isnull=True,
        killed_at__isnull=True,
        withdrawn_at__isnull=True,
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
    left = still - publication.refused.keys() != set(publication.releases)
    signing.settle_at, signing.signed_at = now + SETTLE_AFTER if left else None, now
    signing.revoked = list(publication.revoked)
    if not publication.refused:
        # Otherwise what is wanted waits on, and whoever looks for what is late tries again.
        signing.signed = max(signing.signed, publication.wanted)
        signing.failure, signing.failed_at = "", None
    signing.save()
    releasing.bump_epoch()
    return fresh


@transaction.atomic
def note_refusals(*, publication: Publication) -> list[Release]:
    """Keep why releases were left out of what was signed; return them where that is news."""
    refused = publication.refused
    if not refused:
        return []
    reason = " ".join(dict.fromkeys(refused.values()))
    if not note_signing_failure(model=publication.model, reason=reason):
        return []
    found = Release.objects.filter(pk__in=list(refused)).select_related("channel__model", "version")
    releases = list(found)
    for release in releases:
        why = {"reason": refused[release.pk]}
        audit.record(actor=None, action="release.not_signed", subject=release, detail=why)
    return releases


@transaction.atomic
def note_signing_failure(*, model: Model, reason: str) -> bool:
    """Keep why a model's changes could not be signed; return whether that is news."""
    signing = releasing.lock_signing(model)
    is_news = signing.failure != reason
    signing.failure, signing.failed_at = reason, timezone.now()
    signing.save(update_fields=["failure", "failed_at"])
    return is_news


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
        releasing.want_signature(to_variant.version.model)
    return patch


def touch_decisions() -> None:
    """Have every web process load its decision set again (a key, a policy or a model changed)."""
    releasing.bump_epoch()


@transaction.atomic
def set_delivery_policy(*, model: Model, policy: dict[str, Any], actor: Actor = None) -> Model:
    """Replace how the model's new versions reach devices.

    Raises:
        InvalidInput: ``invalid_policy`` or ``invalid_targeting``.

    """
    DeliveryPolicy.read(policy)
    model.delivery_policy = policy
    model.save(update_fields=["delivery_policy"])
    audit.record(actor=actor, action="model.set_delivery_policy", subject=model, detail=policy)
    return model


def _withdraw(
    channel: Channel, current: Release, releases: QuerySet[Release], *, actor: Actor, why: str
) -> Release | None:
    """Kill the releases and serve the newest earlier version that lives, if there is one."""
    releasing.kill_releases(releases, why)
    releasing.bump_epoch()
    incumbent = queries.earlier_release(channel, current)
    if incumbent is None:
        return None
    release = releasing.append(
        channel,
        incumbent.version,
        kind=Release.Kind.ROLLBACK,
        actor=actor,
        reason=f"{current.label} was killed: {why}",
    )
    if queries.patch_pairs(release):
        releasing.build_patches(release)
    return release

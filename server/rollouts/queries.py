"""Reads of channels, releases, and of what of them is to be signed."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from django.db.models import F, Q, QuerySet

from server.domain.errors import NotFound
from server.jobs import names
from server.jobs.models import UNFINISHED, Job
from server.registry.models import Model, ModelVersion, Variant
from server.rollouts.models import (
    Channel,
    DecisionEpoch,
    Override,
    Patch,
    Recall,
    Release,
    Rollout,
    Signing,
)

# A job does the signing at once; only what it left undone is looked for.
SIGNING_IS_LATE = dt.timedelta(seconds=60)
# A release is waited for so long while its patches are built.
PATCHES_ARE_LATE = dt.timedelta(minutes=10)
# Devices of a channel skip this many releases and still find a patch.
PATCH_BASES = 4


def get_channel(model: Model, name: str) -> Channel:
    """Return a channel of the model.

    Raises:
        NotFound: ``unknown_channel``.

    """
    try:
        return model.channels.get(name=name)
    except Channel.DoesNotExist as error:
        message = f"{model.slug} has no channel called {name!r} yet."
        raise NotFound(message, code="unknown_channel") from error


@dataclass(frozen=True)
class Standing:
    """What a channel's releases come to.

    ``newest`` is what it shall serve, None where that was killed: an older release never comes
    back by itself, because who rolled back from it had a reason. ``offered`` is what devices get
    until the newest is signed and announced. ``candidate`` is given to the treatment arm of the
    rollout under way, ``pinned`` to installations by name and to the golden holdout.
    ``is_emptied`` says that everything was killed.
    """

    newest: Release | None = None
    offered: Release | None = None
    is_emptied: bool = False
    candidate: Release | None = None
    pinned: tuple[Release, ...] = ()

    @property
    def listed(self) -> tuple[Release, ...]:
        """Return the releases that signed metadata list."""
        every = (self.offered, self.newest, self.candidate, *self.pinned)
        return tuple({one.pk: one for one in every if one}.values())


def stand(releases: Sequence[Release]) -> Standing:
    """Return what a channel's releases, oldest first, come to."""
    audience = Release.Audience
    everyone = [one for one in releases if one.audience == audience.EVERYONE]
    living = [one for one in releases if one.is_living]
    candidate = next((one for one in living if one.audience == audience.ROLLOUT), None)
    newest = everyone[-1] if everyone and everyone[-1].is_living else None
    if newest is None:
        # A first candidate that was withdrawn has devices that shall go back, too.
        return Standing(is_emptied=bool(releases) and candidate is None, candidate=candidate)
    announced = next((one for one in reversed(everyone) if one.announced_at is not None), None)
    return Standing(
        newest=newest,
        offered=announced if announced is not None and announced.is_living else None,
        candidate=candidate,
        pinned=tuple(one for one in living if one.audience == audience.PINNED),
    )


def standing(channel: Channel) -> Standing:
    """Return what the channel's releases come to."""
    return _standings(channel.releases.all()).get(channel.pk, Standing())


def current_release(channel: Channel) -> Release | None:
    """Return what the channel shall serve: its newest release, or nothing where it was killed."""
    released = channel.releases.filter(audience=Release.Audience.EVERYONE)
    newest = released.select_related("version", "channel").order_by("-label_number").first()
    return newest if newest is not None and newest.is_living else None


def serving(models: Iterable[Model]) -> list[tuple[Channel, Release | None]]:
    """Return every channel of the models with what it shall serve, in two queries."""
    channels = list(Channel.objects.filter(model__in=models).select_related("model"))
    standings = _standings(Release.objects.filter(channel__in=channels))
    return [(channel, standings.get(channel.pk, Standing()).newest) for channel in channels]


def _standings(releases: QuerySet[Release]) -> dict[int, Standing]:
    """Return what the releases of each channel come to."""
    by_channel: dict[int, list[Release]] = defaultdict(list)
    rows = releases.order_by("label_number").select_related("version", "channel__model")
    for release in rows:
        by_channel[release.channel_id].append(release)
    return {pk: stand(found) for pk, found in by_channel.items()}


def incumbent(model: Model, channel: str) -> Release | None:
    """Return what the channel of that name shall serve."""
    stream = model.channels.filter(name=channel).first()
    return current_release(stream) if stream is not None else None


def killed_files(channel: Channel) -> set[str]:
    """Return the hashes of every file that was killed on the channel, or recalled."""
    killed = channel.releases.filter(killed_at__isnull=False).values("version")
    recalled = Recall.objects.filter(version__model=channel.model_id).values("version")
    return _shipped(Q(version__in=killed) | Q(version__in=recalled))


def withdrawn_files(model: Model) -> set[str]:
    """Return the hashes of every file that was killed on any channel, or recalled."""
    killed = Release.objects.filter(channel__model=model, killed_at__isnull=False)
    recalled = Recall.objects.filter(version__model=model)
    return _shipped(
        Q(version__in=killed.values("version")) | Q(version__in=recalled.values("version"))
    )


def _shipped(of: Q) -> set[str]:
    return set(Variant.objects.filter(of, is_shipped=True).values_list("sha256", flat=True))


def releases_with_files_of(version: ModelVersion) -> QuerySet[Release]:
    """Return the releases of this version, and of others that hold one of its very files."""
    files = version.variants.filter(is_shipped=True).values("sha256")
    twins = Variant.objects.filter(
        version__model=version.model_id, is_shipped=True, sha256__in=files
    ).values("version")
    return Release.objects.filter(Q(version=version) | Q(version__in=twins))


def waits_for_person(model: Model, channel: str) -> bool:
    """Say whether everything on the channel was killed: then only a person releases again."""
    stream = model.channels.filter(name=channel).first()
    if stream is None or not standing(stream).is_emptied:
        return False
    newest = stream.releases.order_by("-label_number").first()
    return newest is not None and newest.killed_at is not None


def earlier_release(channel: Channel, current: Release | None) -> Release | None:
    """Return the newest living release of a version older than the current one."""
    releases = channel.releases.filter(
        killed_at__isnull=True, audience=Release.Audience.EVERYONE
    ).select_related("version")
    if current is not None:
        releases = releases.filter(version__number__lt=current.version.number)
    return releases.order_by("-label_number").first()


def epoch() -> int:
    """Return the number that grows with every change devices may see."""
    row = DecisionEpoch.objects.filter(pk=1).values_list("number", flat=True).first()
    return row or 0


# What is signed


def listed_releases(model: Model) -> list[Release]:
    """Return the releases that the model's signed metadata shall list.

    Those are what each channel serves now, and what it will serve once it is announced. A retired
    model lists none, whatever its channels come to: devices keep what they have.
    """
    if Model.objects.filter(pk=model.pk, retired_at__isnull=False).exists():
        return []
    return _standing_releases(model)


def _standing_releases(model: Model) -> list[Release]:
    standings = _standings(Release.objects.filter(channel__model=model))
    return [release for one in standings.values() for release in one.listed]


def listed_patches(releases: Iterable[Release], revoked: Iterable[str] = ()) -> list[Patch]:
    """Return the patches that lead to a file of the releases, from files that may be run."""
    versions = {release.version_id for release in releases}
    patches = Patch.objects.filter(state=Patch.State.OFFERED, to_variant__version__in=versions)
    return list(
        patches.exclude(from_variant__sha256__in=list(revoked))
        .select_related("from_variant", "to_variant")
        .order_by("pk")
    )


def revoked_files(model: Model, *, refused: Collection[int] = ()) -> list[str]:
    """Return the files that no device may run any more: withdrawn, and served nowhere.

    ``refused`` are the ids of releases that are not signed, and so protect no file.
    """
    standing = _standing_releases(model)
    listed = [release.version_id for release in standing if release.pk not in refused]
    return sorted(withdrawn_files(model) - _shipped(Q(version__in=listed)))


def emptied_channels(model: Model) -> list[str]:
    """Return the names of the channels on which everything was killed."""
    standings = _standings(Release.objects.filter(channel__model=model))
    channels = model.channels.filter(pk__in=[pk for pk, one in standings.items() if one.is_emptied])
    return sorted(channels.values_list("name", flat=True))


def shipped_files(releases: Iterable[Release]) -> dict[int, list[Variant]]:
    """Return the variants that devices may be given, by the id of their version."""
    variants: dict[int, list[Variant]] = defaultdict(list)
    versions = [release.version_id for release in releases]
    for variant in Variant.objects.filter(version__in=versions, is_shipped=True):
        variants[variant.version_id].append(variant)
    return variants


def lowest_counter(model: Model, releases: Iterable[Release]) -> int:
    """Return the counter below which devices install nothing.

    Where nothing is served, nothing that was ever served may come back.
    """
    floor = Signing.objects.filter(pk=model.pk).values_list("next_counter", flat=True).first() or 1
    return min((release.counter for release in releases), default=floor)


def late_signings(now: dt.datetime) -> list[Model]:
    """Return the models whose changes ought to have been signed by now.

    One whose patches are being built has its signature afterwards, so that the first device is
    offered them; but not for ever.
    """
    building = Job.objects.filter(
        name=names.BUILD_PATCHES, state__in=UNFINISHED, created_at__gt=now - PATCHES_ARE_LATE
    )
    busy = set(building.values_list("args__model", flat=True))
    late = Q(wanted__gt=F("signed"), wanted_at__lte=now - SIGNING_IS_LATE)
    rows = Signing.objects.filter(late | Q(settle_at__lte=now)).select_related("model")
    return [row.model for row in rows if row.signed == row.wanted or row.model.slug not in busy]


def waiting_signings() -> list[Signing]:
    """Return what is not signed yet, each with its model."""
    return list(Signing.objects.filter(wanted__gt=F("signed")).select_related("model"))


def is_signed(model: Model) -> bool:
    """Say whether signed metadata state every change of the model's releases."""
    return not Signing.objects.filter(pk=model.pk, wanted__gt=F("signed")).exists()


def signing_failure(model: Model) -> str:
    """Return why the newest changes could not be signed, or nothing."""
    row = Signing.objects.filter(pk=model.pk, wanted__gt=F("signed")).first()
    return row.failure if row is not None else ""


# Patches


def patch_pairs(release: Release) -> list[tuple[Variant, Variant]]:
    """Return which file shall become which for devices that follow the release's channel.

    Bases are the last versions that the channel released before, newest first; of those, the
    files of the same runtime and precision. Pairs that were tried before are left out.
    """
    earlier = (
        release.channel.releases.filter(
            label_number__lt=release.label_number, killed_at__isnull=True
        )
        .exclude(version=release.version_id)
        .order_by("-label_number")
        .values_list("version", flat=True)
    )
    bases = list(dict.fromkeys(earlier))[:PATCH_BASES]
    new = {(v.runtime, v.precision): v for v in _shipped_variants(release.version_id)}
    tried = set(
        Patch.objects.filter(to_variant__in=new.values()).values_list("from_variant", "to_variant")
    )
    return [
        (old, target)
        for base in bases
        for old in _shipped_variants(base)
        if (target := new.get((old.runtime, old.precision))) is not None
        and old.sha256 != target.sha256
        and (old.pk, target.pk) not in tried
    ]


def _shipped_variants(version: int) -> QuerySet[Variant]:
    return Variant.objects.filter(version=version, is_shipped=True).select_related("version__model")


# Rollouts


def list_rollouts() -> QuerySet[Rollout]:
    """Return all rollouts, newest first, with what their rows show."""
    related = ("channel__model", "version", "candidate", "incumbent__version", "created_by")
    return Rollout.objects.select_related(*related)


def get_rollout(rollout_id: int) -> Rollout:
    """Return a rollout.

    Raises:
        NotFound: ``unknown_rollout``.

    """
    rollout = list_rollouts().filter(pk=rollout_id).first()
    if rollout is None:
        message = "There is no rollout of that id."
        raise NotFound(message, code="unknown_rollout")
    return rollout


def newest_rollout(channel: Channel) -> Rollout | None:
    """Return the channel's rollout under way, else the one that waits, else the newest."""
    order = {"running": 0, "paused": 0, "queued": 1, "draft": 2}
    rollouts = list(list_rollouts().filter(channel=channel)[:50])
    return min(rollouts, key=lambda one: (order.get(one.state, 3), -one.pk), default=None)


def get_override(channel: Channel, device: str) -> Override:
    """Return an installation's override.

    Raises:
        NotFound: ``unknown_override``.

    """
    override = channel.overrides.select_related("release", "channel__model").filter(device=device)
    found = override.first()
    if found is None:
        message = f"There is no override for {device[:60]!r} on {channel.name}."
        raise NotFound(message, code="unknown_override")
    return found

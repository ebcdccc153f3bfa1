"""Reads of channels and releases."""

from __future__ import annotations

from collections.abc import Iterable

from server.domain.errors import NotFound
from server.registry.models import Model, Variant
from server.rollouts.models import Channel, DecisionEpoch, Release


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


def current_release(channel: Channel) -> Release | None:
    """Return what the channel serves: its newest release, or nothing where that was killed.

    An older release never comes back by itself: who rolled back from it had a reason.
    """
    newest = channel.releases.select_related("version").order_by("-label_number").first()
    return newest if newest is not None and newest.killed_at is None else None


def serving(models: Iterable[Model]) -> list[tuple[Channel, Release | None]]:
    """Return every channel of the models with what it serves, in two queries."""
    channels = list(Channel.objects.filter(model__in=models).select_related("model"))
    newest: dict[int, Release] = {}
    releases = Release.objects.filter(channel__in=channels).order_by("label_number")
    for release in releases.select_related("version", "channel__model"):
        newest[release.channel_id] = release
    living = {pk: release for pk, release in newest.items() if release.killed_at is None}
    return [(channel, living.get(channel.pk)) for channel in channels]


def incumbent(model: Model, channel: str) -> Release | None:
    """Return what the channel of that name serves now."""
    stream = model.channels.filter(name=channel).first()
    return current_release(stream) if stream is not None else None


def killed_files(channel: Channel) -> set[str]:
    """Return the hashes of every file that was killed on the channel."""
    killed = channel.releases.filter(killed_at__isnull=False).values("version")
    files = Variant.objects.filter(version__in=killed, is_shipped=True)
    return set(files.values_list("sha256", flat=True))


def waits_for_person(model: Model, channel: str) -> bool:
    """Say whether everything on the channel was killed: then only a person releases again."""
    stream = model.channels.filter(name=channel).first()
    return stream is not None and stream.releases.exists() and current_release(stream) is None


def earlier_release(channel: Channel, current: Release | None) -> Release | None:
    """Return the newest living release of a version older than the current one."""
    releases = channel.releases.filter(killed_at__isnull=True).select_related("version")
    if current is not None:
        releases = releases.filter(version__number__lt=current.version.number)
    return releases.order_by("-label_number").first()


def epoch() -> int:
    """Return the number that grows with every change devices may see."""
    row = DecisionEpoch.objects.filter(pk=1).values_list("number", flat=True).first()
    return row or 0

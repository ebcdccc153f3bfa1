"""Reads of the repository. Nothing here loads a key, nor the libraries that could."""

from __future__ import annotations

import datetime as dt

from django.db.models import Max, OuterRef, QuerySet, Subquery
from django.utils import timezone

from server.domain.errors import Conflict
from server.trust import roles
from server.trust.models import MetadataFile
from server.trust.targets import RoleLife


def is_initialised() -> bool:
    """Whether there is a root."""
    return _files().filter(role=roles.ROOT).exists()


def metadata_file(name: str) -> bytes | None:
    """Return a signed file by the name that devices ask for, such as ``3.root.json``.

    ``1.root.json`` is what devices ask for that have no root: the oldest there is, which has a
    higher version where the repository was founded anew.
    """
    found = roles.split_name(name)
    if found is None:
        return None
    role, version = found
    files = _files().filter(role=role).order_by("-version")
    if (role, version) == (roles.ROOT, 1):
        files = files.reverse()
    elif version is not None:
        files = files.filter(version=version)
    row = files.values_list("content", flat=True).first()
    return None if row is None else bytes(row)


def trusted_root() -> bytes:
    """Return the newest root, the one to put into apps.

    Raises:
        Conflict: ``trust_not_initialised``.

    """
    return _root("-version")


def first_root() -> bytes:
    """Return the oldest root that an app may carry.

    Raises:
        Conflict: ``trust_not_initialised``.

    """
    return _root("version")


def role_lives(now: dt.datetime | None = None) -> list[RoleLife]:
    """Return how long the metadata of each role still hold, the shortest first."""
    moment = now or timezone.now()
    rows = current_files().values_list("role", "version", "expires_at")
    lives = [_life(role, version, expires_at, moment) for role, version, expires_at in rows]
    return sorted(lives, key=lambda life: (life.expires_at, life.role))


def alarms(now: dt.datetime | None = None) -> list[str]:
    """Return a sentence for each role that has under a third of its life left."""
    return [_say(life) for life in role_lives(now) if life.is_alarming]


def current_files() -> QuerySet[MetadataFile]:
    """Return the newest file of each role."""
    newest = _files().filter(role=OuterRef("role")).order_by("-version")
    return _files().filter(version=Subquery(newest.values("version")[:1]))


def current_versions() -> dict[str, int]:
    """Return the newest version of each role."""
    return dict(current_files().values_list("role", "version"))


def model_roles() -> list[str]:
    """Return the roles of models."""
    known = _files().exclude(role__in=roles.TOP_LEVEL).order_by("role")
    return list(known.values_list("role", flat=True).distinct())


def used_versions() -> dict[str, int]:
    """Return the highest version that was ever signed of each role, in any repository."""
    highest = MetadataFile.objects.order_by().values_list("role").annotate(Max("version"))
    return dict(highest)


def count_archived() -> int:
    """Return how many files of repositories that were given up are kept."""
    return MetadataFile.objects.filter(is_archived=True).count()


def _files() -> QuerySet[MetadataFile]:
    return MetadataFile.objects.filter(is_archived=False)


def _root(order: str) -> bytes:
    files = _files().filter(role=roles.ROOT).order_by(order)
    row = files.values_list("content", flat=True).first()
    if row is None:
        message = "There is no root yet: `python manage.py trust init` makes one."
        raise Conflict(message, code="trust_not_initialised")
    return bytes(row)


def _life(role: str, version: int, expires_at: dt.datetime, now: dt.datetime) -> RoleLife:
    left = max((expires_at - now) / roles.life_of(role), 0.0)
    return RoleLife(role, version, expires_at, left, is_alarming=left < roles.ALARM_BELOW)


def _say(life: RoleLife) -> str:
    if not life.fraction_left:
        return (
            f"Metadata of {life.role} expired at {life.expires_at:%Y-%m-%d %H:%M} UTC: devices keep"
            " what they have and install nothing new. See `python manage.py trust status`."
        )
    return (
        f"Metadata of {life.role} expire at {life.expires_at:%Y-%m-%d %H:%M} UTC and have not been"
        " signed again. See `python manage.py trust status`."
    )

"""Every write to the repository.

The libraries that sign are imported when something is signed: a web process that only asks for a
job never loads them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from django.utils import timezone

from server.domain.errors import Conflict
from server.trust import queries, roles
from server.trust.models import Alarm, MetadataFile
from server.trust.targets import Published, Renewed, SignedTarget

if TYPE_CHECKING:
    from server.trust.repository import Plan
    from server.trust.signers import Keyring

log = structlog.get_logger(__name__)

_KEEP_EXPIRED = dt.timedelta(days=30)
_ALARM_EVERY = dt.timedelta(days=1)


def publish(
    *,
    role: str,
    paths: Sequence[str],
    targets: Sequence[SignedTarget] | Callable[[], Sequence[SignedTarget]],
    now: dt.datetime | None = None,
) -> Published:
    """Have a role list exactly these targets; where it does already, nothing is signed.

    ``targets`` may be a function, which is called while the repository is held: what several
    processes read then is signed in the order in which they read it. ``paths`` are the patterns
    delegated to the role; a role that is new is delegated where the key of the targets role is at
    hand. Not to be called within a transaction: each of its own has to reach the disk.

    Raises:
        Conflict: ``role_not_delegated``, ``signing_key_missing``, ``trust_not_initialised``,
            ``trust_metadata_lost``.
        InvalidInput: ``target_outside_role``, ``duplicate_target``, ``fraction_in_custom``,
            ``invalid_target``.

    """
    from server.trust import plans, repository
    from server.trust.signers import Keyring

    ensure_repository(now=now)
    keyring = Keyring()

    def plan(change: repository.Change) -> None:
        listed = targets() if callable(targets) else targets
        plans.list_targets(role, paths, listed, keyring)(change)

    is_new = bool(repository.commit(plan, keyring=keyring, now=now))
    versions = queries.current_versions()
    return Published(
        role=versions[role],
        targets=versions[roles.TARGETS],
        snapshot=versions[roles.SNAPSHOT],
        timestamp=versions[roles.TIMESTAMP],
        is_new=is_new,
    )


def listed_targets(*, role: str) -> list[SignedTarget]:
    """Return what a role lists now, where a key at hand has signed that; else nothing.

    To be called by whoever signs: what the database holds is believed only by its signature.
    """
    from server.trust import repository
    from server.trust.signers import Keyring

    if not queries.is_initialised():
        return []
    return repository.vouched_targets(role, Keyring())


def renew(*, now: dt.datetime | None = None) -> Renewed:
    """Sign again what has been valid for half of its life, and the timestamp every hour.

    Finishes what a crash left, and forgets files that expired long ago. Called by the clock;
    without a repository it does nothing. A role that could not be signed is overdue once it has
    under a third of its life left; the log says so once a day.

    Raises:
        Conflict: ``signing_key_missing`` where the timestamp cannot be signed.

    """
    from server.trust import plans, repository
    from server.trust.signers import Keyring

    if not queries.is_initialised():
        return Renewed()
    keyring = Keyring()
    overdue: list[str] = []
    try:
        signed = repository.commit(plans.renew(keyring, overdue), keyring=keyring, now=now)
    finally:
        _sound_alarms(now or timezone.now())
    _forget_expired(now or timezone.now())
    return Renewed(signed=tuple(sorted(signed)), overdue=tuple(sorted(overdue)))


def change(
    *,
    plan: Plan,
    keyring: Keyring | None = None,
    appoints_keys: bool = False,
    now: dt.datetime | None = None,
) -> tuple[str, ...]:
    """Carry out one of :mod:`server.trust.plans`; return the roles that got a new version.

    ``appoints_keys``: get past what a crash left to be signed by a key that is lost.

    Raises:
        Conflict: ``signing_key_missing``, and what the plan raises.

    """
    from server.trust import repository, signers

    keys = keyring or signers.Keyring()
    try:
        repository.finish(keys, now=now)
    except Conflict:
        if not appoints_keys:
            raise
        # Nobody has seen these drafts, and the lost key's signature will not count any more.
        repository.discard_drafts()
    return tuple(sorted(repository.commit(plan, keyring=keys, now=now)))


def refound(*, plan: Plan, keyring: Keyring, now: dt.datetime | None = None) -> tuple[str, ...]:
    """Found the repository anew, with a root that devices with the old one never accept.

    What was signed before is archived and served no more. Releases keep their labels and counters.
    Returns the roles that were signed.

    Raises:
        Conflict: ``signing_key_missing``, ``trust_not_initialised``, and what the plan raises.
        Unavailable: ``signer_unavailable``.

    """
    from server.trust import repository, signers

    change = repository.found_anew(plan, keyring=keyring, now=now)
    log.warning("repository_refounded", root_version=change.version(roles.ROOT))
    signers.keep_root_copy(queries.first_root(), replace=True)
    return tuple(sorted(change.new))


def export(
    *, plan: Plan, folder: Path, is_anew: bool = False, now: dt.datetime | None = None
) -> list[Path]:
    """Write what people have to sign for a plan, unsigned; nothing changes until it is brought in.

    ``is_anew``: the plan is for a repository in the place of this one.

    Raises:
        Conflict: what the plan raises.

    """
    from server.trust import repository

    drawn = (repository.draw_anew if is_anew else repository.draw)(plan, now=now)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for role in (roles.ROOT, roles.TARGETS):
        if role in drawn.new:
            path = folder / f"{drawn.new[role].signed.version}.{role}.json"
            path.write_bytes(repository.serialize(drawn.new[role]))
            written.append(path)
    return written


def ensure_repository(*, now: dt.datetime | None = None) -> bool:
    """Make keys and the first root where nothing is configured; return whether they were made.

    Raises:
        Conflict: ``trust_not_initialised`` where keys are configured and a ceremony is due;
            ``trust_metadata_lost`` where there are keys of a repository, but not the repository.

    """
    from server.trust import plans, repository, signers

    if queries.is_initialised():
        if signers.is_embedded():
            signers.keep_root_copy(queries.first_root())
        return False
    if not signers.is_embedded():
        message = (
            "Keys are configured, and there is no root yet. `python manage.py trust init` makes it;"
            " docs/keys.md tells how."
        )
        raise Conflict(message, code="trust_not_initialised")
    files = signers.make_embedded_keys()
    keys = {kind: [signers.read_public(path) for path in found] for kind, found in files.items()}
    try:
        repository.commit(plans.found(keys), now=now)
    except Conflict as error:
        # Another process was faster, with the same keys.
        if error.code != "trust_initialised":
            raise
    signers.keep_root_copy(queries.first_root())
    return True


def read_back(*, role: str, targets: Sequence[SignedTarget]) -> None:
    """See with a fresh client, from the oldest root on, that devices find exactly these targets.

    To be called before a release is announced.

    Raises:
        DomainError: ``read_back_failed``.

    """
    from server.trust import readback

    readback.check(role=role, targets=targets)


def require_keys() -> None:
    """Raise where the server could not sign what it has to sign by itself.

    Raises:
        Conflict: ``signing_key_missing``.

    """
    from server.trust import repository
    from server.trust.signers import Keyring

    for role in (roles.TIMESTAMP, roles.SNAPSHOT, *queries.model_roles()[:1]):
        repository.require_at_hand(role, Keyring())


def first_start_notice() -> str:
    """Return what an operator has to know once keys were made on this machine."""
    from django.conf import settings

    folder = settings.TRUST_KEYS
    return (
        "\nFirst start: keys were made that sign what devices may install.\n"
        f"    private keys  {folder}\n"
        "They are as safe as this machine is: good enough to try things out. Before going live:\n"
        "    1. Move root-*.pem and targets-*.pem off this machine, to different places. Two of\n"
        "       three root keys appoint other keys; without them no device can ever follow.\n"
        "    2. Put the root into your app: python manage.py trust root --output root.json\n"
        "    3. Back up the database: it holds the only record of what was signed.\n"
        "docs/keys.md tells it in full; python manage.py trust status shows how things stand.\n"
    )


def _sound_alarms(now: dt.datetime) -> None:
    """Log an error for each role that is about to expire, or has: once a day, whoever calls."""
    alarming = [life for life in queries.role_lives(now) if life.is_alarming]
    Alarm.objects.exclude(role__in=[life.role for life in alarming]).delete()
    for life in alarming:
        alarm, is_new = Alarm.objects.get_or_create(role=life.role, defaults={"logged_at": now})
        if is_new or alarm.logged_at <= now - _ALARM_EVERY:
            Alarm.objects.filter(pk=alarm.pk).update(logged_at=now)
            log.error("metadata_about_to_expire", role=life.role, expires_at=life.expires_at)


def _forget_expired(now: dt.datetime) -> None:
    """Delete files that no device could accept any more; roots stay, old apps start from them."""
    current = list(queries.current_files().values_list("pk", flat=True))
    expired = MetadataFile.objects.filter(expires_at__lt=now - _KEEP_EXPIRED, is_archived=False)
    expired.exclude(role=roles.ROOT).exclude(pk__in=current).delete()

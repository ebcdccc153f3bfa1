"""Every write to the repository.

The libraries that sign are imported when something is signed: a web process that only asks for a
job never loads them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from server.domain.errors import Conflict
from server.trust import queries, roles
from server.trust.targets import Published, SignedTarget


def publish(
    *,
    role: str,
    paths: Sequence[str],
    targets: Sequence[SignedTarget],
    now: dt.datetime | None = None,
) -> Published:
    """Have a role list exactly these targets; where it does already, nothing is signed.

    ``paths`` are the patterns delegated to the role; a role that is new is delegated where the key
    of the targets role is at hand. Not to be called within a transaction: each of its own has to
    reach the disk.

    Raises:
        Conflict: ``role_not_delegated``, ``signing_key_missing``, ``trust_not_initialised``,
            ``trust_metadata_lost``.
        InvalidInput: ``target_outside_role``, ``duplicate_target``, ``fraction_in_custom``,
            ``invalid_target``.

    """
    from server.trust import repository
    from server.trust.signers import Keyring

    ensure_repository(now=now)
    keyring = Keyring()
    is_new = repository.commit(
        lambda change: change.list_targets(role, paths, targets, keyring), keyring=keyring, now=now
    )
    versions = queries.current_versions()
    return Published(
        role=versions[role],
        targets=versions[roles.TARGETS],
        snapshot=versions[roles.SNAPSHOT],
        timestamp=versions[roles.TIMESTAMP],
        is_new=is_new,
    )


def ensure_repository(*, now: dt.datetime | None = None) -> bool:
    """Make keys and the first root where nothing is configured; return whether they were made.

    Raises:
        Conflict: ``trust_not_initialised`` where keys are configured and a ceremony is due;
            ``trust_metadata_lost`` where there are keys of a repository, but not the repository.

    """
    from server.trust import repository, signers

    if queries.is_initialised():
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
        repository.found(
            lambda change: repository.begin(change, keys), keyring=signers.Keyring(), now=now
        )
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

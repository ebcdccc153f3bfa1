"""The engine: new versions of roles are drafted, signed, verified and shown, in this order.

A :class:`Change` holds the new versions that belong together and brings along what follows from
them: whatever role lost its key is signed again, the snapshot names what is new, and the timestamp
names the snapshot. :func:`commit` writes them as drafts, signs the drafts, and turns all of them
into files in one transaction. Killed anywhere, it leaves either no trace or drafts, and the next
call signs the very same bytes. What devices see is always a whole.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import hashlib
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction
from django.utils import timezone
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from server.domain.errors import Conflict, Unavailable
from server.trust import attestations, queries, roles
from server.trust.models import Draft, MetadataFile, Repository
from server.trust.signals import refounded
from server.trust.signers import Keyring
from server.trust.targets import SignedTarget

Document = Metadata[Any]
Plan = Callable[["Change"], None]

_SERIALIZER = JSONSerializer(compact=True)


@dataclass(frozen=True)
class Stored:
    """The newest file of a role, but for its content."""

    pk: int
    version: int
    expires_at: dt.datetime


class View:
    """The newest metadata of every role; fetched and parsed when first asked for.

    There is a file for every model, and most changes concern one of them.
    """

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.stored = stored
        # Where a role begins again, its version goes on: caches keep files by their name for ever.
        self.used = queries.used_versions()
        self._parsed: dict[str, Document] = {}

    @classmethod
    def load(cls) -> View:
        """Read what is stored."""
        rows = queries.current_files().values_list("role", "pk", "version", "expires_at")
        return cls({role: Stored(pk, version, expires) for role, pk, version, expires in rows})

    def __contains__(self, role: object) -> bool:
        return role in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __getitem__(self, role: str) -> Document:
        if role not in self._parsed:
            file = MetadataFile.objects.get(pk=self.stored[role].pk)
            self._parsed[role] = Metadata.from_bytes(bytes(file.content))
        return self._parsed[role]


class Change:
    """New versions of some roles, on top of what is stored."""

    def __init__(self, view: View, now: dt.datetime) -> None:
        self.view = view
        self.now = now
        self.new: dict[str, Document] = {}

    def latest(self, role: str) -> Document:
        """Return the new version of a role, else the stored one."""
        return self.new[role] if role in self.new else self.view[role]

    def version(self, role: str) -> int:
        """Return the newest version of a role."""
        if role in self.new:
            return int(self.new[role].signed.version)
        return self.view.stored[role].version

    @property
    def root(self) -> Root:
        """The newest root."""
        signed = self.latest(roles.ROOT).signed
        assert isinstance(signed, Root)  # noqa: S101 - stored under this name
        return signed

    @property
    def targets(self) -> Targets:
        """The newest top-level targets."""
        signed = self.latest(roles.TARGETS).signed
        assert isinstance(signed, Targets)  # noqa: S101 - stored under this name
        return signed

    @property
    def delegations(self) -> Delegations:
        """Who signs for which model."""
        delegations = self.targets.delegations
        assert delegations is not None  # noqa: S101 - made with the repository
        return delegations

    @property
    def delegated(self) -> dict[str, DelegatedRole]:
        """The roles of models."""
        return self.delegations.roles or {}

    def start(self, role: str, signed: Root | Targets | Snapshot | Timestamp) -> Document:
        """Begin a role with the first version that was never used."""
        signed.version = self.next_version(role)
        signed.expires = _expiry(role, self.now)
        self.new[role] = Metadata(signed)
        return self.new[role]

    def next_version(self, role: str) -> int:
        """Return the version that follows on what was ever signed of a role."""
        return self.view.used.get(role, 0) + 1

    def renew(self, role: str) -> Document:
        """Begin the next version of a role, with the same content and a whole life before it."""
        if role not in self.new:
            signed = copy.deepcopy(self.view[role].signed)
            signed.version += 1
            signed.expires = _expiry(role, self.now)
            self.new[role] = Metadata(signed)
        return self.new[role]

    def close(self) -> None:
        """Add what follows from the new versions: other signatures, snapshot, timestamp."""
        if not self._holds(roles.TARGETS):
            self.renew(roles.TARGETS)
        for role in sorted(self.delegated):
            if role not in self.view:
                # A delegated role without a file would be an error to devices, not an empty list.
                if role not in self.new:
                    self.start(role, Targets())
            elif not self._holds(role):
                self.renew(role)
        self._close_snapshot()
        snapshot = MetaFile(self.version(roles.SNAPSHOT))
        if roles.TIMESTAMP not in self.view:
            self.start(roles.TIMESTAMP, Timestamp(snapshot_meta=snapshot))
        elif (
            self.view[roles.TIMESTAMP].signed.snapshot_meta != snapshot
            or not self._holds(roles.TIMESTAMP)
        ):  # fmt: skip
            self.renew(roles.TIMESTAMP)
        if roles.TIMESTAMP in self.new:
            self.new[roles.TIMESTAMP].signed.snapshot_meta = snapshot

    def signing_keys(self, role: str) -> dict[str, Key]:
        """Return the keys that may sign the latest version of a role."""
        delegators = self._delegators(role)
        return {
            keyid: delegator.get_key(keyid)
            for delegator in delegators
            for keyid in delegator.get_delegated_role(role).keyids
        }

    def is_signed(self, role: str) -> bool:
        """Whether enough keys have signed the latest version of a role."""
        return self.is_enough(role, self.signed_by(role))

    def is_enough(self, role: str, keyids: AbstractSet[str]) -> bool:
        """Whether signatures of these keys make the latest version of a role valid."""
        parts = [part.get_delegated_role(role) for part in self._delegators(role)]
        return all(len(keyids & set(part.keyids)) >= part.threshold for part in parts)

    def signed_by(self, role: str) -> set[str]:
        """Return the keys whose signatures the latest version of a role holds."""
        document = self.latest(role)
        keys = self.signing_keys(role)
        return {keyid for keyid, key in keys.items() if _verifies(document, keyid, key)}

    def is_own(self, role: str, keyring: Keyring) -> bool:
        """Whether a key at hand has signed the stored version of a role."""
        document, keys = self.view[role], self.signing_keys(role)
        return any(_verifies(document, keyid, keys[keyid]) for keyid in self.at_hand(role, keyring))

    def at_hand(self, role: str, keyring: Keyring) -> set[str]:
        """Return the keys of a role that could sign now."""
        found = keyring.signers(roles.kind_of(role), self.signing_keys(role))
        return {signer.public_key.keyid for signer in found}

    def sign(self, role: str, keyring: Keyring) -> bool:
        """Add the signatures of the keys at hand; return whether they are enough."""
        if self.is_signed(role):
            return True
        for signer in keyring.signers(roles.kind_of(role), self.signing_keys(role)):
            try:
                self.new[role].sign(signer, append=True)
            except UnsignedMetadataError as error:
                message = f"Whatever signs {role} does not answer: {error}."
                raise Unavailable(message, code="signer_unavailable") from error
        return self.is_signed(role)

    def _delegators(self, role: str) -> list[Root | Targets]:
        """Return who says who signs: for a new root, that root and the one before it."""
        if role not in roles.TOP_LEVEL:
            return [self.targets]
        if role == roles.ROOT and role in self.new and role in self.view:
            return [self.view[role].signed, self.root]
        return [self.root]

    def _holds(self, role: str) -> bool:
        """Whether the latest version of a role needs no new signature."""
        if role in self.new or role not in self.view:
            return True
        delegator = roles.ROOT if role in roles.TOP_LEVEL else roles.TARGETS
        return delegator not in self.new or self.is_signed(role)

    def _close_snapshot(self) -> None:
        listed = {roles.TARGETS, *self.delegated}
        meta = {f"{role}.json": MetaFile(self.version(role)) for role in listed}
        if roles.SNAPSHOT not in self.view:
            self.start(roles.SNAPSHOT, Snapshot(meta=meta))
        elif self.view[roles.SNAPSHOT].signed.meta != meta or not self._holds(roles.SNAPSHOT):
            self.renew(roles.SNAPSHOT)
        if roles.SNAPSHOT in self.new:
            self.new[roles.SNAPSHOT].signed.meta = meta


def commit(
    plan: Plan, *, keyring: Keyring | None = None, now: dt.datetime | None = None
) -> set[str]:
    """Sign and show what ``plan`` changes; return the roles that got a new version.

    Must not be called within a transaction: what devices may have seen cannot be taken back.

    Raises:
        Conflict: ``signing_key_missing``, and what the plan raises.
        Unavailable: ``signer_unavailable``.

    """
    keys = keyring or Keyring()
    while True:
        finish(keys, now=now)
        with locked():
            if Draft.objects.exists():
                continue  # another process has planned meanwhile: help it, then look again
            change = draw(plan, now=now)
            _require_genuine(change, keys)
            _require_signable(change, keys)
            _write_drafts(change)
        finish(keys, now=now)
        return set(change.new)


def draw(plan: Plan, *, now: dt.datetime | None = None) -> Change:
    """Return what a plan would change, without changing it."""
    change = Change(View.load(), _moment(now))
    plan(change)
    if change.new:
        change.close()
    return change


def found_anew(plan: Plan, *, keyring: Keyring, now: dt.datetime | None = None) -> Change:
    """Put a repository of other keys in the place of the one there is, which is archived.

    All of it in one transaction: no device can have seen any of the new signatures before.

    Raises:
        Conflict: ``signing_key_missing``, ``trust_not_initialised``, and what the plan raises.
        Unavailable: ``signer_unavailable``.

    """
    with locked():
        old = queries.trusted_root()
        change = draw_anew(plan, now=now)
        missing = [role for role in change.new if not change.sign(role, keyring)]
        if missing:
            raise missing_key(missing[0])
        MetadataFile.objects.update(is_archived=True)
        Draft.objects.all().delete()
        for role, document in change.new.items():
            _store(role, document, change.now)
        refounded.send(
            sender=None,
            old_root=hashlib.sha256(old).hexdigest(),
            new_root=hashlib.sha256(serialize(change.new[roles.ROOT])).hexdigest(),
        )
    return change


def draw_anew(plan: Plan, *, now: dt.datetime | None = None) -> Change:
    """Return the first files of a repository in the place of the one there is."""
    change = Change(View({}), _moment(now))
    plan(change)
    change.close()
    return change


def finish(keyring: Keyring, *, now: dt.datetime | None = None) -> None:
    """Sign the drafts that are waiting, if any, and show them.

    Raises:
        Conflict: ``signing_key_missing``.

    """
    drafts = list(Draft.objects.all())
    if not drafts:
        return
    if not all(attestations.is_sealed(_sealed_part(draft), draft.seal) for draft in drafts):
        # Of a process without the key, which may be anybody: nothing of it was ever shown.
        with locked():
            Draft.objects.filter(pk__in=[draft.pk for draft in drafts]).delete()
        return
    change = Change(View.load(), _moment(now))
    change.new = {draft.role: Metadata.from_bytes(bytes(draft.content)) for draft in drafts}
    missing = [role for role in change.new if not change.sign(role, keyring)]
    with locked():
        ids = [draft.pk for draft in drafts]
        # Another process may have finished them meanwhile, and all is well.
        if Draft.objects.filter(pk__in=ids).count() == len(ids):
            if missing:
                raise missing_key(missing[0])
            for role, document in change.new.items():
                _store(role, document, change.now)
            Draft.objects.all().delete()


def discard_drafts() -> None:
    """Forget drafts whose key is lost; only with a change that takes that key's right away."""
    with locked():
        Draft.objects.all().delete()


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the repository, in a transaction that has reached the disk when it ends."""
    with _synchronous(), transaction.atomic(durable=True):
        Repository.objects.select_for_update().get_or_create(pk=1)
        yield


def serialize(document: Document) -> bytes:
    """Return the bytes of a file."""
    return document.to_bytes(_SERIALIZER)


def missing_key(role: str) -> Conflict:
    """Return what to raise where a role cannot be signed."""
    kind = roles.kind_of(role)
    if kind in roles.ONLINE:
        message = (
            f"The key that signs {role} is not at hand. It belongs into TRUST_{kind.upper()}_KEY or"
            f" into the folder TRUST_KEYS; if it is lost, `python manage.py trust rotate {kind}`"
            " appoints another."
        )
    else:
        message = (
            f"Not enough keys of the {role} role are at hand. Name their files with --key, or sign"
            " on another machine: --export, `trust sign`, `trust import`. See docs/keys.md."
        )
    return Conflict(message, code="signing_key_missing")


@contextlib.contextmanager
def _synchronous() -> Iterator[None]:
    """Have SQLite wait for the disk: a version that devices saw must outlive a power cut."""
    if connection.vendor != "sqlite" or connection.in_atomic_block:
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA synchronous=FULL")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA synchronous=NORMAL")


def _require_signable(change: Change, keyring: Keyring) -> None:
    """Raise before anything is drafted that could not be signed."""
    for role in change.new:
        if keyring.named and role in (roles.ROOT, roles.TARGETS):
            # These keys are here for this command only: a later call could not finish the draft.
            change.sign(role, keyring)
        if not change.is_enough(role, change.signed_by(role) | change.at_hand(role, keyring)):
            raise missing_key(role)


def _write_drafts(change: Change) -> None:
    for role, document in change.new.items():
        draft = Draft(
            role=role,
            version=document.signed.version,
            content=serialize(document),
            created_at=change.now,
        )
        draft.seal = attestations.seal(_sealed_part(draft))
        draft.save()


def _sealed_part(draft: Draft) -> bytes:
    return f"{draft.role}\n{draft.version}\n".encode() + bytes(draft.content)


def _require_genuine(change: Change, keyring: Keyring) -> None:
    """Raise where what a role has stored was not signed as it is: it must not be signed again.

    For the role of a model, its own key has to have signed, where it is at hand.
    """
    stored = Change(change.view, change.now)
    for role in change.new:
        if role not in stored.view:
            continue
        own = stored.at_hand(role, keyring) if role not in roles.TOP_LEVEL else set()
        signed_by = stored.signed_by(role)
        if not stored.is_enough(role, signed_by) or (own and not own & signed_by):
            message = (
                f"The stored metadata of {role} do not bear their signatures: somebody changed the"
                " database. Restore a backup, and see docs/trust.md, Who can do what."
            )
            raise Conflict(message, code="metadata_changed")


def _store(role: str, document: Document, now: dt.datetime) -> None:
    content = serialize(document)
    MetadataFile.objects.create(
        role=role,
        version=document.signed.version,
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        expires_at=document.signed.expires,
        created_at=now,
    )


def _verifies(document: Document, keyid: str, key: Key) -> bool:
    signature = document.signatures.get(keyid)
    if signature is None:
        return False
    try:
        key.verify_signature(signature, document.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True


def _expiry(role: str, now: dt.datetime) -> dt.datetime:
    return (now + roles.life_of(role)).astimezone(dt.UTC).replace(microsecond=0)


def _moment(now: dt.datetime | None) -> dt.datetime:
    return now or timezone.now()


def vouched_targets(role: str, keyring: Keyring) -> list[SignedTarget]:
    """Return what the stored version of a role lists, where a key at hand has signed it."""
    change = Change(View.load(), _moment(None))
    if role not in change.view or not change.is_own(role, keyring):
        return []
    return [
        SignedTarget(
            path=path,
            sha256=file.hashes["sha256"],
            size_bytes=file.length,
            custom=file.unrecognized_fields["custom"],
        )
        for path, file in change.view[role].signed.targets.items()
    ]


def require_at_hand(role: str, keyring: Keyring) -> None:
    """Raise unless enough keys of a role are at hand.

    Raises:
        Conflict: ``signing_key_missing``, ``trust_not_initialised``.

    """
    queries.trusted_root()
    change = Change(View.load(), _moment(None))
    if not change.is_enough(role, change.at_hand(role, keyring)):
        raise missing_key(role)

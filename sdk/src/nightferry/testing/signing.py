"""Signed metadata as the real server makes them (docs/trust.md), with keys that live in memory.

Each repository has keys of its own; ``keys_of`` another makes one that the same root opens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

ROOT, TARGETS, SNAPSHOT, TIMESTAMP, MODELS = "root", "targets", "snapshot", "timestamp", "models"
LIVES = {
    ROOT: timedelta(days=365),
    TARGETS: timedelta(days=180),
    MODELS: timedelta(days=30),
    SNAPSHOT: timedelta(days=7),
    TIMESTAMP: timedelta(hours=24),
}
ROOT_KEYS, ROOT_THRESHOLD = 3, 2

Keys = tuple[CryptoSigner, ...]
S = TypeVar("S", bound=Signed)


@dataclass(frozen=True)
class SignedFile:
    """A target: digest, size in bytes, and what else is signed about it."""

    sha256: str
    size_bytes: int
    custom: Mapping[str, object] = field(default_factory=dict)


class FakeRepository:
    """A repository that signs at once, and misbehaves when told.

    Roles are called as in the metadata: ``root``, ``targets``, ``snapshot``, ``timestamp``,
    ``model-<slug>``. ``files`` are what is served, by name; ``now`` gives the time by which
    things expire; ``first_root`` is what an app carries, ``first_keys`` what signed it.
    """

    def __init__(self, now: Callable[[], float], *, keys_of: FakeRepository | None = None) -> None:
        """Sign an empty repository."""
        self.files: dict[str, bytes] = {}
        self.now = now
        self._is_signing = True
        self._lock = threading.RLock()
        self.first_keys: Mapping[str, Keys] = (
            keys_of.first_keys if keys_of else {kind: _new_keys(kind) for kind in LIVES}
        )
        self._keys = dict(self.first_keys)
        self._delegations = Delegations({}, {})
        self._root = _unsigned(Root(consistent_snapshot=True))
        self._lists = {TARGETS: _unsigned(Targets(delegations=self._delegations))}
        self._snapshot = _unsigned(Snapshot(meta={}))
        self._timestamp = _unsigned(Timestamp())
        self._sign_root(())
        self.first_root = self.files["1.root.json"]
        self._sign(TARGETS)
        self._publish()

    def publish(self, model: str, targets: Mapping[str, SignedFile]) -> None:
        """Let the role of a model list exactly these targets, by path."""
        role = f"model-{model}"
        with self._lock:
            if role not in self._lists:
                self._delegate(model)
            self._lists[role].targets = {
                path: _target(path, file) for path, file in targets.items()
            }
            self._sign(role)
            self._publish()

    def renew(self) -> None:
        """Sign again what has lived half its life, as the real server's hourly task does."""
        with self._lock:
            if not self._is_signing:
                return
            due = [role for role in self._lists if self._is_due(role)]
            for role in due:
                self._sign(role)
            if due or self._is_due(SNAPSHOT):
                self._publish()
            elif self._is_due(TIMESTAMP):
                self._sign(TIMESTAMP)

    def rotate(self, *kinds: str) -> None:
        """Replace the keys of ``root``, ``targets``, ``snapshot``, ``timestamp`` or ``models``."""
        with self._lock:
            before = self._keys[ROOT]
            for kind in kinds:
                self._keys[kind] = _new_keys(kind)
            self._sign_root(before)
            for role in list(self._delegations.roles or ()):
                self._delegate(role.removeprefix("model-"))
            for role in self._lists:
                self._sign(role)
            self._publish()

    # How it misbehaves

    def stop_signing(self) -> None:
        """Hand out what there is until it expires, and after."""
        self._is_signing = False

    def expire(self, role: str) -> None:
        """Sign a role as one that expired an hour ago, and sign no more."""
        self._spoil(role, life=timedelta(hours=-1))

    def sign_with_a_stranger(self, role: str) -> None:
        """Sign a role with a key that nobody trusts, and sign no more."""
        self._spoil(role, keys=_new_keys(_kind(role)))

    def checkpoint(self) -> dict[str, bytes]:
        """Return what is served now, to be put back with ``restore``."""
        with self._lock:
            return dict(self.files)

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Serve exactly what was served at another time, and sign no more."""
        with self._lock:
            self.stop_signing()
            self.files = dict(files)

    def _spoil(self, role: str, *, life: timedelta | None = None, keys: Keys | None = None) -> None:
        with self._lock:
            self.stop_signing()
            self._sign(role, life=life, keys=keys)
            if role in self._lists:
                self._publish()
            elif role == SNAPSHOT:
                self._point_to_snapshot()

    def _publish(self) -> None:
        """Sign the snapshot of all that lists targets, and the timestamp last."""
        for role, lists in self._lists.items():
            self._snapshot.meta[f"{role}.json"] = MetaFile(version=lists.version)
        self._sign(SNAPSHOT)
        self._point_to_snapshot()

    def _point_to_snapshot(self) -> None:
        self._timestamp.snapshot_meta = MetaFile(version=self._snapshot.version)
        self._sign(TIMESTAMP)

    def _sign(self, role: str, *, life: timedelta | None = None, keys: Keys | None = None) -> None:
        signed = self._signed(role)
        signed.version += 1
        signed.expires = self._time() + (life or LIVES[_kind(role)])
        metadata: Metadata[Any] = Metadata(signed)
        for key in keys or self._keys[_kind(role)]:
            metadata.sign(key, append=True)
        name = f"{role}.json" if role == TIMESTAMP else f"{signed.version}.{role}.json"
        self.files[name] = metadata.to_bytes()

    def _sign_root(self, before: Keys) -> None:
        """Name the keys that are valid now; the root's keys of before sign too."""
        root = Root(consistent_snapshot=True)
        root.version = self._root.version
        for role in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP):
            for key in self._keys[role]:
                root.add_key(key.public_key, role)
        root.roles[ROOT].threshold = ROOT_THRESHOLD
        self._root = root
        new = [key for key in self._keys[ROOT] if key not in before]
        self._sign(ROOT, keys=(*before, *new))

    def _delegate(self, model: str) -> None:
        role = f"model-{model}"
        paths = [f"{model}/policy", f"{model}/patches/*", f"{model}/*/*/*"]
        roles = cast("dict[str, DelegatedRole]", self._delegations.roles)
        roles[role] = DelegatedRole(role, [], 1, terminating=True, paths=paths)
        for key in self._keys[MODELS]:
            self._delegations.keys[key.public_key.keyid] = key.public_key
            roles[role].keyids.append(key.public_key.keyid)
        self._lists.setdefault(role, _unsigned(Targets()))
        self._sign(TARGETS)

    def _signed(self, role: str) -> Signed:
        tops: dict[str, Signed] = {
            ROOT: self._root,
            SNAPSHOT: self._snapshot,
            TIMESTAMP: self._timestamp,
        }
        return tops.get(role) or self._lists[role]

    def _is_due(self, role: str) -> bool:
        left, life = self._signed(role).expires - self._time(), LIVES[_kind(role)]
        return not life / 2 < left <= life

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC).replace(microsecond=0)


def _unsigned(signed: S) -> S:
    signed.version = 0  # the first signature makes it 1
    return signed


def _target(path: str, file: SignedFile) -> TargetFile:
    custom = {"custom": dict(file.custom)}
    return TargetFile(file.size_bytes, {"sha256": file.sha256}, path, custom)


def _kind(role: str) -> str:
    return MODELS if role.startswith("model-") else role


def _new_keys(kind: str) -> Keys:
    count = ROOT_KEYS if kind == ROOT else 1
    return tuple(CryptoSigner.generate_ed25519() for _ in range(count))

"""What is installed of one model, as a value with pure transitions, and how it lies on disk.

``State`` does no I/O: each method returns the next state. ``StateStore`` replaces ``state.json``
atomically before any effect of the new state shows, so that a kill at any point leaves the old
state or the new one. A second copy is kept of every state that changed what is in use: if the
first is torn, the model in use is still known, also offline.

::

    idle ──check──▶ available ──▶ downloading ──▶ staged ──activate──▶ idle (the new one active)
      ▲                 │              │             │
      └── nothing new ──┘              └── failed ◀──┘   (the active one stays)

The trial of a newly activated model (self-test, confirmation, roll-back after crashes) will sit
between ``staged`` and ``idle``; today an activation counts at once.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, cast

from nightferry import log
from nightferry.errors import InvalidManifestError, StorageError
from nightferry.files import FileLock, remove, write_atomically
from nightferry.manifest import Document, Kind, Manifest, parse_json, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SCHEMA = 1
HOLD_BACK_S = 24 * 3600
MAX_TRIES = 2
_MAX_FAILURES_KEPT = 16
_LOCK_WAIT_S = 2.0
_LATEST = 1e15  # seconds; far beyond any clock, and NaN is no JSON


class Phase(StrEnum):
    """How far the release on offer has come."""

    IDLE = "idle"
    AVAILABLE = "available"
    DOWNLOADING = "downloading"
    STAGED = "staged"
    FAILED = "failed"


@dataclass(frozen=True)
class Installed:
    """A release whose file is in the cache; ``path`` is relative to the cache folder."""

    manifest: Manifest
    path: str
    confirmed: bool = False

    @property
    def sha256(self) -> str:
        """Return the hash of the file."""
        return self.manifest.required_artifact().sha256

    @property
    def size_bytes(self) -> int:
        """Return the size of the file."""
        return self.manifest.required_artifact().size_bytes


@dataclass(frozen=True)
class Failure:
    """A release that failed here: it is left alone for a day, tried once more, then no more."""

    label: str
    sha256: str
    code: str
    failed_at: float
    count: int


@dataclass(frozen=True)
class State:
    """All that is remembered about one model. Times are seconds since 1970 (UTC)."""

    phase: Phase = Phase.IDLE
    offered: Manifest | None = None
    etag: str = ""
    checked_at: float | None = None
    retry_at: float | None = None
    staged: Installed | None = None
    active: Installed | None = None
    previous: Installed | None = None
    failures: tuple[Failure, ...] = ()
    revoked: frozenset[str] = frozenset()

    def pending(self) -> Manifest | None:
        """Return the manifest that asks for something other than what is in use, else None."""
        offered = self.offered
        if offered is None or offered.kind is Kind.NONE:
            return None
        if offered.kind is Kind.ROLLBACK_TO_EMBEDDED:
            return offered if self.active or self.staged else None
        active = self.active
        if active and _same_release(active.manifest, offered):
            return None
        return offered

    def held_back(self, now: float) -> str | None:
        """Say why the release on offer is not installed automatically, or return None."""
        offered = self.pending()
        if offered is None or offered.artifact is None:
            return None
        if offered.artifact.sha256 in self.revoked:
            return f"{offered.label} is revoked"
        for failure in self.failures:
            if failure.label == offered.label and failure.sha256 == offered.artifact.sha256:
                return _hold_back_reason(failure, now)
        return None

    def referenced(self) -> frozenset[str]:
        """Return the hashes of the files this state needs."""
        kept = (self.staged, self.active, self.previous)
        return frozenset(installed.sha256 for installed in kept if installed)

    def answered(self, manifest: Manifest, etag: str, now: float) -> State:
        """Take a new manifest: its offer, its revocations, and a retreat from a withdrawn stage."""
        state = replace(
            self,
            offered=manifest,
            etag=etag,
            checked_at=now,
            retry_at=None,
            revoked=manifest.revoked,
        ).without(manifest.revoked)
        if state.staged and not _same_release(state.staged.manifest, manifest):
            state = replace(state, staged=None)
        return state.settled()

    def unchanged(self, now: float) -> State:
        """Take a 304: what was offered is offered still."""
        return replace(self, checked_at=now, retry_at=None).settled()

    def nothing_offered(self, now: float) -> State:
        """Take a 204: there is nothing for this device; what is in use stays."""
        return replace(
            self,
            phase=Phase.IDLE,
            offered=None,
            etag="",
            checked_at=now,
            retry_at=None,
            staged=None,
        )

    def sent_away(self, until: float) -> State:
        """Remember Retry-After across restarts."""
        return replace(self, retry_at=until)

    def downloading(self) -> State:
        """Note that a transfer begins."""
        return replace(self, phase=Phase.DOWNLOADING)

    def with_staged(self, installed: Installed) -> State:
        """Note a verified file that may be activated."""
        return replace(self, phase=Phase.STAGED, staged=installed)

    def activated(self) -> State:
        """Put the staged release in use and keep the one before as the way back."""
        if self.staged is None:
            return self
        same_file = self.active and self.active.sha256 == self.staged.sha256
        previous = self.previous if same_file else self.active
        return replace(self, phase=Phase.IDLE, staged=None, active=self.staged, previous=previous)

    def rolled_back_to_embedded(self) -> State:
        """Put the embedded model in use; keep the file, the server may want it again."""
        return replace(
            self,
            phase=Phase.IDLE,
            staged=None,
            active=None,
            previous=self.active or self.previous,
        )

    def fallen_back(self, code: str, now: float) -> State:
        """Leave the active release, which failed, for the previous one, else the embedded one."""
        if self.active is None:
            return self
        artifact = self.active.manifest.required_artifact()
        state = self._with_failure(self.active.manifest.label, artifact.sha256, code, now)
        return replace(state, active=self.previous, previous=None, phase=Phase.FAILED)

    def failed(self, manifest: Manifest, code: str, now: float) -> State:
        """Note that the release on offer could not be installed; what is in use stays."""
        artifact = manifest.required_artifact()
        state = self._with_failure(manifest.label, artifact.sha256, code, now)
        return replace(state, phase=Phase.FAILED, staged=None)

    def confirmed(self) -> State:
        """Note that the app is content with the active release."""
        if self.active is None:
            return self
        failures = tuple(f for f in self.failures if f.label != self.active.manifest.label)
        return replace(self, active=replace(self.active, confirmed=True), failures=failures)

    def without(self, hashes: frozenset[str]) -> State:
        """Forget releases whose files are revoked, damaged or gone, falling back if need be."""
        previous = _unless_in(self.previous, hashes)
        active = _unless_in(self.active, hashes)
        if active is None and self.active is not None:
            active, previous = previous, None
        staged = _unless_in(self.staged, hashes)
        return replace(self, staged=staged, active=active, previous=previous)

    def settled(self) -> State:
        """Return the state with the phase that follows from the offer."""
        if self.staged:
            return replace(self, phase=Phase.STAGED)
        return replace(self, phase=Phase.AVAILABLE if self.pending() else Phase.IDLE)

    def _with_failure(self, label: str, sha256: str, code: str, now: float) -> State:
        count = 1 + sum(f.count for f in self.failures if (f.label, f.sha256) == (label, sha256))
        others = tuple(f for f in self.failures if (f.label, f.sha256) != (label, sha256))
        failure = Failure(label, sha256, code, now, count)
        return replace(self, failures=(*others, failure)[-_MAX_FAILURES_KEPT:])


def _same_release(one: Manifest, other: Manifest) -> bool:
    if one.artifact is None or other.artifact is None:
        return False
    return (one.label, one.artifact.sha256) == (other.label, other.artifact.sha256)


def _unless_in(installed: Installed | None, hashes: frozenset[str]) -> Installed | None:
    return None if installed is None or installed.sha256 in hashes else installed


def _hold_back_reason(failure: Failure, now: float) -> str | None:
    if failure.count >= MAX_TRIES:
        return f"{failure.label} failed {failure.count} times here ({failure.code})"
    # A clock that went back must not hold a release back for ever.
    if 0 <= now - failure.failed_at < HOLD_BACK_S:
        return f"{failure.label} failed here ({failure.code}) less than a day ago"
    return None


def encode_state(state: State) -> Document:
    """Return the state as the JSON object of ``state.json``."""
    return {
        "schema": SCHEMA,
        "phase": state.phase.value,
        "offered": state.offered.document if state.offered else None,
        "etag": state.etag,
        "checked_at": state.checked_at,
        "retry_at": state.retry_at,
        "staged": _encode_installed(state.staged),
        "active": _encode_installed(state.active),
        "previous": _encode_installed(state.previous),
        "failures": [
            {
                "label": failure.label,
                "sha256": failure.sha256,
                "code": failure.code,
                "failed_at": failure.failed_at,
                "count": failure.count,
            }
            for failure in state.failures
        ],
        "revoked": sorted(state.revoked),
    }


def decode_state(document: object) -> State:
    """Read the JSON object of ``state.json``; raise ValueError where it is not one of ours."""
    try:
        return _decode_state(cast("Document", document))
    except (InvalidManifestError, KeyError, TypeError, AttributeError) as error:
        message = f"not a state of this SDK: {error}"
        raise ValueError(message) from error


def _decode_state(document: Document) -> State:
    if document["schema"] != SCHEMA:
        message = f"schema {document['schema']!r}"
        raise ValueError(message)
    offered = document["offered"]
    return State(
        phase=Phase(cast("str", document["phase"])),
        offered=None if offered is None else parse_manifest(offered),
        etag=_text(document["etag"]),
        checked_at=_moment(document["checked_at"]),
        retry_at=_moment(document["retry_at"]),
        staged=_decode_installed(document["staged"]),
        active=_decode_installed(document["active"]),
        previous=_decode_installed(document["previous"]),
        failures=tuple(map(_decode_failure, cast("list[Document]", document["failures"]))),
        revoked=frozenset(map(_text, cast("list[object]", document["revoked"]))),
    )


def _encode_installed(installed: Installed | None) -> Document | None:
    if installed is None:
        return None
    return {
        "manifest": installed.manifest.document,
        "path": installed.path,
        "confirmed": installed.confirmed,
    }


def _decode_installed(document: object) -> Installed | None:
    if document is None:
        return None
    members = cast("Document", document)
    manifest = parse_manifest(members["manifest"])
    artifact = manifest.required_artifact()
    path = _text(members["path"])
    if path != f"blobs/sha256/{artifact.sha256[:2]}/{artifact.sha256}":
        message = f"path {path!r}"
        raise ValueError(message)
    return Installed(manifest, path, confirmed=members["confirmed"] is True)


def _decode_failure(document: Document) -> Failure:
    failed_at, count = _moment(document["failed_at"]), document["count"]
    if failed_at is None or not isinstance(count, int) or isinstance(count, bool):
        message = "a failure without time or count"
        raise ValueError(message)
    return Failure(
        _text(document["label"]),
        _text(document["sha256"]),
        _text(document["code"]),
        failed_at,
        count,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        message = f"{value!r} is not a text"
        raise TypeError(message)
    return value


def _moment(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LATEST:
        message = f"{value!r} is not a time"
        raise ValueError(message)
    return float(value)


class StateStore:
    """The states of all models of one server, channel and runtime, one folder per model."""

    def __init__(self, folder: Path, *, channel: str, runtime: str) -> None:
        """Use ``folder``; nothing is made until something is stored."""
        self._folder = folder
        self._variant = f"{channel}-{runtime}"
        self._memory: dict[str, State] = {}
        self._thread_lock = threading.RLock()

    def load(self, name: str) -> State:
        """Return the state of a model; a new one where there is none or both copies are torn."""
        with self._thread_lock:
            if name in self._memory:
                return self._memory[name]
        for path in (self._path(name), self._backup(name)):
            state = read_state(path)
            if state is not None:
                return state
        return State()

    def update(self, name: str, change: Callable[[State], State]) -> State:
        """Replace the state by ``change(state)`` and return it.

        Where the cache cannot be written, the new state lives in this process only.
        """
        with self._thread_lock:
            lock = self._acquire(name)
            try:
                old = self.load(name)
                new = change(old)
                if new != old:
                    self._save(name, old, new)
                return new
            finally:
                lock.release()

    def forget(self, name: str) -> None:
        """Remove what is remembered about a model. Raises StorageError."""
        with self._thread_lock:
            self._memory.pop(name, None)
            for path in (self._path(name), self._backup(name)):
                if not remove(path):
                    message = f"{path} could not be removed."
                    raise StorageError(message)

    def names(self) -> list[str]:
        """Return the models something is remembered about."""
        found = {path.parent.parent.name for path in self._folder.glob(f"*/{self._variant}/*.json")}
        return sorted(found | set(self._memory))

    def _acquire(self, name: str) -> FileLock:
        """Take the lock between processes; go ahead without it rather than wait for ever."""
        lock = FileLock(self._path(name).with_name("state.lock"))
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not lock.try_acquire() and time.monotonic() < deadline:
            time.sleep(0.005)
        return lock

    def _save(self, name: str, old: State, new: State) -> None:
        content = json.dumps(encode_state(new), indent=1).encode()
        try:
            write_atomically(self._path(name), content)
            if new.active != old.active or not self._backup(name).exists():
                write_atomically(self._backup(name), content)
        except StorageError as error:
            log.warning("The state of %s is kept in memory only. %s", name, error)
            self._memory[name] = new
        else:
            self._memory.pop(name, None)

    def _path(self, name: str) -> Path:
        return self._folder / name / self._variant / "state.json"

    def _backup(self, name: str) -> Path:
        return self._folder / name / self._variant / "state.backup.json"


def read_state(path: Path) -> State | None:
    """Return the state in a file, None where it is absent, torn or not ours."""
    try:
        return decode_state(parse_json(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, InvalidManifestError) as error:
        log.warning("%s is damaged and not used: %s", path, error)
        return None


def states_below(cache_root: Path) -> Iterator[State | None]:
    """Read every state in a cache folder, of all servers; None for one that cannot be read."""
    for path in cache_root.glob("servers/*/models/*/*/state.json"):
        yield read_state(path)

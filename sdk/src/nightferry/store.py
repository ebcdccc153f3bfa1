"""How states lie on disk: ``state.json``, replaced as a whole, and a copy of the last that counts.

A second copy is kept of every state that changed what may be run: if the first is torn, the model
in use is still known, also offline. States of the format before signed metadata are taken over:
what was in use stays in use; what was only staged is authorised anew.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, cast

from nightferry import log
from nightferry.errors import InvalidManifestError, StorageError
from nightferry.files import FileLock, remove, write_atomically
from nightferry.manifest import Document, parse_json, parse_manifest
from nightferry.models import Transfer
from nightferry.state import Failure, Installed, Phase, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SCHEMA = 2
_UNSIGNED_SCHEMA = 1
_LOCK_WAIT_S = 2.0
_LATEST = 1e15  # seconds; far beyond any clock, and NaN is no JSON
_MOST = 1 << 53  # counts and sizes; JSON readers agree up to here


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
        for path in (self.path_of(name), self._backup(name)):
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
            for path in (self.path_of(name), self._backup(name)):
                if not remove(path):
                    message = f"{path} could not be removed."
                    raise StorageError(message)

    def names(self) -> list[str]:
        """Return the models something is remembered about."""
        found = {path.parent.parent.name for path in self._folder.glob(f"*/{self._variant}/*.json")}
        return sorted(found | set(self._memory))

    def path_of(self, name: str) -> Path:
        """Return where the state of a model lies, or would lie."""
        return self._folder / name / self._variant / "state.json"

    def _acquire(self, name: str) -> FileLock:
        """Take the lock between processes; go ahead without it rather than wait for ever."""
        lock = FileLock(self.path_of(name).with_name("state.lock"))
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not lock.try_acquire() and time.monotonic() < deadline:
            time.sleep(0.005)
        return lock

    def _save(self, name: str, old: State, new: State) -> None:
        content = json.dumps(encode_state(new), indent=1).encode()
        try:
            write_atomically(self.path_of(name), content)
            if _essence(new) != _essence(old) or not self._backup(name).exists():
                write_atomically(self._backup(name), content)
        except StorageError as error:
            log.warning("The state of %s is kept in memory only. %s", name, error)
            self._memory[name] = new
        else:
            self._memory.pop(name, None)

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


def _essence(state: State) -> object:
    """Return what the copy must not lack."""
    return (state.active, state.previous, state.pinned, state.floor, state.revoked)


# Encoding


def encode_state(state: State) -> Document:
    """Return the state as the JSON object of ``state.json``."""
    return {
        "schema": SCHEMA,
        "phase": state.phase.value,
        "offered": state.offered.document if state.offered else None,
        "etag": state.etag,
        "checked_at": state.checked_at,
        "retry_at": state.retry_at,
        "refreshed_at": state.refreshed_at,
        "repository": state.repository,
        "floor": state.floor,
        "revoked": sorted(state.revoked),
        "embedded_ordered": state.embedded_ordered,
        "staged": _encode_installed(state.staged),
        "active": _encode_installed(state.active),
        "previous": _encode_installed(state.previous),
        "pinned": [_encode_installed(installed) for installed in state.pinned],
        "failures": [_encode_failure(failure) for failure in state.failures],
        "transfer": _encode_transfer(state.transfer),
    }


def _encode_installed(installed: Installed | None) -> Document | None:
    if installed is None:
        return None
    return {
        "manifest": installed.manifest.document,
        "path": installed.path,
        "counter": installed.counter,
        "mandatory": installed.mandatory,
        "tests": installed.tests,
        "is_ready": installed.is_ready,
        "confirmed": installed.confirmed,
        "starts": installed.starts,
        "ends": installed.ends,
        "successes": installed.successes,
        "inferred": installed.inferred,
    }


def _encode_failure(failure: Failure) -> Document:
    return {
        "label": failure.label,
        "sha256": failure.sha256,
        "code": failure.code,
        "failed_at": failure.failed_at,
        "count": failure.count,
    }


def _encode_transfer(transfer: Transfer | None) -> Document | None:
    if transfer is None:
        return None
    return {
        "label": transfer.label,
        "received_bytes": transfer.received_bytes,
        "resumed_bytes": transfer.resumed_bytes,
        "size_bytes": transfer.size_bytes,
        "by_patch": transfer.by_patch,
        "patch_error": transfer.patch_error,
    }


# Decoding


def decode_state(document: object) -> State:
    """Read the JSON object of ``state.json``; raise ValueError where it is not one of ours."""
    try:
        members = cast("Document", document)
        if members["schema"] == _UNSIGNED_SCHEMA:
            members = _with_signed_members(members)
        return _decode_state(members)
    except (InvalidManifestError, KeyError, TypeError, AttributeError) as error:
        message = f"not a state of this SDK: {error}"
        raise ValueError(message) from error


def _with_signed_members(old: Document) -> Document:
    """Take over a state from before signed metadata.

    What was in use then counts as confirmed, and revocations hold until signed ones come.
    """
    members: Document = {**old, "schema": SCHEMA, "refreshed_at": None, "floor": 0}
    members |= {"embedded_ordered": False, "staged": None, "pinned": [], "transfer": None}
    for slot in ("active", "previous"):
        installed = old[slot]
        if installed is not None:
            grown = {"counter": 0, "mandatory": False, "tests": 0, "starts": 0, "successes": 0}
            grown |= {"is_ready": True, "confirmed": True}
            members[slot] = {**cast("Document", installed), **grown}
    if members["phase"] == "staged":
        members["phase"] = "available"
    return members


def _decode_state(document: Document) -> State:
    if document["schema"] != SCHEMA:
        message = f"schema {document['schema']!r}"
        raise ValueError(message)
    offered = document["offered"]
    pinned = map(_decode_installed, cast("list[object]", document["pinned"]))
    return State(
        phase=Phase(cast("str", document["phase"])),
        offered=None if offered is None else parse_manifest(offered),
        etag=_text(document["etag"]),
        checked_at=_moment(document["checked_at"]),
        retry_at=_moment(document["retry_at"]),
        refreshed_at=_moment(document["refreshed_at"]),
        repository=_text(document.get("repository", "")),
        floor=_count(document["floor"]),
        revoked=frozenset(map(_text, cast("list[object]", document["revoked"]))),
        embedded_ordered=document["embedded_ordered"] is True,
        staged=_decode_installed(document["staged"]),
        active=_decode_installed(document["active"]),
        previous=_decode_installed(document["previous"]),
        pinned=tuple(installed for installed in pinned if installed is not None),
        failures=tuple(map(_decode_failure, cast("list[Document]", document["failures"]))),
        transfer=_decode_transfer(document["transfer"]),
    )


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
    return Installed(
        manifest,
        path,
        counter=_count(members["counter"]),
        mandatory=members["mandatory"] is True,
        tests=_count(members["tests"]),
        is_ready=members["is_ready"] is True,
        confirmed=members["confirmed"] is True,
        starts=_count(members["starts"]),
        ends=_count(members.get("ends", 0)),
        successes=_count(members["successes"]),
        inferred=_text(members.get("inferred", "")),
    )


def _decode_failure(document: Document) -> Failure:
    failed_at = _moment(document["failed_at"])
    if failed_at is None:
        message = "a failure without a time"
        raise ValueError(message)
    return Failure(
        _text(document["label"]),
        _text(document["sha256"]),
        _text(document["code"]),
        failed_at,
        _count(document["count"]),
    )


def _decode_transfer(document: object) -> Transfer | None:
    if document is None:
        return None
    members = cast("Document", document)
    return Transfer(
        label=_text(members["label"]),
        received_bytes=_count(members["received_bytes"]),
        resumed_bytes=_count(members["resumed_bytes"]),
        size_bytes=_count(members["size_bytes"]),
        by_patch=members["by_patch"] is True,
        patch_error=_text(members["patch_error"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        message = f"{value!r} is not a text"
        raise TypeError(message)
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        message = f"{value!r} is not a count"
        raise ValueError(message)
    return value


def _moment(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LATEST:
        message = f"{value!r} is not a time"
        raise ValueError(message)
    return float(value)

"""The disk of a simulated installation, in memory: states, events, and which files it has."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from nightferry.cache import BlobCache
from nightferry.events import MAX_QUEUED
from nightferry.state import State
from nightferry.store import StateStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from nightferry.manifest import Document

# A folder that cannot be made: whatever the SDK would still put on a disk finds none there.
_NOWHERE = Path(os.devnull) / "simulated"


class MemoryStates(StateStore):
    """The states of one installation. ``start_process`` begins another process of its app."""

    def __init__(self, device: str, *, channel: str, runtime: str) -> None:
        """Start with nothing remembered."""
        super().__init__(_NOWHERE / device, channel=channel, runtime=runtime)
        self._device = device
        self._states: dict[str, State] = {}
        self._processes = 0

    def start_process(self) -> None:
        """Begin another process: a trial counts starts by where the states lie."""
        self._processes += 1

    def load(self, name: str) -> State:
        """Return the state of a model."""
        return self._states.get(name, _NEW)

    def update(self, name: str, change: Callable[[State], State]) -> State:
        """Replace the state; one thread at a time uses an installation."""
        new = self._states[name] = change(self.load(name))
        return new

    def forget(self, name: str) -> None:
        """Remove what is remembered about a model."""
        self._states.pop(name, None)

    def names(self) -> list[str]:
        """Return the models something is remembered about."""
        return sorted(self._states)

    def path_of(self, name: str) -> Path:
        """Return a place that is this process's alone, and on no disk."""
        return _NOWHERE / f"{self._device}-{self._processes}" / name / "state.json"


_NEW = State()


class DeviceCache(BlobCache):
    """Which files an installation has; their bytes are kept by nobody.

    No file lies where one would, so updates come whole and not by patch, and self-tests find
    nothing to run.
    """

    def __init__(self, states: StateStore) -> None:
        """Start empty."""
        super().__init__(_NOWHERE)
        self._states = states
        self._sizes: dict[str, int] = {}

    def put(self, sha256: str, size_bytes: int) -> None:
        """Note that the file is here, verified."""
        self._sizes[sha256] = size_bytes

    def has(self, sha256: str, size_bytes: int) -> bool:
        """Tell whether the file is here."""
        return self._sizes.get(sha256) == size_bytes

    def touch(self, sha256: str) -> None:
        """Note nothing: nobody asks when a file was used."""

    def remove(self, sha256: str) -> bool:
        """Forget the file unless a state needs it; elsewhere that is read from the disk."""
        if any(sha256 in self._states.load(n).referenced() for n in self._states.names()):
            return False
        self._sizes.pop(sha256, None)
        return True

    def discard_partials(self, sha256: str) -> None:
        """Do nothing: transfers leave no pieces here."""


class MemoryEvents:
    """Events that wait, as an EventStore; tells ``on_record`` of each."""

    def __init__(self, on_record: Callable[[Document], None]) -> None:
        """Start empty."""
        self._waiting: list[Document] = []
        self._on_record = on_record
        self._lock = threading.Lock()

    def append(self, event: Document) -> None:
        """Keep one more event, and never more than the SDK would."""
        with self._lock:
            self._waiting.append(event)
            if len(self._waiting) > MAX_QUEUED:
                message = "a simulated installation queued more events than the SDK keeps"
                raise RuntimeError(message)
        self._on_record(event)

    def read(self) -> list[Document]:
        """Return what waits."""
        return list(self._waiting)

    def drop(self, event_ids: Collection[object]) -> None:
        """Forget these."""
        with self._lock:
            self._waiting = [one for one in self._waiting if one["event_id"] not in event_ids]

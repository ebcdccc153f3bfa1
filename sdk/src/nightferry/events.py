"""The queue of facts for the server: on disk, bounded, and deleted only when the server has them.

One JSON object per line. Every event has a random ``event_id``, so that sending one twice changes
nothing. Events hold the installation's random id, the model and what happened; no image, no
prediction, nothing of a person.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from nightferry import log
from nightferry.embedded import UNNAMED_LABEL
from nightferry.errors import (
    InvalidManifestError,
    ProtocolError,
    RequestRefusedError,
    StorageError,
    UnauthorizedError,
)
from nightferry.files import FileLock, storing, write_atomically
from nightferry.latency import Latencies
from nightferry.manifest import Document, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from nightferry.models import Enrolment, Model
    from nightferry.transport import Answer

MAX_BATCH = 100
MAX_QUEUED = 2000
_TRIM_TO = 1800
_LOCK_WAIT_S = 2.0
_MAX_TEXT = 300
_MAX_CLASS = 40
_MAX_TIMED = 500

ALL_BP = 10_000
SAMPLED = frozenset({"feedback", "latency", "benchmark"})
"""What counts no installations, and so may be left to a share of them."""


@dataclass(frozen=True)
class Nothing:
    """What an installation runs that has no model at all, and may be in an arm all the same."""

    name: str
    enrolment: Enrolment | None
    label: str = ""
    version: int = 0
    sha256: str = ""


class EventStore(Protocol):
    """Where events wait. Raises StorageError where it cannot keep one."""

    def append(self, event: Document) -> None:
        """Keep one more event."""

    def read(self) -> list[Document]:
        """Return what waits, the oldest first."""

    def drop(self, event_ids: Collection[object]) -> None:
        """Forget these."""


class EventFile:
    """Events in a file, one line each. Shared by threads and processes."""

    def __init__(self, path: Path) -> None:
        """Use the file ``path``; it is made with the first event."""
        self._path = path
        self._thread_lock = threading.Lock()

    def append(self, event: Document) -> None:
        """Write one line; where too many wait, the oldest go."""
        line = json.dumps(event, separators=(",", ":")).encode()
        with self._locked():
            with storing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                # A line torn by a kill is ended first, so that it spoils no other.
                with self._path.open("ab") as file:
                    file.write(b"\n" + line + b"\n")
            if self._path.stat().st_size > MAX_QUEUED * 200:
                waiting = self.read()
                if len(waiting) > MAX_QUEUED:
                    self._write(waiting[-_TRIM_TO:])

    def read(self) -> list[Document]:
        """Return what waits; torn lines are passed over."""
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return []
        return [event for line in lines if (event := _decode(line)) is not None]

    def drop(self, event_ids: Collection[object]) -> None:
        """Write the file anew without these."""
        with self._locked():
            self._write([event for event in self.read() if event["event_id"] not in event_ids])

    def _write(self, events: list[Document]) -> None:
        lines = [json.dumps(event, separators=(",", ":")).encode() + b"\n" for event in events]
        write_atomically(self._path, b"".join(lines), durable=False)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._thread_lock:
            lock = FileLock(self._path.with_name(f".{self._path.name}.lock"))
            deadline = time.monotonic() + _LOCK_WAIT_S
            while not lock.try_acquire() and time.monotonic() < deadline:
                time.sleep(0.005)
            try:
                yield
            finally:
                lock.release()


class EventQueue:
    """Events on their way to the server. May be used from any thread."""

    def __init__(
        self,
        store: EventStore,
        *,
        channel: str,
        device: Callable[[], str],
        enabled: bool,
        device_class: str | None = None,
        sample_bp: Callable[[str], int] = lambda _model: ALL_BP,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Queue in ``store``; record and send nothing unless ``enabled``.

        ``sample_bp`` returns for a model the share of installations, in basis points, that report
        what may be sampled; ``now`` returns seconds since 1970 (UTC).
        """
        self._store = store
        self._channel = channel
        self._device = device
        self._enabled = enabled
        self._device_class = device_class
        self._sample_bp = sample_bp
        self._now = now
        self._latencies = Latencies()
        self._one_sender = threading.Lock()

    def record(self, kind: str, model: Model | Nothing, data: Document | None = None) -> None:
        """Queue one fact about a model. Never raises: telemetry may not stop the app."""
        if not self._enabled:
            return
        sample_bp = self._sample_bp(model.name) if kind in SAMPLED else ALL_BP
        if sample_bp < ALL_BP and not is_sampled(self._device(), sample_bp):
            return
        import uuid
        from datetime import UTC, datetime

        now = datetime.fromtimestamp(self._now(), UTC)
        event: Document = {
            "event_id": str(uuid.uuid4()),
            "device": self._device(),
            "type": kind,
            "channel": self._channel,
            **_facts(model),
            "occurred_at": now.isoformat(timespec="milliseconds"),
            "data": {key: _tellable(value) for key, value in (data or {}).items()},
        }
        if self._device_class:
            event["device_class"] = self._device_class[:_MAX_CLASS]
        if sample_bp < ALL_BP:
            event["sample_bp"] = sample_bp
        try:
            self._store.append(event)
        except StorageError as error:
            log.debug("An event could not be queued: %s", error)

    def time(self, model: Model, latency_ms: float, limit_ms: float | None = None) -> None:
        """Count how long a prediction took, in milliseconds; told with the next batch."""
        if self._enabled and self._latencies.add(model, latency_ms, limit_ms) >= _MAX_TIMED:
            self.record_latencies()

    def record_latencies(self) -> None:
        """Queue what was timed since the last time."""
        for model, data in self._latencies.take():
            self.record("latency", model, data)

    def count(self) -> int:
        """Return how many events wait."""
        return len(self._store.read())

    def flush(self, post: Callable[[str, object], Answer]) -> int:
        """Send everything that waits; return how many events the server took or refused for good.

        Raises NetworkError, UnauthorizedError, ProtocolError: what was not taken stays queued.
        """
        done = 0
        self.record_latencies()
        with self._one_sender:
            while self._enabled and (batch := self._store.read()[:MAX_BATCH]):
                self._deliver(post, batch)
                self._store.drop({event["event_id"] for event in batch})
                done += len(batch)
        return done

    def _deliver(self, post: Callable[[str, object], Answer], batch: list[Document]) -> None:
        """Send a batch; where the server refuses it whole, find the event it cannot take."""
        try:
            answer = post("/events", {"events": batch})
        except UnauthorizedError:
            raise
        except RequestRefusedError as error:
            if len(batch) == 1:
                log.warning("The server refused an event for good: %s", error)
                return
            middle = len(batch) // 2
            self._deliver(post, batch[:middle])
            self._deliver(post, batch[middle:])
            return
        if answer.status != 202:  # noqa: PLR2004
            message = f"Events were answered with status {answer.status}; they stay queued."
            raise ProtocolError(message)
        _report_rejected(answer.document, batch)


def _facts(model: Model | Nothing) -> Document:
    enrolment = model.enrolment
    return {
        "model": model.name,
        # The server knows the model inside the app by an empty label.
        "label": "" if model.label == UNNAMED_LABEL else model.label,
        "version": model.version,
        "sha256": model.sha256,
        "enrolment": {"rollout": enrolment.rollout, "arm": enrolment.arm} if enrolment else None,
    }


def is_sampled(device: str, sample_bp: int) -> bool:
    """Tell whether an installation is in a share of all, given in basis points.

    Its id is random, so the same ones are in at any time, and those of a smaller share also in a
    larger one.
    """
    from uuid import UUID

    return UUID(device).int % ALL_BP < sample_bp


def _decode(line: bytes) -> Document | None:
    """Return the event on a line, None for an empty, torn or foreign one."""
    if not line.strip():
        return None
    try:
        event = parse_json(line)
    except InvalidManifestError:
        return None
    return event if isinstance(event.get("event_id"), str) else None


def _report_rejected(answer: Document, batch: list[Document]) -> None:
    rejected = answer.get("rejected")
    for entry in cast("list[Document]", rejected) if isinstance(rejected, list) else []:
        index = entry.get("index") if isinstance(entry, dict) else None
        if isinstance(index, int) and 0 <= index < len(batch):
            kind, code = batch[index].get("type"), entry.get("code")
            log.warning("The server does not take an event of type %s: %s.", kind, code)


def _tellable(value: object) -> object:
    """Return text shortened, and without the name of the person that folders often bear."""
    if not isinstance(value, str):
        return value
    import os

    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home raises where there is none
    if len(home) > 1:
        value = value.replace(home, "~")
    # Some databases cannot hold NUL in text.
    return value[:_MAX_TEXT].replace("\0", "")

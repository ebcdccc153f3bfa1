"""Single flight: callers who want the same thing at the same time share one try at it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from nightferry import log
from nightferry.errors import DownloadInterruptedError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    Progress = Callable[[int, int], object]

T = TypeVar("T")


class Flights(Generic[T]):
    """Work under way, by key."""

    def __init__(self) -> None:
        """Start with nothing under way."""
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, _Flight[T]] = {}

    def run(
        self,
        key: Hashable,
        work: Callable[[Progress], T],
        progress: Progress | None = None,
    ) -> T:
        """Do ``work``, or join whoever does it under this key; same result, same exception.

        ``progress`` hears of the bytes either way.
        """
        with self._lock:
            flight = self._under_way.get(key)
            leads = flight is None
            if flight is None:
                flight = self._under_way[key] = _Flight()
            if progress is not None:
                flight.listeners.append(progress)
        if not leads:
            return flight.wait()
        try:
            flight.result = work(flight.report)
            flight.error = None
        except Exception as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                del self._under_way[key]
            flight.landed.set()
        return flight.result


class _Flight(Generic[T]):
    def __init__(self) -> None:
        self.landed = threading.Event()
        self.listeners: list[Progress] = []
        self.result: T
        # Stands until the leader ends in order; a Ctrl-C in its thread is not for the others.
        self.error: Exception | None = DownloadInterruptedError("The download was cancelled.")

    def wait(self) -> T:
        self.landed.wait()
        if self.error is not None:
            raise self.error
        return self.result

    def report(self, done_bytes: int, total_bytes: int) -> None:
        """Tell every listener; one that raises is told no more, the download goes on."""
        for listener in tuple(self.listeners):
            try:
                listener(done_bytes, total_bytes)
            except Exception:  # noqa: BLE001 - the app's code may raise anything
                log.exception("A progress callback failed; the download goes on without it.")
                self.listeners.remove(listener)

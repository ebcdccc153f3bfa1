"""One process that keeps several running: restarts what dies, and takes all along when it ends."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from server.jobs.processes import GuardedProcess

_POLL_S = 0.1
_LONGEST_LINE = 8192
# A process that ran this long was well; the next start does not wait.
_WELL_AFTER_S = 60.0
_LONGEST_WAIT_S = 30.0


@dataclass(frozen=True)
class Service:
    """A program to keep running, and the signal that ends it in good order."""

    name: str
    argv: tuple[str, ...]
    stop_signal: signal.Signals = signal.SIGTERM


class Supervisor:
    """Runs services until it is told to stop."""

    def __init__(self, services: Sequence[Service], *, folder: Path, grace_s: float = 8.0) -> None:
        """Prepare to run ``services`` in ``folder``; stopping takes ``grace_s`` at most."""
        width = max((len(service.name) for service in services), default=0)
        self._keepers = [_Keeper(service, folder, width) for service in services]
        self._grace_s = grace_s
        self._stopping = threading.Event()
        self._hurried = threading.Event()

    def stop(self) -> None:
        """Ask the supervisor to end; asked twice, it does not wait for anyone."""
        if self._stopping.is_set():
            self._hurried.set()
        self._stopping.set()

    def run(self, *, on_tick: Callable[[], None] = lambda: None) -> None:
        """Keep every service running until :meth:`stop` or a signal; then end them all."""
        with self._obeying_signals():
            try:
                while not self._stopping.wait(_POLL_S):
                    for keeper in self._keepers:
                        keeper.tend()
                    on_tick()
            finally:
                self._end_all()

    def _end_all(self) -> None:
        """Ask all services at once, wait, and kill those that stay."""
        for keeper in self._keepers:
            keeper.ask_to_stop()
        deadline = time.monotonic() + self._grace_s
        while any(keeper.is_running() for keeper in self._keepers):
            if time.monotonic() > deadline or self._hurried.wait(_POLL_S):
                break
        for keeper in self._keepers:
            keeper.kill()

    @contextlib.contextmanager
    def _obeying_signals(self) -> Iterator[None]:
        """Stop on Ctrl-C, on a polite kill, and when the terminal goes away."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Keeper:
    """Keeps one service running."""

    def __init__(self, service: Service, folder: Path, width: int) -> None:
        """Start nothing yet."""
        self._service = service
        self._folder = folder
        self._prefix = f"{service.name:<{width}} | "
        self._process: GuardedProcess | None = None
        self._copying: threading.Thread | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self._wait_s = 0.0

    def tend(self) -> None:
        """Start the service when it is time; notice when it has died."""
        if self._process is None:
            if time.monotonic() >= self._start_at:
                self._start()
        elif (status := self._process.wait(0)) is not None:
            self._process = None
            self._plan_restart(status)

    def is_running(self) -> bool:
        """Whether the service's process is still there."""
        return self._process is not None and self._process.wait(0) is None

    def ask_to_stop(self) -> None:
        """Send the service the signal that it ends on in good order."""
        if self.is_running() and self._process is not None:
            self._process.stop(self._service.stop_signal)

    def kill(self) -> None:
        """End what is left of the service."""
        if self._process is not None:
            if self.is_running():
                self._say("did not end in time; killed")
            self._process.kill()
        if self._copying is not None:
            self._copying.join(timeout=1)

    def _start(self) -> None:
        """Start the process and pass its output on."""
        self._process = GuardedProcess(self._service.argv, cwd=self._folder)
        self._started_at = time.monotonic()
        self._say(f"started, process {self._process.pid}")
        self._copying = threading.Thread(
            target=self._copy, args=(self._process.output,), daemon=True
        )
        self._copying.start()

    def _plan_restart(self, status: int) -> None:
        """Wait longer after each early death, up to half a minute."""
        well = time.monotonic() - self._started_at >= _WELL_AFTER_S
        self._wait_s = 0.5 if well or not self._wait_s else min(self._wait_s * 2, _LONGEST_WAIT_S)
        self._start_at = time.monotonic() + self._wait_s
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        self._say(f"ended {how}; starts again in {self._wait_s:g} s")

    def _copy(self, stream: IO[bytes]) -> None:
        """Print the service's lines under its name."""
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                self._say(line.decode("utf-8", "replace").rstrip("\n"))

    def _say(self, text: str) -> None:
        """Print one line; a reader that has gone away is no reason to stop serving."""
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(f"{self._prefix}{text}\n")
            sys.stdout.flush()

"""Processes that cannot outlive the one that started them.

Each runs in a process group led by a tiny guard: a shell that waits on a pipe whose other end
only the starter holds. When the starter dies, however it dies, the pipe ends and the guard
kills its whole group, grandchildren included. Nothing inside the started program has to help,
so a program that is stuck in native code goes as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_GUARD = "trap '' HUP INT QUIT TERM; read -r _; kill -KILL 0"


class GuardedProcess:
    """A child process whose group ends with it, or with us."""

    def __init__(
        self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start ``argv`` with its output, errors included, readable at :attr:`output`."""
        lifeline, self._lifeline = os.pipe()
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD],
                stdin=lifeline,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        finally:
            os.close(lifeline)
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=env,
                process_group=self._guard.pid,
            )
        except OSError:
            self._end_group()
            raise

    @property
    def pid(self) -> int:
        """The process id of the program, not of its guard."""
        return self._process.pid

    @property
    def output(self) -> IO[bytes]:
        """What the program and its descendants write, as one stream."""
        stream = self._process.stdout
        assert stream is not None  # noqa: S101 - it was asked for above
        return stream

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit status (negative: the signal), or None when it still runs.

        Once it has ended, so has everything it started.
        """
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._end_group()
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask the program to end."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the program and all it started, now."""
        self._process.kill()
        self._process.wait()
        self._end_group()

    def _end_group(self) -> None:
        """Kill what is left of the group; its id is ours as long as the guard is not reaped."""
        if self._guard.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.wait()
        os.close(self._lifeline)

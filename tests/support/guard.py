"""Runs one command and ends it when the parent process ends, however the parent ended.

Usage: ``python guard.py SIGNAL USER FOLDER COMMAND…``. The parent holds the writing end of our
standard input: end of file means "stop", whether it was closed in good order or by a kill.
``SIGNAL`` is the command's signal for a clean stop, ``USER`` a user to run as, or ``-``, and
``FOLDER`` what is left to remove where the parent was killed and cannot.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys

GRACE_S = 10
POLL_MS = 200


def main(arguments: list[str]) -> int:
    """Run the command until it ends or the parent does; return its exit status."""
    stop_signal, user, folder, *command = arguments
    parent = os.getppid()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # A Ctrl-C in the terminal reaches the guard too; only end of file is a reason to stop.
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        user=None if user == "-" else user,
        group=None if user == "-" else user,
        extra_groups=None if user == "-" else [],
        restore_signals=True,
        preexec_fn=_restore_signals,  # noqa: PLW1509 - no threads here
    )
    poller = select.poll()
    poller.register(0, select.POLLIN | select.POLLHUP)
    while child.poll() is None:
        if poller.poll(POLL_MS) and not os.read(0, 1):
            status = _stop(child, signal.Signals[stop_signal])
            if os.getppid() != parent:
                shutil.rmtree(folder, ignore_errors=True)
            return status
    _end_group(child)
    return child.returncode


def _restore_signals() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(signal.Signals[name], signal.SIG_DFL)


def _stop(child: subprocess.Popen[bytes], stop_signal: signal.Signals) -> int:
    child.send_signal(stop_signal)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    _end_group(child)
    return child.wait()


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End whatever the command left behind in its own process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

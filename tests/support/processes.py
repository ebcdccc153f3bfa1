"""Starting and stopping real server processes on the loopback interface."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
HOST = "127.0.0.1"
# Below the range from which the kernel takes ports for outgoing connections.
PORTS = range(20_000, 32_000)
START_LIMIT_S = 90.0
STOP_LIMIT_S = 20.0


class ServiceFailed(RuntimeError):
    """A service did not start; the message ends with what it printed."""


def free_port() -> int:
    """Return a loopback port nobody listens on, below 32768."""
    for _ in range(200):
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    message = f"no free port between {PORTS.start} and {PORTS.stop}"
    raise ServiceFailed(message)


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    *,
    log: Path,
    ready: Callable[[], bool],
    stop_signal: str = "SIGTERM",
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` under a guard for the length of the block, with ``log`` in its own folder.

    The process yielded is the guard: closing its standard input ends the service, and so does
    the death of this process. Raises `ServiceFailed` when ``ready`` stays false.
    """
    with log.open("ab") as output:
        guard = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                GUARD,
                stop_signal,
                user or "-",
                log.parent,
                *map(str, command),
            ],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
        )
    try:
        _wait_until_ready(guard, ready, log)
        yield guard
    finally:
        _stop(guard)


def _wait_until_ready(guard: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not ready():
        if guard.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-3000:]
            message = f"{log.stem} did not start; its log ends:\n{said}"
            raise ServiceFailed(message)
        time.sleep(0.02)


def _stop(guard: subprocess.Popen[bytes]) -> None:
    if guard.stdin is not None:
        guard.stdin.close()
    try:
        guard.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()


def listens(port: int) -> bool:
    """Tell whether something accepts connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def answers_http(port: int, path: str = "/") -> bool:
    """Tell whether something on a loopback port speaks HTTP, whatever the status."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True

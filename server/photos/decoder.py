"""The process that opens photos, so that a hostile one costs a process and never the server.

``python -m server.photos.decoder`` waits on its standard input, a Unix socket, for requests:
one line of JSON with two file descriptors beside it, the upload and an empty file for the
result. Each photo gets a fork of its own with limits on memory, processor time, wall time and
file size, so that nothing survives from one photo to the next. The answer is one line of JSON
with the fork's exit status; what it found lies in the result file: a line of JSON, then the JPEG.

Started by ``server.photos.intake`` with an environment that holds no secrets.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
from typing import Any

from server.photos import pixels

MAX_MESSAGE_BYTES = 4096
_MAX_RESULT_BYTES = 64 * 2**20
_MAX_OPEN_FILES = 32


def main() -> None:
    """Serve requests until the other side closes the socket."""
    # Ctrl-C reaches the whole process group; this process ends when its parent lets go.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    with socket.socket(fileno=os.dup(0)) as channel:
        while message := _receive(channel):
            line, descriptors = message
            status = _run_in_fork(channel, json.loads(line), *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            channel.sendall(json.dumps({"status": status}).encode() + b"\n")


def _receive(channel: socket.socket) -> tuple[bytes, list[int]] | None:
    """Return one request, None at the end."""
    line, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE_BYTES, 2)
    while line and not line.endswith(b"\n"):
        line += channel.recv(MAX_MESSAGE_BYTES)
    return (line, descriptors) if line else None


def _run_in_fork(channel: socket.socket, limits: dict[str, Any], upload: int, result: int) -> int:
    """Decode in a fork; return its wait status."""
    child = os.fork()
    if child == 0:
        try:
            # Only this process may answer: the fork keeps no way to the server but its files.
            channel.close()
            os.close(0)
            _bound(limits)
            _decode(limits, upload, result)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def _bound(limits: dict[str, Any]) -> None:
    """Let the kernel end this process when it takes more than it may."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    signal.setitimer(signal.ITIMER_REAL, limits["wall_s"])
    for kind, value in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_FSIZE, _MAX_RESULT_BYTES),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        # macOS knows the limit on address space but refuses to set it.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def _decode(limits: dict[str, Any], upload: int, result: int) -> None:
    """Write what was found to the result file and end the process."""
    jpeg = b""
    with os.fdopen(upload, "rb", closefd=False) as file:
        try:
            found, jpeg = pixels.examine(file, limits)
        except pixels.Refusal as refusal:
            found = {"refused": refusal.code, "facts": refusal.facts}
        except MemoryError:
            found = {"refused": "too_complex", "facts": {}}
        except Exception:  # noqa: BLE001 - decoders raise anything at all on damaged files
            found = {"refused": "damaged_image", "facts": {}}
    with os.fdopen(result, "wb", closefd=False) as file:
        file.write(json.dumps(found).encode() + b"\n" + jpeg)
    os._exit(0)


if __name__ == "__main__":
    main()

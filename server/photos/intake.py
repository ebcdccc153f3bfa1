"""The gate every photo passes: bounds, decoding in a process that may be lost, fingerprints.

Nothing here opens an image. The work is done by ``server.photos.decoder``, a helper that forks
once per photo; the server learns the result, or that the fork was killed.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from server.domain.errors import Unavailable
from server.photos.refusals import PhotoRejected, rejection

__all__ = ["Intake", "Limits", "PhotoRejected", "bounded_sha256", "examine"]

_ROOT = Path(__file__).resolve().parents[2]
_CHUNK_BYTES = 2**20
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
# How long a photo may wait for a helper, and how much longer than its own limit one may take.
_QUEUE_S = 30.0
_GRACE_S = 5.0
_MAX_HELPERS = 4


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one photo. 80 megapixels take a 64-megapixel phone's photo, not a panorama."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 80_000_000
    min_side_px: int = 64
    long_side_px: int = 2048
    refuse_blurred: bool = True
    memory_bytes: int = 3 * 2**29
    cpu_s: int = 10
    wall_s: float = 20.0


@dataclass(frozen=True, kw_only=True)
class Intake:
    """A photo that may be stored: clean bytes, and what was measured on the way."""

    jpeg_bytes: bytes
    sha256: str
    source_sha256: str
    width: int
    height: int
    format: str
    dhash: str
    thumb: bytes
    blur_variance: float
    exposure: dict[str, float]
    notes: list[str]
    camera: str = ""


def examine(source: Path | IO[bytes], *, limits: Limits) -> Intake:
    """Check, decode, turn upright and re-encode one photo.

    Raises:
        PhotoRejected: the photo is not taken; code, sentence and tip say why.
        Unavailable: no helper could be had.

    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return examine(file, limits=limits)
    source_sha256 = bounded_sha256(source, limits.max_bytes)
    with _with_descriptor(source) as file:
        found, jpeg = _pool(os.getpid()).decode(file, limits)
    if "refused" in found:
        raise rejection(found["refused"], **found["facts"])
    return Intake(
        jpeg_bytes=jpeg,
        sha256=hashlib.sha256(jpeg).hexdigest(),
        source_sha256=source_sha256,
        **{**found, "thumb": bytes.fromhex(found["thumb"])},
    )


def bounded_sha256(file: IO[bytes], max_bytes: int) -> str:
    """Return the hash of the whole file.

    Raises:
        PhotoRejected: ``too_large``.

    """
    digest, size_bytes = hashlib.sha256(), 0
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        size_bytes += len(chunk)
        if size_bytes > max_bytes:
            raise rejection("too_large", max_mib=max_bytes / 2**20)
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _with_descriptor(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Give the file itself, or a temporary copy where it lives in memory only."""
    if _has_descriptor(file):
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        file.seek(0)
        shutil.copyfileobj(file, copy, _CHUNK_BYTES)
        copy.flush()
        yield copy


def _has_descriptor(file: IO[bytes]) -> bool:
    try:
        file.fileno()
    except (AttributeError, OSError):
        return False
    return True


class _HelperLost(Exception):
    """The helper is gone or does not answer."""


class _Helper:
    """One decoder process and the socket to it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server.photos.decoder"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd=_ROOT,
                # One thread, or the forks would inherit locks that nobody releases.
                env={**environment, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )

    def decode(self, file: IO[bytes], limits: Limits) -> tuple[dict[str, Any], bytes]:
        """Have one photo decoded.

        Raises:
            _HelperLost: the helper itself is gone.

        """
        with tempfile.TemporaryFile() as result:
            status = self._ask(file.fileno(), result.fileno(), limits)
            if status != 0:
                return {"refused": "too_complex", "facts": {}}, b""
            result.seek(0)
            return json.loads(result.readline()), result.read()

    def _ask(self, upload: int, result: int, limits: Limits) -> int:
        message = json.dumps(asdict(limits)).encode() + b"\n"
        self._socket.settimeout(limits.wall_s + _GRACE_S)
        try:
            socket.send_fds(self._socket, [message], [upload, result])
            answer = self._socket.recv(256)
        except OSError as error:
            raise _HelperLost from error
        if not answer:
            raise _HelperLost
        return int(json.loads(answer)["status"])

    def close(self) -> None:
        """End the process; its forks end by their own clocks."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


class _Pool:
    """A few helpers, started when first needed: they bound what decoding may take in all."""

    def __init__(self) -> None:
        self._slots: queue.LifoQueue[_Helper | None] = queue.LifoQueue()
        for _ in range(min(os.cpu_count() or 1, _MAX_HELPERS)):
            self._slots.put(None)

    def decode(self, file: IO[bytes], limits: Limits) -> tuple[dict[str, Any], bytes]:
        """Have one photo decoded by a free helper; a lost helper is replaced once.

        Raises:
            Unavailable: all are busy, or none can be started.

        """
        try:
            helper = self._slots.get(timeout=_QUEUE_S)
        except queue.Empty:
            message = "Too many photos are being opened right now. Try again in a minute."
            raise Unavailable(message, code="decoders_busy", retry_after_s=60) from None
        try:
            for _ in range(2):
                helper = helper or _Helper()
                try:
                    return helper.decode(file, limits)
                except _HelperLost:
                    helper.close()
                    helper = None
        finally:
            self._slots.put(helper)
        message = "Photos cannot be opened right now. Try again in a minute."
        raise Unavailable(message, code="decoders_down", retry_after_s=60)

    def close(self) -> None:
        """End the idle helpers."""
        with suppress(queue.Empty):
            while True:
                if helper := self._slots.get_nowait():
                    helper.close()


@functools.cache
def _pool(process_id: int) -> _Pool:  # noqa: ARG001 - a fork of this process gets its own helpers
    pool = _Pool()
    atexit.register(pool.close)
    return pool

"""Fetches one file, resuming as far as HTTP allows, and never trusts an answer further than a hash.

Resumption follows RFC 9110, 14: ``Range``, with ``If-Range`` where the validator is the server's
own, the content hash. A 200 to a Range request starts the file again, as do 416, another
validator, another total and a wrong offset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nightferry.errors import (
    ArtifactGoneError,
    DownloadInterruptedError,
    IntegrityError,
    NetworkError,
    ProtocolError,
)
from nightferry.transport import Reply, problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightferry.cache import BlobCache, Partial
    from nightferry.files import FileLock
    from nightferry.timing import Timing
    from nightferry.transport import Transport
    from nightferry.trust import Target

_CHUNK_BYTES = 1 << 16
_MAX_TRIES = 60
_LOCK_LOOK_S = 0.05
_ASK_AGAIN = frozenset({401, 403, 404, 410})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")


@dataclass(frozen=True)
class Receipt:
    """What a download cost: bytes received now, and bytes kept from an earlier try."""

    received_bytes: int
    resumed_bytes: int


class Downloader:
    """Brings files into the cache, one transfer per file at a time."""

    def __init__(self, transport: Transport, cache: BlobCache, timing: Timing) -> None:
        """Use these parts; nothing is touched yet."""
        self._transport = transport
        self._cache = cache
        self._timing = timing

    def fetch(
        self,
        target: Target,
        name: str,
        report: Callable[[int, int], object],
        verifying: Callable[[], object] = lambda: None,
    ) -> Receipt:
        """Make sure that the file is in the cache, verified.

        Args:
            target: what to fetch; ``name`` is how messages call it.
            name: for example ``recyclables v3``.
            report: called with bytes done and bytes in total; what it raises ends the transfer,
                and what arrived is kept.
            verifying: called when all bytes are here, before their hash decides.

        Raises:
            NetworkError, ArtifactGoneError: what arrived is kept for the next try.
            ProtocolError, IntegrityError: the server sends something else.
            StorageError: the cache cannot take it.

        """
        lock = self._cache.lock(target.sha256)
        self._wait_for_other(lock, target)
        try:
            if self._cache.has(target.sha256, target.size_bytes):
                report(target.size_bytes, target.size_bytes)
                return Receipt(0, 0)
            return self._fetch_alone(target, name, report, verifying)
        finally:
            lock.release()

    def _wait_for_other(self, lock: FileLock, target: Target) -> None:
        """Wait while another thread or process gets on with this file; then go ahead anyway."""
        seen, still_s = self._cache.partial_bytes(target.sha256), 0.0
        while not lock.try_acquire():
            if self._cache.has(target.sha256, target.size_bytes):
                return
            if still_s >= self._timing.lock_patience_s:
                return
            self._timing.sleep(_LOCK_LOOK_S)
            now = self._cache.partial_bytes(target.sha256)
            still_s = 0.0 if now > seen else still_s + _LOCK_LOOK_S
            seen = now

    def _fetch_alone(
        self,
        target: Target,
        name: str,
        report: Callable[[int, int], object],
        verifying: Callable[[], object],
    ) -> Receipt:
        # Bytes kept from before may be damaged (power cut); such a mixture earns one fresh try.
        received = 0
        for is_last in (False, True):
            with self._cache.begin(target) as partial:
                self._cache.check_space(target.size_bytes - partial.size)
                transfer = _Transfer(self._transport, self._timing, target, partial, report)
                received += transfer.run()
                resumed = partial.resumed_bytes
                verifying()
                try:
                    partial.commit(name)
                except IntegrityError:
                    if is_last or not (resumed or transfer.pieces > 1):
                        raise
                    continue
            break
        self._cache.discard_partials(target.sha256)
        return Receipt(received, resumed)


class _Transfer:
    """The requests that fill one partial file."""

    def __init__(
        self,
        transport: Transport,
        timing: Timing,
        target: Target,
        partial: Partial,
        report: Callable[[int, int], object],
    ) -> None:
        self._transport = transport
        self._timing = timing
        self._target = target
        self._partial = partial
        self._report = report
        self._received = 0
        self.pieces = 0

    def run(self) -> int:
        """Request until the size is reached; return the bytes received."""
        failures = 0
        furthest = self._partial.size
        for tries in range(1, _MAX_TRIES + 1):
            if self._partial.size == self._target.size_bytes:
                break
            try:
                self._request_rest()
            except NetworkError as error:
                failures = 0 if self._partial.size > furthest else failures + 1
                furthest = max(furthest, self._partial.size)
                if failures >= self._timing.retry_attempts or tries == _MAX_TRIES:
                    raise
                self._pause(error, failures)
        return self._received

    def _pause(self, error: NetworkError, failures: int) -> None:
        """Wait before the next try; hand a long Retry-After back to the caller instead."""
        if not error.retryable:
            raise error
        wished_s = error.retry_after_s or 0.0
        if wished_s > self._timing.retry_cap_s:
            raise error
        self._timing.sleep(max(wished_s, self._timing.retry_pause_s(failures)))

    def _request_rest(self) -> None:
        headers = {"Accept-Encoding": "identity"}
        if self._partial.size:
            headers["Range"] = f"bytes={self._partial.size}-"
            # A store we were sent on to has its own validators: the answer's is compared.
            if self._partial.etag == f'"{self._target.sha256}"':
                headers["If-Range"] = self._partial.etag
        with self._transport.open_artifact(self._target.path, headers) as reply:
            self._accept(reply)
            self._copy(reply)

    def _accept(self, reply: Reply) -> None:
        """Judge status and headers; afterwards the body continues the partial file."""
        if reply.header("Content-Encoding").lower() not in {"", "identity"}:
            message = "The download came encoded although it was asked for as it is."
            raise ProtocolError(message)
        if reply.status == 206 and self._partial.size:  # noqa: PLR2004
            self._accept_range(reply)
        elif reply.status == 200:  # noqa: PLR2004
            self._accept_whole(reply)
        elif reply.status == 416 and self._partial.size:  # noqa: PLR2004
            self._give_up_range("the server has no such range")
        else:
            self._refuse(reply)

    def _accept_range(self, reply: Reply) -> None:
        match = _CONTENT_RANGE.fullmatch(reply.header("Content-Range"))
        if match is None or int(match[1]) != self._partial.size:
            self._give_up_range("it begins somewhere else")
        elif match[3] not in {"*", str(self._target.size_bytes)}:
            self._give_up_range("the file has another size now")
        elif self._partial.etag and _strong(reply.header("ETag")) not in {"", self._partial.etag}:
            self._give_up_range("the file has changed")

    def _give_up_range(self, why: str) -> None:
        self._partial.restart()
        message = f"The download cannot be continued: {why}. It starts again."
        raise DownloadInterruptedError(message)

    def _accept_whole(self, reply: Reply) -> None:
        length = reply.header("Content-Length")
        if length.isdigit() and int(length) != self._target.size_bytes:
            kind = reply.header("Content-Type") or "something"
            message = (
                f"The server sends {length} bytes of {kind[:60]} instead of the model's "
                f"{self._target.size_bytes}: perhaps a network login page."
            )
            raise ProtocolError(message)
        self._partial.restart(_strong(reply.header("ETag")))

    def _refuse(self, reply: Reply) -> None:
        error = problem(reply, b"")
        if reply.status in _ASK_AGAIN:
            raise ArtifactGoneError(str(error)) from error
        if reply.status < 400:  # noqa: PLR2004 - neither the file nor an error
            message = f"The download was answered with status {reply.status}."
            raise ProtocolError(message)
        raise error

    def _copy(self, reply: Reply) -> None:
        self.pieces += 1
        self._report(self._partial.size, self._target.size_bytes)
        while chunk := reply.read(_CHUNK_BYTES):
            self._received += len(chunk)
            if self._partial.size + len(chunk) > self._target.size_bytes:
                self._partial.restart()
                message = (
                    f"The server sends more than the {self._target.size_bytes} bytes it promised."
                )
                raise IntegrityError(message)
            self._partial.append(chunk)
            self._report(self._partial.size, self._target.size_bytes)
        if self._partial.size < self._target.size_bytes:
            message = (
                f"The download broke off after {self._partial.size} of "
                f"{self._target.size_bytes} bytes."
            )
            raise DownloadInterruptedError(message)


def _strong(etag: str) -> str:
    """Return a strong validator, or nothing: If-Range allows no weak ones (RFC 9110, 13.1.5)."""
    return etag if etag.startswith('"') else ""

"""Immutable content over HTTP: conditions, single ranges, and three ways to send the bytes.

The content never changes under its ETag, so there is no Last-Modified and no answer depends on a
clock. Conditions are taken in the order of RFC 9110 section 13.2.2; of ranges, a single one is
honoured, and several at once are answered with everything, as section 14.2 allows.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from django.http import FileResponse, HttpResponse, HttpResponseBase
from django.utils.http import content_disposition_header

from server.domain.errors import DomainError
from server.http.problems import problem_response

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from django.http import HttpRequest

MAX_READ_BYTES = 256 * 1024
CACHE_CONTROL = "public, max-age=31536000, immutable"
# nginx serves the same bytes under both names: with ranges, and without.
ACCEL_RANGED = "/_blobs/ranged/"
ACCEL_WHOLE = "/_blobs/whole/"
_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)", re.IGNORECASE)
# What every server reads as we do: nginx and S3 stumble over positions of 64 bits and more.
_PLAIN_RANGE = re.compile(r"bytes=[0-9]{0,18}-[0-9]{0,18}")
# More than any content has, in figures that are quick to read.
_MOST_FIGURES = 20
_ETAG = re.compile(r'(W/)?"([^"]*)"')


class PreconditionFailed(DomainError):
    """The caller asked for other content than there is."""

    status = 412
    default_code = "precondition_failed"
    title = "This is not the content asked for"


class RangeNotSatisfiable(DomainError):
    """The range begins behind the end of the content."""

    status = 416
    default_code = "range_not_satisfiable"
    title = "There are no such bytes"


@dataclass(frozen=True, slots=True)
class Accel:
    """nginx sends the bytes: ``path`` is below the locations of ``deploy/nginx/blobs.conf``."""

    path: str


@dataclass(frozen=True, slots=True)
class Redirect:
    """Another server sends the bytes; the address is for one caller and a short while.

    It is made only for answers that use it.
    """

    make_url: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Stream:
    """Our own process sends the bytes."""


Delivery = Stream | Accel | Redirect
R = TypeVar("R", bound=HttpResponseBase)


@dataclass(frozen=True, slots=True)
class Content:
    """What is sent: ``etag`` without its quotes."""

    open_reader: Callable[[], BinaryIO]
    size_bytes: int
    etag: str
    media_type: str
    filename: str


def ranged_response(
    request: HttpRequest,
    *,
    open_reader: Callable[[], BinaryIO],
    size_bytes: int,
    etag: str,
    media_type: str,
    filename: str,
    delivery: Delivery,
) -> HttpResponseBase:
    """Answer a GET or HEAD for immutable content: 200, 206, 302, 304, 412 or 416.

    ``open_reader`` returns a seekable reader over all of the content and is called only when this
    process sends it; what it raises is raised here.
    """
    content = Content(open_reader, size_bytes, etag, media_type, filename)
    if not _matches(request.headers.get("If-Match"), etag, absent=True, weak=False):
        error = PreconditionFailed("If-Match does not name the content that is here.")
        return _refusal(error, content)
    if _matches(request.headers.get("If-None-Match"), etag, absent=False, weak=True):
        return _with_headers(HttpResponse(status=304), content, body=False)
    if request.method == "HEAD":
        return _head(content)
    return _send(request, content, delivery)


def _send(request: HttpRequest, content: Content, delivery: Delivery) -> HttpResponseBase:
    """Answer a GET whose conditions hold."""
    section = wanted_range(request, content)
    if section is not None and not section:
        error = RangeNotSatisfiable(f"The content has {content.size_bytes} bytes.")
        response = _refusal(error, content)
        response["Content-Range"] = f"bytes */{content.size_bytes}"
        return response
    if section is not None and not _PLAIN_RANGE.fullmatch(request.headers["Range"]):
        return _stream(content, section)
    if isinstance(delivery, Accel) and not _asks_what_nginx_misjudges(request):
        return _accel(content, delivery, ranged=section is not None)
    if isinstance(delivery, Redirect) and not _asks_what_s3_misjudges(request, section):
        return _redirect(delivery)
    return _stream(content, section)


def wanted_range(request: HttpRequest, content: Content) -> range | None:
    """Return the bytes asked for: None for all of them, an empty range for none there are."""
    if_range = request.headers.get("If-Range")
    if if_range is not None and if_range.strip() != f'"{content.etag}"':
        return None
    return parse_range(request.headers.get("Range", ""), content.size_bytes)


def parse_range(header: str, size_bytes: int) -> range | None:
    """Return the positions a Range header selects.

    None, which stands for all of the content, for a header that is absent, malformed, of another
    unit or of several ranges: those are to be ignored. Empty where the range is unsatisfiable.
    """
    match = _RANGE.fullmatch(header.strip(" \t"))
    if match is None or match.group(1, 2) == ("", "") or size_bytes == 0:
        return None
    first, last = match.group(1, 2)
    if first == "":
        return range(max(size_bytes - _read_position(last), 0), size_bytes)
    if last != "" and _is_below(last, first):
        return None
    end = size_bytes if last == "" else min(_read_position(last) + 1, size_bytes)
    return range(_read_position(first), end)


def _read_position(figures: str) -> int:
    """Return the number, or where it has too many figures one that is behind every end."""
    return int(figures.lstrip("0")[:_MOST_FIGURES] or "0")


def _is_below(figures: str, others: str) -> bool:
    """Tell which number of any length is less; Python would not read 5000 figures."""
    mine, theirs = figures.lstrip("0"), others.lstrip("0")
    return (len(mine), mine) < (len(theirs), theirs)


def _matches(header: str | None, etag: str, *, absent: bool, weak: bool) -> bool:
    """Tell whether a list of entity tags names ``etag`` (RFC 9110 section 8.8.3.2)."""
    if header is None:
        return absent
    if header.strip() == "*":
        return True
    return any(tag == etag and (weak or not is_weak) for is_weak, tag in _ETAG.findall(header))


def _asks_what_nginx_misjudges(request: HttpRequest) -> bool:
    """Nginx would compare these with the file's own time and tag."""
    return "If-Match" in request.headers or "If-Unmodified-Since" in request.headers


def _asks_what_s3_misjudges(request: HttpRequest, section: range | None) -> bool:
    """S3 compares with a tag and a time of its own, and refuses ranges that are to be ignored."""
    headers = {"If-Match", "If-Unmodified-Since", "If-Modified-Since", "If-Range"}
    if section is None:
        headers.add("Range")
    return any(name in request.headers for name in headers)


def _head(content: Content) -> HttpResponse:
    response = HttpResponse(content_type=content.media_type)
    response["Content-Length"] = content.size_bytes
    return _with_headers(response, content)


def _accel(content: Content, delivery: Accel, *, ranged: bool) -> HttpResponse:
    response = HttpResponse(content_type=content.media_type)
    response["X-Accel-Redirect"] = (ACCEL_RANGED if ranged else ACCEL_WHOLE) + delivery.path
    return _with_headers(response, content)


def _redirect(delivery: Redirect) -> HttpResponse:
    response = HttpResponse(status=302)
    response["Location"] = delivery.make_url()
    response["Cache-Control"] = "no-store"
    return response


def _stream(content: Content, section: range | None) -> HttpResponseBase:
    positions = range(content.size_bytes) if section is None else section
    source = _local_file(content.open_reader(), positions)
    response = _SectionResponse(
        source, status=200 if section is None else 206, content_type=content.media_type
    )
    if section is not None:
        response["Content-Range"] = f"bytes {section.start}-{section.stop - 1}/{content.size_bytes}"
    return _with_headers(response, content)


def _refusal(error: DomainError, content: Content) -> HttpResponse:
    response = problem_response(error)
    response["Accept-Ranges"] = "bytes"
    response["ETag"] = f'"{content.etag}"'
    response["Cache-Control"] = "no-store"
    return response


def _with_headers(response: R, content: Content, *, body: bool = True) -> R:
    response["ETag"] = f'"{content.etag}"'
    response["Cache-Control"] = CACHE_CONTROL
    if body:
        response["Accept-Ranges"] = "bytes"
        disposition = content_disposition_header(as_attachment=True, filename=content.filename)
        response["Content-Disposition"] = disposition or "attachment"
    else:
        del response["Content-Type"]
    return response


def _local_file(source: BinaryIO, positions: range) -> _Section:
    """Return the wanted bytes of ``source`` as a file on this machine.

    The server's one network thread reads from it, so it must never wait for another machine:
    what comes from one is fetched first, by the thread that serves the request.
    """
    try:
        source.fileno()
    except OSError:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the response
        with source:
            source.seek(positions.start)
            _copy(source, cast("BinaryIO", copy), len(positions))
        copy.flush()
        return _Section(cast("BinaryIO", copy), range(len(positions)))
    return _Section(source, positions)


def _copy(source: BinaryIO, target: BinaryIO, size_bytes: int) -> None:
    while size_bytes > 0 and (chunk := source.read(min(2**20, size_bytes))):
        target.write(chunk)
        size_bytes -= len(chunk)


class _Section(io.RawIOBase):
    """A part of a file that looks like a whole one: position 0 is its first byte.

    WSGI servers measure a file by seeking to its end; of a bare file they would send the rest.
    The descriptor stands at the first byte, where ``sendfile`` begins.
    """

    def __init__(self, file: BinaryIO, positions: range) -> None:
        super().__init__()
        self._file = file
        self._positions = positions
        self._position = 0
        file.seek(positions.start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size_bytes = len(self._positions)
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size_bytes}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            return self.readall()
        # A server asks for all that its socket might take, and again for what it did not.
        wanted = min(size, MAX_READ_BYTES, max(len(self._positions) - self._position, 0))
        chunk = os.pread(self.fileno(), wanted, self._positions.start + self._position)
        self._position += len(chunk)
        return chunk

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        chunk = self.read(len(view))
        view[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self._file.close()
        super().close()


class _SectionResponse(FileResponse):
    """Hands the file itself to the server, whatever a middleware wraps around its content.

    A server that has the file (PEP 3333, ``wsgi.file_wrapper``) needs no thread while a slow
    client reads. Django forgets the file once a middleware sets ``streaming_content``.
    """

    block_size = 64 * 1024
    file_to_stream: Any

    def _set_streaming_content(self, value: Any) -> None:
        file = getattr(self, "file_to_stream", None)
        super()._set_streaming_content(value)  # type: ignore[misc]
        if file is not None:
            self.file_to_stream = file

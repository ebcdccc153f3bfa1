"""HTTP to the server: bounded answers, deadlines, redirects, and clear errors.

Only the standard library; nothing of it is imported before the first request. Proxies are taken
from the environment, as urllib does. Credentials go to the configured server and to no other.
"""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Protocol, Self, cast
from urllib.error import URLError
from urllib.parse import urlencode, urljoin, urlsplit

from nightferry.errors import (
    InvalidManifestError,
    ModelRetiredError,
    NetworkError,
    NightferryError,
    OfflineModeError,
    ProtocolError,
    RequestRefusedError,
    ServerError,
    ServerUnreachableError,
    ThrottledError,
    UnauthorizedError,
    UnknownModelError,
)
from nightferry.manifest import Document, parse_json
from nightferry.timing import MAX_RETRY_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Mapping
    from email.message import Message
    from types import TracebackType

API = "/api/v1"
MAX_JSON_BYTES = 4 << 20
MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Credentials are for the configured server only, and so are its validators: another host's differ.
_NOT_FOR_OTHERS = frozenset({"authorization", "x-app-key", "cookie", "if-range"})
_CHUNK_BYTES = 1 << 16


class _RawReply(Protocol):
    status: int
    headers: Message

    def read1(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class Reply:
    """An answer whose body has not been read yet. Close it, or use it in a ``with``."""

    def __init__(self, raw: _RawReply, url: str) -> None:
        """Wrap urllib's answer, which came from ``url`` after any redirect."""
        self._raw = raw
        self.url = url
        self.status = raw.status

    def header(self, name: str) -> str:
        """Return a header's value, empty where it is absent."""
        return str(self._raw.headers.get(name) or "").strip()

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes as they come; empty at the end of the body."""
        try:
            return self._raw.read1(size)
        except (OSError, HTTPException, ValueError) as error:
            raise ServerUnreachableError(_broken(self.url, error)) from error

    def read_all(self, limit: int, deadline: float) -> bytes:
        """Return the whole body; raise ProtocolError above ``limit`` bytes."""
        body = bytearray()
        while chunk := self.read(_CHUNK_BYTES):
            body += chunk
            if len(body) > limit:
                message = f"{_host(self.url)} answered more than {limit} bytes to a short question."
                raise ProtocolError(message)
            if time.monotonic() > deadline:
                message = f"{_host(self.url)} answers too slowly."
                raise ServerUnreachableError(message)
        announced = self.header("Content-Length")
        if announced.isdigit() and len(body) < int(announced):
            message = f"The answer of {_host(self.url)} broke off."
            raise ServerUnreachableError(message)
        return bytes(body)

    def __enter__(self) -> Self:
        """Return the reply itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self._raw.close()


@dataclass(frozen=True)
class Answer:
    """A short answer: status, ETag (empty where absent) and the JSON object (empty without one)."""

    status: int
    etag: str
    document: Document


class Transport:
    """Talks to one server. Safe to use from several threads."""

    def __init__(
        self,
        server_url: str,
        *,
        app_key: str | None,
        user_agent: str,
        request_timeout_s: float,
        stall_timeout_s: float,
        offline: bool,
    ) -> None:
        """Prepare without connecting. ``server_url`` is absolute."""
        self._server_url = server_url
        self._headers = {"User-Agent": user_agent}
        if app_key:
            self._headers["X-App-Key"] = app_key
        self._request_timeout_s = request_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._offline = offline
        self._opener = _build_opener()

    @property
    def server_url(self) -> str:
        """Return the configured server's address, without a slash at its end."""
        return self._server_url

    def get(self, path: str, query: Mapping[str, str], etag: str = "") -> Answer:
        """Ask for JSON; 200, 204 and 304 come back, everything else is raised."""
        url = f"{self._server_url}{API}{path}?{urlencode(query)}"
        conditional = {"If-None-Match": etag} if etag else {}
        return self._converse("GET", url, conditional, None)

    def post(self, path: str, document: object) -> Answer:
        """Send JSON; 2xx come back, everything else is raised."""
        body = json.dumps(document, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json"}
        return self._converse("POST", f"{self._server_url}{API}{path}", headers, body)

    def open_artifact(self, path: str, headers: Mapping[str, str]) -> Reply:
        """Open a download, following redirects to other hosts without our credentials.

        Every status comes back as it is; the caller judges it.
        """
        return self.open_url(self._server_url + path, headers, self._stall_timeout_s)

    def open_url(self, url: str, headers: Mapping[str, str], timeout_s: float) -> Reply:
        """Open any address, following redirects; credentials go to the configured server only.

        Every status comes back as it is; the caller judges it. Each wait for bytes ends after
        ``timeout_s``.
        """
        wanted = {**self._headers, **headers}
        if _origin(url) != _origin(self._server_url):
            wanted = _without_credentials(wanted)
        for _ in range(MAX_REDIRECTS + 1):
            reply = self._send("GET", url, wanted, None, timeout_s)
            if reply.status not in _REDIRECTS:
                return reply
            with reply:
                target = _redirect_target(reply)
            if _origin(target) != _origin(url):
                wanted = _without_credentials(wanted)
            url = target
        message = f"{_host(url)} redirects the download more than {MAX_REDIRECTS} times."
        raise ProtocolError(message)

    def _converse(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        deadline = time.monotonic() + self._request_timeout_s
        wanted = {**self._headers, "Accept": "application/json", **headers}
        with self._send(method, url, wanted, body, self._request_timeout_s) as reply:
            if reply.status in _REDIRECTS:
                message = (
                    f"{_host(url)} redirects to {reply.header('Location')[:200]!r}: perhaps a "
                    "network login page. If the server has moved, configure its new address."
                )
                raise ProtocolError(message)
            if reply.status in {204, 304}:
                return Answer(reply.status, reply.header("ETag"), {})
            content = reply.read_all(MAX_JSON_BYTES, deadline)
            if reply.status >= 400:  # noqa: PLR2004 - where HTTP's errors begin
                raise problem(reply, content)
            return Answer(reply.status, reply.header("ETag"), _decode(reply, content))

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
    ) -> Reply:
        if self._offline:
            message = "NIGHTFERRY_OFFLINE is set: the network is not touched."
            raise OfflineModeError(message)
        request = urllib.request.Request(  # noqa: S310 - the opener knows http and https only
            url, data=body, headers=dict(headers), method=method
        )
        try:
            raw = self._opener.open(request, timeout=timeout_s)
        except URLError as error:
            raise ServerUnreachableError(_broken(url, error.reason)) from error
        except (OSError, HTTPException, ValueError) as error:
            raise ServerUnreachableError(_broken(url, error)) from error
        return Reply(cast("_RawReply", raw), url)


def problem(reply: Reply, content: bytes) -> NightferryError:
    """Turn an error answer (RFC 9457 or anything else) into the error that fits its status."""
    document = _problem_document(content)
    detail = str(document.get("detail") or document.get("title") or "")[:300]
    code = str(document.get("code") or "")[:80]
    sentence = f"{_host(reply.url)} answered {reply.status}"
    sentence += f" ({code}): {detail}" if code else f": {detail}" if detail else ""
    sentence = sentence.rstrip(".") + "."
    retry_after_s = parse_retry_after(reply.header("Retry-After"), time.time())
    return _problem_class(reply.status)(sentence, retry_after_s=retry_after_s)


def parse_retry_after(value: str, now: float) -> float | None:
    """Read Retry-After (RFC 9110, 10.2.3): seconds or a date; clamped to 0 s … 24 h."""
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), MAX_RETRY_AFTER_S)
    from email.utils import parsedate_to_datetime

    try:
        seconds = parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError, OSError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def _build_opener() -> urllib.request.OpenerDirector:
    """Build an opener without redirects, files, ftp or cookies: each status is ours to judge."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _decode(reply: Reply, content: bytes) -> Document:
    media_type = reply.header("Content-Type").partition(";")[0].lower()
    if media_type == "text/html":
        message = f"{_host(reply.url)} answered with a web page: perhaps a network login page."
        raise ProtocolError(message)
    try:
        return parse_json(content)
    except InvalidManifestError as error:
        message = f"{_host(reply.url)} answered something that is not a JSON object."
        raise ProtocolError(message) from error


def _problem_document(content: bytes) -> Document:
    try:
        return parse_json(content)
    except InvalidManifestError:
        return {}


def _problem_class(status: int) -> type[NightferryError]:
    if status >= 500:  # noqa: PLR2004 - where HTTP's server errors begin
        return ServerError
    by_status: dict[int, type[NightferryError]] = {
        401: UnauthorizedError,
        403: UnauthorizedError,
        404: UnknownModelError,
        408: NetworkError,
        410: ModelRetiredError,
        425: NetworkError,
        429: ThrottledError,
    }
    return by_status.get(status, RequestRefusedError)


def _redirect_target(reply: Reply) -> str:
    """Return the address a redirect leads to; raise ProtocolError for one not to be followed."""
    location = reply.header("Location")
    try:
        target = urljoin(reply.url, location)
        parts = urlsplit(target)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable, target = False, ""
    downgrade = reply.url.startswith("https:") and not target.startswith("https:")
    if not location or not usable or downgrade:
        raise ProtocolError(
            f"{_host(reply.url)} redirects the download to {location[:200]!r}, which is unsafe."
        )
    return target


def _without_credentials(headers: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in headers.items() if k.lower() not in _NOT_FOR_OTHERS}


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


def _host(url: str) -> str:
    return urlsplit(url).netloc or "The server"


def _broken(url: str, reason: object) -> str:
    text = str(reason).strip() or type(reason).__name__
    return f"No usable answer from {_host(url)}: {text}."

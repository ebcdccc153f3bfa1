"""One table of HTTP conformance for immutable content, and the check of an answer against it.

Every way of sending an artifact is held to the same table, through the servers it is used with;
where one differs, :data:`DIFFERENCES` names the header or the row, and why that is right.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from server.blobs import BlobStore, from_url
from tests.support import services
from tests.support.data import REPOSITORY

WAYS = ("stream-waitress", "stream-gunicorn", "accel-folder", "accel-s3", "redirect-s3")
CONTENT = random.Random(7).randbytes(100_003)
SIZE = len(CONTENT)


@dataclass(frozen=True)
class Subject:
    """An artifact that holds :data:`CONTENT`, how it is sent, and what is said of it."""

    way: str
    url: str
    sha256: str
    media_type: str
    disposition: str
    cache_control: str = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Answer:
    """What came back; ``redirected`` when another server was asked."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    redirected: bool = False
    repeated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Case:
    """A request, and the answer it must get: of ``{etag}`` the real one is put in.

    A server may ignore a Range (RFC 9110 section 14.2): ``allowed`` says why 200 is right where
    another server would send less or refuse.
    """

    says: str
    status: int
    section: slice | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    allowed: str = ""


# Where a way of sending answers otherwise than the table, and why.
DIFFERENCES = {
    ("accel-folder", "tabs around"): "nginx keeps the tab in the value, and sends everything",
    ("redirect-s3", "ETag"): "the store's own tag: it knows the object by another hash",
    ("redirect-s3", "Last-Modified"): "the store's own time; nothing here depends on it",
    (
        "redirect-s3",
        "Cache-Control",
    ): "the object's own, whoever may ask for it: its address is secret",
    ("redirect-s3", "HEAD"): "answered here, without a redirect: the answer needs no bytes",
    ("redirect-s3", "refusals"): "304, 412 and 416 are answered here, in the words of the API",
}
ALL = slice(0, SIZE)
NINES = "9" * 40
LONG_AGO = "Sun, 06 Nov 1994 08:49:37 GMT"
FAR_OFF = "Tue, 19 Jan 2038 03:14:07 GMT"
TWO_BYTES = {"Range": "bytes=0-1"}
SAME = {"If-None-Match": "{etag}"}
OTHER = '"' + "0" * 64 + '"'
CASES = [
    Case("everything", 200, ALL),
    # Ranges
    Case("first bytes", 206, slice(0, 10), {"Range": "bytes=0-9"}),
    Case("one byte", 206, slice(0, 1), {"Range": "bytes=0-0"}),
    Case("the last byte", 206, slice(SIZE - 1, SIZE), {"Range": f"bytes={SIZE - 1}-"}),
    Case("from the middle on", 206, slice(50_000, SIZE), {"Range": "bytes=50000-"}),
    Case("a suffix", 206, slice(SIZE - 500, SIZE), {"Range": "bytes=-500"}),
    Case("a suffix longer than all", 206, ALL, {"Range": f"bytes=-{SIZE * 2}"}),
    Case("an end behind the end", 206, slice(99_000, SIZE), {"Range": "bytes=99000-900000"}),
    Case("all as a range", 206, ALL, {"Range": f"bytes=0-{SIZE - 1}"}),
    Case("behind the end", 416, None, {"Range": f"bytes={SIZE}-"}),
    Case("far behind the end", 416, None, {"Range": "bytes=99999999999999999999-"}),
    Case("the last no bytes", 416, None, {"Range": "bytes=-0"}),
    # Ranges to be ignored
    Case("several ranges", 200, ALL, {"Range": "bytes=0-1,5-6"}, "one at a time is enough"),
    Case("several, all behind", 200, ALL, {"Range": f"bytes={SIZE}-,{SIZE * 2}-"}, "as several"),
    Case("one, and an empty member", 200, ALL, {"Range": "bytes=0-9,"}, "as several"),
    Case("another unit", 200, ALL, {"Range": "lines=0-1"}),
    Case("no unit", 200, ALL, {"Range": "0-1"}),
    Case("an end before its start", 200, ALL, {"Range": "bytes=9-3"}),
    Case("not a number", 200, ALL, {"Range": "bytes=a-b"}),
    Case("hexadecimal", 200, ALL, {"Range": "bytes=0x0-0x9"}),
    Case("a sign", 200, ALL, {"Range": "bytes=+0-9"}),
    Case("a negative number", 200, ALL, {"Range": "bytes=--5"}),
    Case("three bounds", 200, ALL, {"Range": "bytes=0-5-9"}),
    Case("no bounds", 200, ALL, {"Range": "bytes=-"}),
    Case("no range", 200, ALL, {"Range": "bytes="}),
    Case("a unit alone", 200, ALL, {"Range": "bytes"}),
    Case("nothing", 200, ALL, {"Range": ""}),
    Case("a parameter", 200, ALL, {"Range": "bytes=0-9;q=1"}),
    Case("spaces at the equals sign", 200, ALL, {"Range": "bytes = 0-9"}),
    Case("spaces at the dash", 200, ALL, {"Range": "bytes=0 - 9"}),
    Case("a space that is none", 200, ALL, {"Range": "bytes=\xa00-9"}),
    Case("a figure that is none", 200, ALL, {"Range": "bytes=\xb2-9"}),
    # Unusual, and well-formed
    Case("a unit in capitals", 206, slice(0, 10), {"Range": "BYTES=0-9"}),
    Case("spaces around", 206, slice(0, 10), {"Range": "  bytes=0-9  "}),
    Case("tabs around", 206, slice(0, 10), {"Range": "\tbytes=0-9\t"}),
    Case("leading noughts", 206, slice(5, 10), {"Range": f"bytes={'0' * 40}5-{'0' * 40}9"}),
    Case("a huge end", 206, slice(99_000, SIZE), {"Range": f"bytes=99000-{NINES}"}),
    Case("a huge suffix", 206, ALL, {"Range": f"bytes=-{NINES}"}),
    Case("a huge start", 416, None, {"Range": f"bytes={NINES}-"}),
    Case("a start of 5000 figures", 416, None, {"Range": f"bytes={'9' * 5000}-"}),
    Case("2^63 and on", 416, None, {"Range": f"bytes={2**63}-{2**64 + 5}"}),
    Case("an end of 2^64", 206, slice(1, SIZE), {"Range": f"bytes=1-{2**64}"}),
    # If-Range
    Case("if-range, same", 206, slice(5, 10), {"Range": "bytes=5-9", "If-Range": "{etag}"}),
    Case("if-range, other", 200, ALL, {"Range": "bytes=5-9", "If-Range": OTHER}),
    Case("if-range, weak", 200, ALL, {"Range": "bytes=5-9", "If-Range": "W/{etag}"}),
    Case("if-range, date", 200, ALL, {"Range": "bytes=5-9", "If-Range": LONG_AGO}),
    Case("if-range, other, behind", 200, ALL, {"Range": f"bytes={SIZE}-", "If-Range": OTHER}),
    Case("if-range, listed", 200, ALL, {"Range": "bytes=5-9", "If-Range": OTHER + ", {etag}"}),
    Case("if-range, any", 200, ALL, {"Range": "bytes=5-9", "If-Range": "*"}),
    Case("if-range, no tag", 200, ALL, {"Range": "bytes=5-9", "If-Range": "v3"}),
    Case("if-range, same, behind", 416, None, {"Range": f"bytes={SIZE}-", "If-Range": "{etag}"}),
    Case("if-range, no range", 200, ALL, {"If-Range": "{etag}"}),
    # If-None-Match
    Case("none-match, same", 304, None, {"If-None-Match": "{etag}"}),
    Case("none-match, weak", 304, None, {"If-None-Match": "W/{etag}"}),
    Case("none-match, listed", 304, None, {"If-None-Match": OTHER + ", {etag}"}),
    Case("none-match, any", 304, None, {"If-None-Match": "*"}),
    Case("none-match, other", 200, ALL, {"If-None-Match": OTHER}),
    Case("none-match, before range", 304, None, {"If-None-Match": "{etag}", "Range": "bytes=0-1"}),
    Case(
        "none-match, other, range", 206, slice(0, 2), {"If-None-Match": OTHER, "Range": "bytes=0-1"}
    ),
    Case("none-match, no tag", 200, ALL, {"If-None-Match": "v3"}),
    Case("none-match, before behind", 304, None, {"If-None-Match": "*", "Range": f"bytes={SIZE}-"}),
    # If-Match
    Case("match, same", 200, ALL, {"If-Match": "{etag}"}),
    Case("match, any", 200, ALL, {"If-Match": "*"}),
    Case("match, same, range", 206, slice(3, 5), {"If-Match": "{etag}", "Range": "bytes=3-4"}),
    Case("match, other", 412, None, {"If-Match": OTHER}),
    Case("match, weak", 412, None, {"If-Match": "W/{etag}"}),
    Case("match, other, and none-match", 412, None, {"If-Match": OTHER, "If-None-Match": "{etag}"}),
    Case("match, listed", 200, ALL, {"If-Match": OTHER + ", {etag}"}),
    Case("match, no tag", 412, None, {"If-Match": "v3"}),
    Case("match, other, before behind", 412, None, {"If-Match": OTHER, "Range": f"bytes={SIZE}-"}),
    Case("match, same, behind", 416, None, {"If-Match": "{etag}", "Range": f"bytes={SIZE}-"}),
    Case("match, and none-match", 304, None, {"If-Match": "{etag}", "If-None-Match": "{etag}"}),
    # There is no Last-Modified, so nothing depends on a date.
    Case("modified since", 200, ALL, {"If-Modified-Since": FAR_OFF}),
    Case("modified since, range", 206, slice(0, 2), {"If-Modified-Since": FAR_OFF} | TWO_BYTES),
    Case("modified since, match", 304, None, {"If-Modified-Since": LONG_AGO} | SAME),
    Case("modified since, other", 200, ALL, {"If-Modified-Since": FAR_OFF, "If-None-Match": OTHER}),
    Case("unmodified since", 200, ALL, {"If-Unmodified-Since": LONG_AGO}),
    Case(
        "unmodified since, range", 206, slice(0, 2), {"If-Unmodified-Since": LONG_AGO} | TWO_BYTES
    ),
    # Bytes are sent as they are: their hash is the tag, whatever coding the caller could read.
    Case("compressed, if possible", 200, ALL, {"Accept-Encoding": "gzip, br, zstd"}),
    Case("no content but gzip", 200, ALL, {"Accept-Encoding": "gzip, identity;q=0"}),
]


def ask(subject: Subject, method: str, headers: Mapping[str, str], **others: str) -> Answer:
    """Return the answer, of the store where this server sends there, as a client follows it.

    ``others`` are headers for this server alone, such as ``X_App_Key``.
    """
    sent = {name: text.replace("{etag}", f'"{subject.sha256}"') for name, text in headers.items()}
    own = {name.replace("_", "-"): text for name, text in others.items()}
    answer = request(subject.url, method, sent | own)
    if answer.status != 302:
        return answer
    assert subject.way.startswith("redirect")
    assert answer.headers["Cache-Control"] == "no-store"
    there = request(answer.headers["Location"], method, sent)
    return replace(there, redirected=True)


def request(url: str, method: str, headers: Mapping[str, str]) -> Answer:
    """Return one answer, on a connection of its own."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", headers=dict(headers))
        response = connection.getresponse()
        body = response.read()
        names = [name.lower() for name, _ in response.getheaders()]
        repeated = {name for name in names if names.count(name) > 1}
        return Answer(response.status, response.headers, body, repeated=frozenset(repeated))
    finally:
        connection.close()


def assert_conforms(subject: Subject, case: Case, answer: Answer) -> None:
    """Compare status, headers and body of a GET with the row."""
    status, section = case.status, case.section
    if (subject.way, case.says) in DIFFERENCES:
        status, section = 200, ALL
    else:
        assert not answer.repeated
    assert answer.status == status
    if section is not None:
        assert answer.body == CONTENT[section]
        assert answer.headers["Content-Length"] == str(len(CONTENT[section]))
        assert answer.headers["Content-Type"] == subject.media_type
        assert answer.headers["Content-Disposition"] == subject.disposition
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["Cache-Control"] == _cache_control(subject, answer)
    if status == 200:
        assert "Content-Range" not in answer.headers
    if status == 206 and section is not None:
        span = f"bytes {section.start}-{section.stop - 1}/{SIZE}"
        assert answer.headers["Content-Range"] == span
    if status == 304:
        assert answer.body == b""
        assert answer.headers["Cache-Control"] == subject.cache_control
    if status == 416:
        assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
    if status in {412, 416}:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert json.loads(answer.body)["status"] == status
    assert "Content-Encoding" not in answer.headers
    if answer.redirected:
        assert status in {200, 206}
    else:
        assert answer.headers["ETag"] == f'"{subject.sha256}"'
        assert answer.headers.get("Last-Modified") is None


def assert_head_conforms(subject: Subject, case: Case, answer: Answer) -> None:
    """Compare a HEAD with the row: as a GET without the body, and without ranges."""
    assert answer.body == b""
    assert answer.status == {206: 200, 416: 200}.get(case.status, case.status)
    assert answer.headers["ETag"] == f'"{subject.sha256}"'
    assert not answer.redirected
    assert "Content-Range" not in answer.headers
    if answer.status == 200:
        assert answer.headers["Content-Length"] == str(SIZE)
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["Cache-Control"] == subject.cache_control


def _cache_control(subject: Subject, answer: Answer) -> str:
    if answer.redirected:
        assert (subject.way, "Cache-Control") in DIFFERENCES
        return "public, max-age=31536000, immutable"
    return subject.cache_control


@dataclass(frozen=True)
class Place:
    """Where the blobs of one way of sending lie; ``env`` tells a web server of it."""

    way: str
    blob_store_url: str
    env: Mapping[str, str]
    s3: services.S3 | None = None

    def open_store(self) -> BlobStore:
        """Return the store."""
        if self.s3 is None:
            return from_url(self.blob_store_url)
        keys = {"access_key": self.s3.access_key, "secret_key": self.s3.secret_key}
        return from_url(self.blob_store_url, **keys)


def place_for(way: str, folder: Path, s3: services.S3 | None) -> Place:
    """Return a new bucket of ``s3`` where there is one, else the folder."""
    url = str(folder) if s3 is None else s3.url(s3.create_bucket())
    env = {"BLOB_STORE_URL": url, "ARTIFACT_DELIVERY": way.partition("-")[0]}
    return Place(way, url, env | ({} if s3 is None else s3.environment), s3)


@contextlib.contextmanager
def serving(
    place: Place, application: str, env: Mapping[str, str] | None = None
) -> Iterator[tuple[str, str]]:
    """Run the application as it is run with this way of sending; yield its address, and Django's.

    nginx stands before gunicorn, as in production; waitress is what ``quickstart`` runs.
    """
    delivery, _, by = place.way.partition("-")
    start = services.gunicorn if by == "gunicorn" or delivery == "accel" else services.waitress
    with contextlib.ExitStack() as stack:
        web = stack.enter_context(start(application, env={**place.env, **(env or {})})).url
        if delivery == "accel":
            yield stack.enter_context(services.nginx(_nginx_site(web, place))).url, web
        else:
            yield web, web


def _nginx_site(web: str, place: Place) -> str:
    return f"""
    server {{
        listen 127.0.0.1:{{port}};
        set $blobs_folder "{place.blob_store_url if place.s3 is None else ""}";
        set $blobs_s3 {"http://127.0.0.1" if place.s3 is None else place.s3.endpoint};
        include {REPOSITORY / "deploy" / "nginx" / "blobs.conf"};
        location / {{
            proxy_pass {web};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
        }}
    }}
    """

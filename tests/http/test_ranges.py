"""One table of HTTP conformance over every way of sending an artifact, through real servers."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.blobs import Blob, BlobStore, from_url
from server.http.ranges import parse_range
from tests.support import services
from tests.support.data import REPOSITORY

APPLICATION = "tests.http.ranged_app:application"
CONTENT = random.Random(7).randbytes(100_003)
SIZE = len(CONTENT)
BLOBS_CONF = REPOSITORY / "deploy" / "nginx" / "blobs.conf"


@dataclass(frozen=True)
class Server:
    """Where the artifacts are, and by which way they are sent; ``web`` is Django's own server."""

    delivery: str
    url: str
    web: str
    store: BlobStore
    blob: Blob


@dataclass(frozen=True)
class Answer:
    """What came back; ``redirected`` when another server was asked."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    redirected: bool = False


@dataclass(frozen=True)
class Case:
    """A request, and the answer it must get: of ``{etag}`` the real one is put in."""

    says: str
    status: int
    section: slice | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


ALL = slice(0, SIZE)
LONG_AGO = "Sun, 06 Nov 1994 08:49:37 GMT"
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
    Case("several ranges", 200, ALL, {"Range": "bytes=0-1,5-6"}),
    Case("another unit", 200, ALL, {"Range": "lines=0-1"}),
    Case("an end before its start", 200, ALL, {"Range": "bytes=9-3"}),
    Case("not a number", 200, ALL, {"Range": "bytes=a-b"}),
    Case("no bounds", 200, ALL, {"Range": "bytes=-"}),
    Case("a negative number", 200, ALL, {"Range": "bytes=--5"}),
    # If-Range
    Case("if-range, same", 206, slice(5, 10), {"Range": "bytes=5-9", "If-Range": "{etag}"}),
    Case("if-range, other", 200, ALL, {"Range": "bytes=5-9", "If-Range": OTHER}),
    Case("if-range, weak", 200, ALL, {"Range": "bytes=5-9", "If-Range": "W/{etag}"}),
    Case("if-range, date", 200, ALL, {"Range": "bytes=5-9", "If-Range": LONG_AGO}),
    Case("if-range, other, behind", 200, ALL, {"Range": f"bytes={SIZE}-", "If-Range": OTHER}),
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
    # If-Match
    Case("match, same", 200, ALL, {"If-Match": "{etag}"}),
    Case("match, any", 200, ALL, {"If-Match": "*"}),
    Case("match, same, range", 206, slice(3, 5), {"If-Match": "{etag}", "Range": "bytes=3-4"}),
    Case("match, other", 412, None, {"If-Match": OTHER}),
    Case("match, weak", 412, None, {"If-Match": "W/{etag}"}),
    Case("match, other, and none-match", 412, None, {"If-Match": OTHER, "If-None-Match": "{etag}"}),
    # There is no Last-Modified, so nothing depends on a date.
    Case("modified since", 200, ALL, {"If-Modified-Since": "Tue, 19 Jan 2038 03:14:07 GMT"}),
    Case("unmodified since", 200, ALL, {"If-Unmodified-Since": LONG_AGO}),
]


@pytest.fixture(scope="module", params=["stream", "accel", "accel-s3", "redirect"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Run each way of sending with the servers it is used with."""
    delivery, _, on_s3 = request.param.partition("-")
    if on_s3 or delivery == "redirect":
        s3: services.S3 = request.getfixturevalue("s3_server")
        origin, env = s3.endpoint, s3.environment
        url = s3.url(s3.create_bucket())
        store = from_url(url, access_key=s3.access_key, secret_key=s3.secret_key)
    else:
        origin, env = "http://127.0.0.1", {}
        url = str(tmp_path_factory.mktemp("blobs"))
        store = from_url(url)
    env = {**env, "BLOB_STORE_URL": url, "ARTIFACT_DELIVERY": delivery}
    start = services.gunicorn if delivery == "accel" else services.waitress
    with contextlib.ExitStack() as stack:
        web = address = stack.enter_context(start(APPLICATION, env=env)).url
        if delivery == "accel":
            site = _nginx_site(web, folder=url, s3_origin=origin)
            address = stack.enter_context(services.nginx(site)).url
        yield Server(delivery, address, web, store, store.put_bytes(CONTENT))


def _nginx_site(web: str, *, folder: str, s3_origin: str) -> str:
    return f"""
    server {{
        listen 127.0.0.1:{{port}};
        set $blobs_folder "{folder}";
        set $blobs_s3 {s3_origin};
        include {BLOBS_CONF};
        location / {{ proxy_pass {web}; proxy_http_version 1.1; proxy_set_header Host $host; }}
    }}
    """


def _ask(server: Server, method: str, headers: Mapping[str, str], sha256: str = "") -> Answer:
    sent = {
        name: value.replace("{etag}", f'"{server.blob.sha256}"') for name, value in headers.items()
    }
    url = f"{server.url}/artifacts/{sha256 or server.blob.sha256}"
    answer = _request(url, method, sent)
    if answer.status != 302:
        return answer
    assert server.delivery == "redirect"
    assert answer.headers["Cache-Control"] == "no-store"
    there = _request(answer.headers["Location"], method, sent)
    return Answer(there.status, there.headers, there.body, redirected=True)


def _request(url: str, method: str, headers: Mapping[str, str]) -> Answer:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", headers=dict(headers))
        response = connection.getresponse()
        body = response.read()
        names = [name.lower() for name, _ in response.getheaders()]
        assert len(names) == len(set(names)), f"repeated header in {names}"
        return Answer(response.status, response.headers, body)
    finally:
        connection.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says.replace(" ", "-"))
def test_conformance(server: Server, case: Case) -> None:
    answer = _ask(server, "GET", case.headers)

    assert answer.status == case.status
    if case.section is not None:
        assert answer.body == CONTENT[case.section]
        assert answer.headers["Content-Length"] == str(len(CONTENT[case.section]))
        assert answer.headers["Content-Type"] == "application/x-tflite"
        assert (
            answer.headers["Content-Disposition"] == 'attachment; filename="recyclables 3.tflite"'
        )
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert answer.headers["Accept-Ranges"] == "bytes"
    if case.status == 206 and case.section is not None:
        span = f"bytes {case.section.start}-{case.section.stop - 1}/{SIZE}"
        assert answer.headers["Content-Range"] == span
    if case.status == 304:
        assert answer.body == b""
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    if case.status == 416:
        assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
    if case.status in {412, 416}:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert json.loads(answer.body)["status"] == case.status
    if not answer.redirected:
        assert answer.headers["ETag"] == f'"{server.blob.sha256}"'
        assert answer.headers.get("Last-Modified") is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says.replace(" ", "-"))
def test_head_is_get_without_the_body_and_without_ranges(server: Server, case: Case) -> None:
    answer = _ask(server, "HEAD", case.headers)

    assert answer.body == b""
    assert answer.status == {206: 200, 416: 200}.get(case.status, case.status)
    assert answer.headers["ETag"] == f'"{server.blob.sha256}"'
    if answer.status == 200:
        assert answer.headers["Content-Length"] == str(SIZE)
        assert answer.headers["Accept-Ranges"] == "bytes"


def test_an_empty_artifact_has_no_ranges(server: Server) -> None:
    empty = server.store.put_bytes(b"")
    for headers in ({}, {"Range": "bytes=0-"}, {"Range": "bytes=-5"}):
        answer = _ask(server, "GET", headers, empty.sha256)
        assert (answer.status, answer.body) == (200, b"")


def test_a_download_goes_on_where_it_was_cut(server: Server) -> None:
    parts = []
    for start in range(0, SIZE, 30_000):
        headers = {"Range": f"bytes={start}-{start + 29_999}", "If-Range": "{etag}"}
        answer = _ask(server, "GET", headers)
        assert answer.status == 206
        parts.append(answer.body)
    assert b"".join(parts) == CONTENT


def test_the_bytes_come_from_where_they_should(server: Server) -> None:
    url = f"{server.web}/artifacts/{server.blob.sha256}"
    for headers in ({}, {"Range": "bytes=0-9"}):
        answer = _request(url, "GET", headers)
        sent_by_django = answer.body != b""
        assert sent_by_django == (server.delivery == "stream")
        assert ("X-Accel-Redirect" in answer.headers) == (server.delivery == "accel")
        assert ("Location" in answer.headers) == (server.delivery == "redirect")


def test_nobody_reaches_the_files_past_django(server: Server) -> None:
    first, second = server.blob.sha256[:2], server.blob.sha256[2:4]
    for location in ("ranged", "whole"):
        url = f"{server.url}/_blobs/{location}/sha256/{first}/{second}/{server.blob.sha256}"
        assert _request(url, "GET", {}).status == 404


def test_slow_readers_take_no_thread(tmp_path_factory: pytest.TempPathFactory) -> None:
    # More than waitress holds back for a reader: a response without a file would keep a thread.
    folder = tmp_path_factory.mktemp("blobs")
    blob = from_url(str(folder)).put_bytes(bytes(40_000_000))
    env = {"BLOB_STORE_URL": str(folder), "ARTIFACT_DELIVERY": "stream"}
    with services.waitress(APPLICATION, threads=2, env=env) as web, contextlib.ExitStack() as stack:
        for _ in range(20):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            slow.sendall(f"GET /artifacts/{blob.sha256} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert slow.recv(12) == b"HTTP/1.1 200"
        for _ in range(5):
            assert _request(f"{web.url}/quick", "GET", {}).body == b"quick"


@given(header=st.text(), size_bytes=st.integers(0, 2**40))
def test_no_header_breaks_the_parser(header: str, size_bytes: int) -> None:
    for text in (header, f"bytes={header}"):
        section = parse_range(text, size_bytes)
        assert section is None or section.stop <= size_bytes or not section


@given(st.integers(1, 2**40), st.integers(0, 2**41), st.integers(0, 2**41))
def test_every_well_formed_range_selects_its_bytes(size_bytes: int, first: int, last: int) -> None:
    section = parse_range(f"bytes={first}-{last}", size_bytes)
    if last < first:
        assert section is None
    else:
        assert section is not None
        assert list(section[:1]) == ([first] if first < size_bytes else [])
        assert list(section[-1:]) == ([min(last, size_bytes - 1)] if first < size_bytes else [])

"""Every way of sending an artifact conforms to one table, through real servers."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.blobs import Blob, BlobStore, from_url
from server.http.ranges import parse_range
from tests.http.conformance import (
    CASES,
    CONTENT,
    SIZE,
    WAYS,
    Case,
    Subject,
    ask,
    assert_conforms,
    assert_head_conforms,
    place_for,
    request,
    serving,
)
from tests.support import services

APPLICATION = "tests.http.ranged_app:application"


@dataclass(frozen=True)
class Server:
    """Where the artifacts are, and by which way they are sent; ``web`` is Django's own server."""

    way: str
    url: str
    web: str
    store: BlobStore
    blob: Blob


@pytest.fixture(scope="module", params=WAYS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Run each way of sending with the servers it is used with."""
    s3 = request.getfixturevalue("s3_server") if request.param.endswith("s3") else None
    place = place_for(request.param, tmp_path_factory.mktemp("blobs"), s3)
    store = place.open_store()
    with serving(place, APPLICATION) as (url, web):
        yield Server(request.param, url, web, store, store.put_bytes(CONTENT))


def _subject(server: Server, sha256: str = "") -> Subject:
    return Subject(
        way=server.way,
        url=f"{server.url}/artifacts/{sha256 or server.blob.sha256}",
        sha256=server.blob.sha256,
        media_type="application/x-tflite",
        disposition='attachment; filename="recyclables 3.tflite"',
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says.replace(" ", "-"))
def test_conformance(server: Server, case: Case) -> None:
    subject = _subject(server)
    assert_conforms(subject, case, ask(subject, "GET", case.headers))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says.replace(" ", "-"))
def test_head_is_get_without_the_body_and_without_ranges(server: Server, case: Case) -> None:
    subject = _subject(server)
    assert_head_conforms(subject, case, ask(subject, "HEAD", case.headers))


def test_an_empty_artifact_has_no_ranges(server: Server) -> None:
    # No 206 can say "no bytes", and 416 would keep a download that begins at 0 from its end: all
    # ranges are ignored, as section 14.2 allows.
    empty = server.store.put_bytes(b"")
    for text in ("", "bytes=0-", "bytes=0-0", "bytes=-5", "bytes=-0", "bytes=7-"):
        answer = ask(_subject(server, empty.sha256), "GET", {"Range": text} if text else {})
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["Content-Length"] == "0"


def test_answers_on_one_connection_stay_apart(server: Server) -> None:
    tag = f'"{server.blob.sha256}"'
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    path = f"{parts.path}/artifacts/{server.blob.sha256}"
    wanted = [
        ("GET", {"If-None-Match": tag}, 304, b""),
        ("HEAD", {}, 200, b""),
        ("GET", {"Range": "bytes=7-9", "If-Match": tag}, 206, CONTENT[7:10]),
        ("HEAD", {"Range": f"bytes={SIZE}-"}, 200, b""),
        ("GET", {"If-Match": tag}, 200, CONTENT),
        ("GET", {"If-Match": tag, "Range": "bytes=-1"}, 206, CONTENT[-1:]),
    ]
    with contextlib.closing(connection):
        for method, headers, status, body in wanted:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            got = (response.status, response.read())
            if response.status != 302:
                assert got == (status, body)


def test_a_download_goes_on_where_it_was_cut(server: Server) -> None:
    parts = []
    for start in range(0, SIZE, 30_000):
        headers = {"Range": f"bytes={start}-{start + 29_999}", "If-Range": "{etag}"}
        answer = ask(_subject(server), "GET", headers)
        assert answer.status == 206
        parts.append(answer.body)
    assert b"".join(parts) == CONTENT


def test_the_bytes_come_from_where_they_should(server: Server) -> None:
    url = f"{server.web}/artifacts/{server.blob.sha256}"
    for headers in ({}, {"Range": "bytes=0-9"}):
        answer = request(url, "GET", headers)
        sent_by_django = answer.body != b""
        assert sent_by_django == (server.way.startswith("stream"))
        assert ("X-Accel-Redirect" in answer.headers) == (server.way.startswith("accel"))
        assert ("Location" in answer.headers) == (server.way.startswith("redirect"))


def test_nobody_reaches_the_files_past_django(server: Server) -> None:
    first, second = server.blob.sha256[:2], server.blob.sha256[2:4]
    for location in ("ranged", "whole"):
        url = f"{server.url}/_blobs/{location}/sha256/{first}/{second}/{server.blob.sha256}"
        assert request(url, "GET", {}).status == 404


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
            assert request(f"{web.url}/quick", "GET", {}).body == b"quick"


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

"""Kills, cut connections, absent servers, wrong addresses."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from server.blobs import (
    BlobStore,
    BlobStoreUnavailable,
    LocalBlobStore,
    S3BlobStore,
    from_url,
    store,
)
from server.blobs import reset as reset_store
from server.blobs.local import LEFTOVER_AGE_S
from tests.support import services
from tests.support.data import REPOSITORY
from tests.support.processes import HOST, free_port

HALF_A_PUT = """
import io, sys, time
from server.blobs import from_url

class Stalling(io.BytesIO):
    def read(self, size=-1):
        if chunk := super().read(size):
            return chunk
        print("half way", flush=True)
        time.sleep(600)

from_url(sys.argv[1]).put_stream(Stalling(b"x" * 20_000_000))
"""
HALF_AN_UPLOAD = """
import sys, time
from server.blobs import from_url

store = from_url(sys.argv[1])
store.part_bytes = 5 * 2**20
parts = []

def stall(**_):
    parts.append(1)
    if len(parts) == 3:
        print("half way", flush=True)
        time.sleep(600)

store._client.meta.events.register("before-call.s3.UploadPart", stall)
store.put_bytes(b"x" * 20_000_000)
"""


def _kill_half_way(program: str, url: str, env: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", program, url],
        cwd=REPOSITORY,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half way\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_kill_in_the_middle_of_a_put_leaves_nothing_to_see(tmp_path: Path) -> None:
    _kill_half_way(HALF_A_PUT, str(tmp_path), {})

    local = LocalBlobStore(tmp_path)
    assert list(local.iterate()) == []
    (leftover,) = (tmp_path / "incoming").iterdir()
    assert leftover.stat().st_size > 0

    local.put_bytes(b"while another process may still be writing")
    assert leftover.exists()
    long_ago = time.time() - LEFTOVER_AGE_S - 1
    os.utime(leftover, (long_ago, long_ago))
    local.put_bytes(b"a day later")
    assert not list((tmp_path / "incoming").iterdir())


def test_a_kill_in_the_middle_of_an_upload_in_parts_leaves_nothing_to_see(
    s3_server: services.S3,
) -> None:
    url = s3_server.url(s3_server.create_bucket())
    _kill_half_way(HALF_AN_UPLOAD, url, s3_server.environment)

    s3 = _s3_store(url, s3_server)
    assert list(s3.iterate()) == []
    blob = s3.put_bytes(b"x" * 20_000_000)
    assert s3.verify(blob.sha256) == blob


def test_large_blobs_go_up_in_parts(s3_store: S3BlobStore) -> None:
    s3_store.part_bytes = 5 * 2**20
    content = os.urandom(12 * 2**20 + 17)
    blob = s3_store.put_bytes(content)
    assert s3_store.read(blob.sha256) == content
    answer = s3_store._client.head_object(**s3_store._object(blob.sha256))
    assert answer["ETag"].strip('"').endswith("-3")


def test_a_reader_outlives_cut_connections(s3_server: services.S3, s3_bucket: str) -> None:
    content = os.urandom(3_000_000)
    direct = _s3_store(s3_server.url(s3_bucket), s3_server)
    sha256 = direct.put_bytes(content).sha256
    with _cutting_proxy(s3_server.endpoint, cut_after=800_000) as endpoint:
        cut = _s3_store(
            f"s3://{s3_bucket}?endpoint={endpoint}&region={s3_server.region}", s3_server
        )
        assert cut.read(sha256) == content


def test_a_presigned_address_is_for_one_blob_and_a_while(s3_store: S3BlobStore) -> None:
    sha256 = s3_store.put_bytes(b"a model").sha256
    other = s3_store.put_bytes(b"a photo nobody may see").sha256

    def presign(expires_s: int) -> str:
        url = s3_store.presign(
            sha256, media_type="application/x-test", filename="gö.tflite", expires_s=expires_s
        )
        assert url is not None
        return url

    with urllib.request.urlopen(presign(60)) as answer:
        assert answer.read() == b"a model"
        assert answer.headers["Content-Type"] == "application/x-test"
        assert answer.headers["Content-Disposition"] == (
            "attachment; filename*=utf-8''g%C3%B6.tflite"
        )
    url = presign(60)
    expired = presign(1)
    time.sleep(2)
    for refused in (
        expired,
        url.replace(sha256, other).replace(
            f"{sha256[:2]}/{sha256[2:4]}", f"{other[:2]}/{other[2:4]}"
        ),
        url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"),
        url.partition("?")[0],
    ):
        with pytest.raises(urllib.error.HTTPError, match="403") as caught:
            urllib.request.urlopen(refused)
        caught.value.close()


def test_a_folder_has_no_web_address(tmp_path: Path) -> None:
    local = LocalBlobStore(tmp_path)
    sha256 = local.put_bytes(b"a model").sha256
    assert local.presign(sha256, media_type="a/b", filename="m", expires_s=60) is None


def test_a_store_that_does_not_answer_is_unavailable(s3_server: services.S3) -> None:
    nobody = _s3_store(f"s3://bucket?endpoint=http://{HOST}:{free_port()}", s3_server)
    no_bucket = _s3_store(s3_server.url("no-such-bucket"), s3_server)
    wrong_key = from_url(s3_server.url("some-bucket"), access_key="wrong", secret_key="wrong")
    for unavailable in (nobody, no_bucket, wrong_key):
        assert not unavailable.healthy()
        with pytest.raises(BlobStoreUnavailable, match="BLOB_STORE_URL") as caught:
            unavailable.put_bytes(b"bytes")
        assert (caught.value.status, caught.value.code) == (503, "blob_store_unavailable")


def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    local = LocalBlobStore(tmp_path / "file" / "blobs")
    assert not local.healthy()
    with pytest.raises(BlobStoreUnavailable, match="BLOB_STORE_URL"):
        local.put_bytes(b"bytes")


@pytest.mark.parametrize(
    ("url", "fact"),
    [
        ("", "takes a folder"),
        ("https://bucket", "takes a folder"),
        ("file://host/folder", "absolute path"),
        ("s3://", "no possible bucket"),
        ("s3://Bucket", "no possible bucket"),
        ("s3://key:secret@bucket", "may not hold credentials"),
        ("s3://bucket/folder", r"\?prefix="),
        ("s3://bucket?endpiont=http://a", "unknown option 'endpiont'"),
        ("s3://bucket?endpoint=localhost:9000", "no http:// or https:// address"),
    ],
)
def test_a_wrong_address_names_the_setting(url: str, fact: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"BLOB_STORE_URL.*{fact}"):
        from_url(url)


def test_addresses_name_stores(tmp_path: Path) -> None:
    for url in (str(tmp_path), f"file://{tmp_path}"):
        local = from_url(url)
        assert isinstance(local, LocalBlobStore)
        assert local.folder == tmp_path
    s3 = from_url("s3://bucket?endpoint=https://s3.example&prefix=/a/b/&region=eu-1")
    assert isinstance(s3, S3BlobStore)
    assert (s3.location.prefix, s3.location.region) == ("a/b/", "eu-1")


def test_a_missing_bucket_can_be_made(s3_server: services.S3) -> None:
    url = s3_server.url(f"nf-{uuid.uuid4().hex[:12]}")
    env = {**os.environ, **s3_server.environment, "BLOB_STORE_URL": url}
    for _ in range(2):
        command = [sys.executable, "-m", "server.blobs"]
        done = subprocess.run(command, cwd=REPOSITORY, env=env, check=False, capture_output=True)
        assert done.returncode == 0, done.stderr
    s3 = _s3_store(url, s3_server)
    assert s3.healthy()
    assert s3.put_bytes(b"bytes").size_bytes == 5


def test_half_a_pair_of_keys_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="belong together"):
        from_url("s3://bucket", secret_key="secret")


def test_the_settings_name_the_store(
    monkeypatch: pytest.MonkeyPatch, s3_server: services.S3, tmp_path: Path
) -> None:
    url = s3_server.url(s3_server.create_bucket())
    secret = tmp_path / "secret"
    secret.write_text(s3_server.secret_key + "\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY_FILE", str(secret))
    reset_store()
    try:
        with override_settings(BLOB_STORE_URL=url):
            assert store().put_bytes(b"bytes").size_bytes == 5
            assert store() is store()
    finally:
        reset_store()


def _s3_store(url: str, server: services.S3) -> BlobStore:
    return from_url(url, access_key=server.access_key, secret_key=server.secret_key)


@contextlib.contextmanager
def _cutting_proxy(endpoint: str, *, cut_after: int) -> Iterator[str]:
    """Pass TCP connections on, and cut each one after ``cut_after`` bytes of its answer."""
    target = urlsplit(endpoint)
    listener = socket.create_server((HOST, free_port()))

    def pump(source: socket.socket, sink: socket.socket, limit: int) -> None:
        with contextlib.suppress(OSError):
            while limit > 0 and (chunk := source.recv(min(65_536, limit))):
                sink.sendall(chunk)
                limit -= len(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((target.hostname, target.port))
                for ends in ((client, server, 2**40), (server, client, cut_after)):
                    # Each thread closes the end it reads from.
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://{HOST}:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()

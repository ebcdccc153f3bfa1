"""What both kinds of store promise, on a local folder and on a real S3 server."""

from __future__ import annotations

import hashlib
import io
import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.blobs import (
    Blob,
    BlobCorrupted,
    BlobNotFound,
    BlobStore,
    InvalidBlobName,
    LocalBlobStore,
    S3BlobStore,
    key,
)

ABSENT = hashlib.sha256(b"never stored").hexdigest()


def test_bytes_come_back_under_their_hash(store: BlobStore) -> None:
    content = random.Random(1).randbytes(300_000)

    blob = store.put_bytes(content)

    assert blob == Blob(hashlib.sha256(content).hexdigest(), 300_000)
    assert store.exists(blob.sha256)
    assert store.size_bytes(blob.sha256) == 300_000
    assert store.read(blob.sha256) == content
    assert store.read(blob.sha256, start=299_990, size_bytes=100) == content[-10:]
    assert store.verify(blob.sha256) == blob
    assert store.put_bytes(content) == blob
    assert list(store.iterate()) == [blob]


def test_an_empty_blob_is_a_blob(store: BlobStore) -> None:
    blob = store.put_bytes(b"")
    assert store.read(blob.sha256) == b""
    assert store.size_bytes(blob.sha256) == 0


def test_a_file_goes_in_and_comes_out(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "model.tflite"
    source.write_bytes(os.urandom(100_000))
    blob = store.put_file(source)
    copy = store.download(blob.sha256, tmp_path / "copy.tflite")
    assert copy.read_bytes() == source.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} <= {"model.tflite", "copy.tflite", "blobs"}


def test_readers_seek_like_files(store: BlobStore) -> None:
    content = random.Random(2).randbytes(700_000)
    sha256 = store.put_bytes(content).sha256
    expected, moves = io.BytesIO(content), random.Random(3)
    with store.open(sha256) as reader:
        assert reader.seekable()
        for _ in range(40):
            whence = moves.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
            base = {os.SEEK_SET: 0, os.SEEK_CUR: expected.tell(), os.SEEK_END: len(content)}
            position = moves.randrange(len(content) + 1000)
            assert reader.seek(position - base[whence], whence) == position
            expected.seek(position)
            size_bytes = moves.choice([0, 1, 5_000, 400_000])
            assert reader.read(size_bytes) == expected.read(size_bytes)
            assert reader.tell() == expected.tell()


def test_what_is_not_there_is_not_found(store: BlobStore, tmp_path: Path) -> None:
    store.put_bytes(b"something else")
    assert not store.exists(ABSENT)
    for ask in (store.open, store.size_bytes, store.read, store.verify):
        with pytest.raises(BlobNotFound, match=ABSENT):
            ask(ABSENT)
    with pytest.raises(BlobNotFound):
        store.download(ABSENT, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_deleting_removes_one_blob_and_may_be_repeated(store: BlobStore) -> None:
    kept, removed = store.put_bytes(b"kept"), store.put_bytes(b"removed")
    store.delete(removed.sha256)
    store.delete(removed.sha256)
    assert not store.exists(removed.sha256)
    assert list(store.iterate()) == [kept]


def test_listing_is_in_order_and_leaves_out_what_is_no_blob(store: BlobStore) -> None:
    assert list(store.iterate()) == []
    blobs = {store.put_bytes(bytes([number])) for number in range(12)}
    _put_foreign_object(store, f"sha256/00/11/{ABSENT}")
    _put_foreign_object(store, "sha256/notes.txt")
    listed = list(store.iterate())
    assert listed == sorted(blobs, key=lambda blob: blob.sha256)


def test_many_threads_may_store_the_same_bytes(store: BlobStore) -> None:
    content, hashes = os.urandom(200_000), []
    threads = [
        threading.Thread(target=lambda: hashes.append(store.put_bytes(content).sha256))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hashes == [hashlib.sha256(content).hexdigest()] * 8
    assert store.read(hashes[0]) == content


def test_damage_is_noticed_on_the_way_out(store: BlobStore, tmp_path: Path) -> None:
    blob = store.put_bytes(b"the right bytes")
    _put_foreign_object(store, key(blob.sha256), b"the wrong bytes")
    with pytest.raises(BlobCorrupted, match=blob.sha256):
        store.verify(blob.sha256)
    with pytest.raises(BlobCorrupted, match=blob.sha256):
        store.download(blob.sha256, tmp_path / "copy")
    assert not list(tmp_path.glob("*copy*"))


def test_a_blob_cut_short_is_healed_by_storing_it_again(store: BlobStore) -> None:
    blob = store.put_bytes(b"all of the bytes")
    _put_foreign_object(store, key(blob.sha256), b"all of")
    store.put_bytes(b"all of the bytes")
    assert store.verify(blob.sha256) == blob


def test_a_source_that_fails_leaves_nothing(store: BlobStore) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if chunk := super().read(size):
                return chunk
            message = "the client went away"
            raise ConnectionResetError(message)

    with pytest.raises(Exception, match="went away"):
        store.put_stream(Failing(b"x" * 3_000_000))
    assert list(store.iterate()) == []


def test_a_working_store_says_so(store: BlobStore) -> None:
    assert store.healthy()


NAMES = st.one_of(
    st.text(),
    st.sampled_from(["..", "../" * 16, "a" * 63, "A" * 64, "a" * 65, "a" * 64 + "\n", "g" * 64]),
    st.text(alphabet="0123456789abcdef/.", min_size=60, max_size=66),
    st.text(alphabet="٠١٢٣٤٥٦٧٨٩", min_size=64, max_size=64),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES)
def test_no_name_but_a_hash_reaches_a_store(tmp_path: Path, name: str) -> None:
    is_hash = len(name) == 64 and set(name) <= set("0123456789abcdef")
    local = LocalBlobStore(tmp_path)
    if is_hash:
        assert local.path(name).is_relative_to(tmp_path / "sha256")
        return
    for ask in (local.open, local.exists, local.delete, local.size_bytes, local.path):
        with pytest.raises(InvalidBlobName, match="64 digits"):
            ask(name)


@given(content=st.binary(max_size=2_000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_bytes_round_trip(tmp_path: Path, content: bytes) -> None:
    local = LocalBlobStore(tmp_path)
    blob = local.put_bytes(content)
    assert blob.sha256 == hashlib.sha256(content).hexdigest()
    assert local.read(blob.sha256) == content


def _put_foreign_object(store: BlobStore, name: str, content: bytes = b"foreign") -> None:
    """Write under a store's feet, as a careless person or a failing disk would."""
    if isinstance(store, LocalBlobStore):
        path = store.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    else:
        assert isinstance(store, S3BlobStore)
        where = {"Bucket": store.location.bucket, "Key": store.location.prefix + name}
        store._client.put_object(**where, Body=content)

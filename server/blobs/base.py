"""What every blob store does: keep immutable bytes under the sha256 of their content."""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from server.blobs.errors import BlobCorrupted, InvalidBlobName

CHUNK_BYTES = 2**20
# A blob never changes, so whoever has it may keep it.
CACHE_CONTROL = "public, max-age=31536000, immutable"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Blob:
    """Stored bytes: their hash, which is their name, and how many there are."""

    sha256: str
    size_bytes: int


def key(sha256: str) -> str:
    """Return the path of a blob inside any store: ``sha256/ab/cd/abcd…``.

    Raises `InvalidBlobName` for anything but 64 lower-case hexadecimal digits, so that no name
    from outside can leave the store.
    """
    if not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        message = "A blob is named by its sha256: 64 digits of 0-9 and a-f."
        raise InvalidBlobName(message)
    return f"sha256/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def sha256_of_key(path: str) -> str | None:
    """Return the hash a path inside a store stands for, None for anything that is no blob."""
    name = path.rpartition("/")[2]
    return name if _SHA256.fullmatch(name) and key(name) == path else None


class BlobStore(ABC):
    """Immutable bytes, addressed by their content. Safe to use from several threads."""

    @abstractmethod
    def put_stream(self, source: BinaryIO) -> Blob:
        """Store what ``source`` still has to give; storing the same bytes again changes nothing.

        The blob becomes visible whole or not at all. Raises `BlobStoreUnavailable`.
        """

    @abstractmethod
    def open(self, sha256: str) -> BinaryIO:
        """Return a seekable reader. Raises `BlobNotFound`, `BlobStoreUnavailable`."""

    @abstractmethod
    def size_bytes(self, sha256: str) -> int:
        """Return a blob's size. Raises `BlobNotFound`, `BlobStoreUnavailable`."""

    @abstractmethod
    def exists(self, sha256: str) -> bool:
        """Tell whether a blob is stored. Raises `BlobStoreUnavailable`."""

    @abstractmethod
    def delete(self, sha256: str) -> None:
        """Remove a blob; removing one that is not there changes nothing."""

    @abstractmethod
    def iterate(self) -> Iterator[Blob]:
        """Yield every blob, in the order of their hashes."""

    @abstractmethod
    def presign(self, sha256: str, *, media_type: str, filename: str, expires_s: int) -> str | None:
        """Return an address that gives the blob to anyone for a while; None if there is none."""

    @abstractmethod
    def accel_path(self, sha256: str, *, media_type: str) -> str:
        """Return where nginx finds the blob, below the locations of ``deploy/nginx/blobs.conf``."""

    @abstractmethod
    def healthy(self) -> bool:
        """Tell whether blobs can be stored and read now; the reason why not is logged."""

    def put_bytes(self, content: bytes) -> Blob:
        """Store bytes held in memory."""
        return self.put_stream(io.BytesIO(content))

    def put_file(self, path: Path) -> Blob:
        """Store a copy of a file."""
        with path.open("rb") as source:
            return self.put_stream(source)

    def read(self, sha256: str, *, start: int = 0, size_bytes: int | None = None) -> bytes:
        """Return a blob's bytes, or at most ``size_bytes`` of them from ``start`` on."""
        with self.open(sha256) as reader:
            reader.seek(start)
            return reader.read(-1 if size_bytes is None else size_bytes)

    def download(self, sha256: str, path: Path) -> Path:
        """Copy a blob to a file, which appears complete and with the right hash or not at all.

        Raises `BlobCorrupted` when the stored bytes are damaged.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(6)}")
        try:
            with self.open(sha256) as source, temporary.open("xb") as target:
                blob = copy_hashed(source, target)
            if blob.sha256 != sha256:
                message = f"The stored blob {sha256} now has the hash {blob.sha256}."
                raise BlobCorrupted(message)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def verify(self, sha256: str) -> Blob:
        """Read a whole blob and compare its hash. Raises `BlobCorrupted`, `BlobNotFound`."""
        with self.open(sha256) as source:
            blob = copy_hashed(source, None)
        if blob.sha256 != sha256:
            message = f"The stored blob {sha256} now has the hash {blob.sha256}."
            raise BlobCorrupted(message)
        return blob


def copy_hashed(source: BinaryIO, target: BinaryIO | None) -> Blob:
    """Copy a stream in bounded memory (into nothing where ``target`` is None), hashing it."""
    digest, size_bytes = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        size_bytes += len(chunk)
        if target is not None:
            target.write(chunk)
    return Blob(digest.hexdigest(), size_bytes)

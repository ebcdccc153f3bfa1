"""Blobs in a local folder."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from server.blobs.base import Blob, BlobStore, copy_hashed, key, sha256_of_key
from server.blobs.errors import BlobNotFound, BlobStoreUnavailable

LEFTOVER_AGE_S = 24 * 3600
log = logging.getLogger(__name__)


class LocalBlobStore(BlobStore):
    """Files ``sha256/ab/cd/abcd…`` under one folder; ``incoming/`` holds what is being written."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, which is made with the first blob."""
        self.folder = folder

    def put_stream(self, source: BinaryIO) -> Blob:
        """Write to a file of this process alone, then rename it to its hash."""
        with self._translated():
            incoming = self.folder / "incoming"
            incoming.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(incoming)
            temporary = incoming / f"{os.getpid()}-{secrets.token_hex(8)}"
            try:
                with temporary.open("xb") as target:
                    blob = copy_hashed(source, target)
                    target.flush()
                    os.fsync(target.fileno())
                self._install(temporary, blob)
            finally:
                temporary.unlink(missing_ok=True)
        return blob

    def _install(self, temporary: Path, blob: Blob) -> None:
        path = self.path(blob.sha256)
        # A file cut short by a full disk long ago is replaced; a whole one stays untouched.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == blob.size_bytes:
                return
        new_folders = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.chmod(0o644)
        temporary.replace(path)
        for folder in (path.parent, *(folder.parent for folder in new_folders)):
            _sync_folder(folder)

    def path(self, sha256: str) -> Path:
        """Return the file a blob is in, whether or not it is there."""
        return self.folder / key(sha256)

    def open(self, sha256: str) -> BinaryIO:
        """Return the open file."""
        with self._translated(sha256):
            return self.path(sha256).open("rb")

    def size_bytes(self, sha256: str) -> int:
        """Return the file's size."""
        with self._translated(sha256):
            return self.path(sha256).stat().st_size

    def exists(self, sha256: str) -> bool:
        """Tell whether the file is there."""
        with self._translated(sha256):
            return self.path(sha256).is_file()

    def delete(self, sha256: str) -> None:
        """Remove the file."""
        with self._translated(sha256):
            path = self.path(sha256)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                _sync_folder(path.parent)

    def iterate(self) -> Iterator[Blob]:
        """Walk the folders; files of other names are left out."""
        for path in sorted((self.folder / "sha256").glob("??/??/*")):
            sha256 = sha256_of_key(path.relative_to(self.folder).as_posix())
            if sha256 is not None:
                # Deleted since the folder was listed: no longer a blob.
                with contextlib.suppress(FileNotFoundError):
                    yield Blob(sha256, path.stat().st_size)

    def presign(
        self,
        sha256: str,  # noqa: ARG002 - the same for every blob
        *,
        media_type: str,  # noqa: ARG002
        filename: str,  # noqa: ARG002
        expires_s: int,  # noqa: ARG002
    ) -> str | None:
        """Return None: a folder has no web address."""
        return None

    def accel_path(self, sha256: str, *, media_type: str) -> str:  # noqa: ARG002 - nginx keeps ours
        """Return the file's path below the folder, which nginx reads itself."""
        return key(sha256)

    def healthy(self) -> bool:
        """Write, rename and remove a file."""
        probe = self.folder / "incoming" / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"probe")
            probe.unlink()
        except OSError as error:
            log.warning("blob store %s cannot be written: %s", self.folder, error.strerror)
            return False
        return True

    @contextlib.contextmanager
    def _translated(self, sha256: str = "") -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            message = f"No blob {sha256} is stored."
            raise BlobNotFound(message) from error
        except OSError as error:
            message = f"The blob store (BLOB_STORE_URL) failed: {error.strerror or error}."
            raise BlobStoreUnavailable(message) from error


def _remove_leftovers(incoming: Path) -> None:
    """Remove what killed processes left half written; a living one writes for minutes, not days."""
    oldest = time.time() - LEFTOVER_AGE_S
    for path in incoming.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` outlive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

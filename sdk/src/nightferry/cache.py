"""Model files by content hash, written so that a file under its final name is always whole.

Layout below the cache folder::

    blobs/sha256/ab/abcd…        verified model files, read-only
    partial/abcd….<unique>.part  transfers under way, or left by a killed process
    partial/abcd….<unique>.etag  the validator under which those bytes were sent
    partial/abcd….<unique>.made  a file that a patch is being applied to
    locks/ab.lock                so that two processes do not download one file twice
    servers/…                    what is installed, per server (see ``nightferry.state``)
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, BinaryIO, Self

from nightferry.errors import DiskFullError, DownloadInterruptedError
from nightferry.files import (
    FileLock,
    free_bytes,
    remove,
    storage_error,
    storing,
    sync_folder,
    unique_suffix,
    write_atomically,
)
from nightferry.trust import Target, check_digest

if TYPE_CHECKING:
    import hashlib
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

FREE_SPACE_FACTOR = 2
ABANDONED_AFTER_S = 7 * 24 * 3600
_CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BlobCache:
    """The folder of verified files. Makes nothing until something is stored."""

    def __init__(self, root: Path) -> None:
        """Use ``root`` as the cache folder."""
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._partials = root / "partial"

    def path_of(self, sha256: str) -> Path:
        """Return where the file with this hash lies, or would lie."""
        return self._blobs / sha256[:2] / sha256

    def relative_path_of(self, sha256: str) -> str:
        """Return the same below the cache folder, for ``state.json`` (app folders move)."""
        return self.path_of(sha256).relative_to(self.root).as_posix()

    def has(self, sha256: str, size_bytes: int) -> bool:
        """Tell whether the file is here with its full size (its hash was checked on the way in)."""
        try:
            return self.path_of(sha256).stat().st_size == size_bytes
        except OSError:
            return False

    def lock(self, sha256: str) -> FileLock:
        """Return the lock under which this file is downloaded."""
        return FileLock(self.root / "locks" / f"{sha256[:2]}.lock")

    def check_space(self, size_bytes: int) -> None:
        """Raise DiskFullError unless twice the size is free."""
        free = free_bytes(self.root)
        if free is not None and free < FREE_SPACE_FACTOR * size_bytes:
            message = (
                f"{size_bytes} bytes are to be downloaded and only {free} are free; "
                f"{FREE_SPACE_FACTOR * size_bytes} are wanted so that the device stays usable."
            )
            raise DiskFullError(message)

    def partial_bytes(self, sha256: str) -> int:
        """Return how far the furthest transfer of this file has come."""
        return max((_size(path) for path in self._partials_of(sha256)), default=0)

    def begin(self, target: Target) -> Partial:
        """Start a transfer, with the bytes that an interrupted one left. Raises StorageError."""
        partial = Partial(self, target, self._partials / f"{target.sha256}.{unique_suffix()}.part")
        try:
            self._adopt(partial, target)
        except BaseException:
            partial.abandon()
            raise
        return partial

    def begin_patched(self, target: Target) -> Partial:
        """Start a file that is made here, from nothing. Raises StorageError."""
        return Partial(self, target, self._partials / f"{target.sha256}.{unique_suffix()}.made")

    def touch(self, sha256: str) -> None:
        """Note that the file is used now; a cache that may not be written stays as it is."""
        with contextlib.suppress(OSError):
            os.utime(self.path_of(sha256))

    def compiled_of(self, sha256: str) -> Path:
        """Return the folder of what the app has compiled of the file (see ``compiled``)."""
        return self.root / "compiled" / sha256

    def remove(self, sha256: str) -> bool:
        """Delete the file with this hash and what was compiled of it; say whether it is gone."""
        if self.compiled_of(sha256).is_dir():
            import shutil

            shutil.rmtree(self.compiled_of(sha256), ignore_errors=True)
        return remove(self.path_of(sha256))

    def discard_partials(self, sha256: str) -> None:
        """Delete what interrupted transfers of this file left."""
        for path in self._partials.glob(f"{sha256}.*"):
            remove(path)

    def partials(self) -> Iterator[tuple[str, Path]]:
        """List the hash and path of every unfinished transfer."""
        for path in sorted(self._partials.glob("*.part")):
            yield path.name.partition(".")[0], path

    def stored(self) -> Iterator[tuple[str, Path]]:
        """List the hash and path of every file under its final name."""
        for path in sorted(self._blobs.glob("??/*")):
            if _SHA256.fullmatch(path.name):
                yield path.name, path

    def sweep(self) -> None:
        """Delete transfers and temporary files that nobody has touched for a week."""
        limit = time.time() - ABANDONED_AFTER_S
        leftovers = [*self._partials.glob("*"), *self.root.rglob(".*.tmp")]
        for path in leftovers:
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < limit:
                    remove(path)

    def _partials_of(self, sha256: str) -> list[Path]:
        return list(self._partials.glob(f"{sha256}.*.part"))

    def _adopt(self, partial: Partial, target: Target) -> None:
        """Copy the furthest leftover: its writer may yet live, where locks are granted to all."""
        leftovers = [path for path in self._partials_of(target.sha256) if path != partial.path]
        if not leftovers:
            return
        best = max(leftovers, key=_size)
        if 0 < _size(best) < target.size_bytes:
            partial.copy_from(best)
        for path in leftovers:
            remove(path)
            remove(path.with_suffix(".etag"))


class Partial:
    """One transfer into a file of its own, hashed as it is written."""

    def __init__(self, cache: BlobCache, target: Target, path: Path) -> None:
        """Create the file. Raises StorageError."""
        self._cache = cache
        self._target = target
        self.path = path
        self.size = 0
        self.etag = ""
        self.resumed_bytes = 0
        self._hash = _sha256()
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("w+b")

    def append(self, chunk: bytes) -> None:
        """Write and hash some bytes. Raises StorageError."""
        with storing(self.path):
            self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def restart(self, etag: str = "") -> None:
        """Throw the bytes away and remember under which validator the next ones come."""
        with storing(self.path):
            self._file.seek(0)
            self._file.truncate()
        self._hash = _sha256()
        self.size = self.resumed_bytes = 0
        self.etag = etag
        if etag:
            write_atomically(self.path.with_suffix(".etag"), etag.encode(), durable=False)

    def copy_from(self, leftover: Path) -> None:
        """Continue from the bytes another transfer left, under the validator it had."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self.restart(leftover.with_suffix(".etag").read_text("utf-8"))
        try:
            with leftover.open("rb") as source:
                while chunk := source.read(_CHUNK_BYTES):
                    self.append(chunk)
        except OSError:
            self.restart()
        self.resumed_bytes = self.size

    def commit(self, name: str) -> None:
        """Verify, make durable, and give the file its final name.

        Raises IntegrityError (the bytes are gone then), StorageError, DownloadInterruptedError.
        """
        try:
            check_digest(self._hash.hexdigest(), self._target, name)
            with storing(self.path):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self.path.chmod(0o444)
            self._rename()
        finally:
            self.abandon()

    def pause(self) -> None:
        """Close the file and leave its bytes for the next try."""
        with contextlib.suppress(OSError):
            self._file.close()
        if not self.size:
            self.abandon()

    def abandon(self) -> None:
        """Close and delete the file."""
        with contextlib.suppress(OSError):
            self._file.close()
        remove(self.path)
        remove(self.path.with_suffix(".etag"))

    def __enter__(self) -> Self:
        """Return the transfer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Pause, whatever happened: a committed file is not touched any more."""
        self.pause()

    def _rename(self) -> None:
        final = self._cache.path_of(self._target.sha256)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            self.path.replace(final)
        except OSError as error:
            # Another process was faster (Windows), or took this transfer for abandoned.
            if self._cache.has(self._target.sha256, self._target.size_bytes):
                return
            if isinstance(error, FileNotFoundError):
                message = f"Another process removed the transfer at {self.path}."
                raise DownloadInterruptedError(message) from error
            raise storage_error(final, error) from error
        sync_folder(final.parent)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises OSError."""
    digest = _sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _sha256() -> hashlib._Hash:
    import hashlib  # OpenSSL behind it is slow to load

    return hashlib.sha256()

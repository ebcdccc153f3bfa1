"""Files that survive a kill: atomic replacement, errors in sentences, and a lock between processes.

The lock only saves work (two processes do not download one file twice). Nothing is ever wrong
without it: some network file systems grant every lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

from nightferry.errors import CacheReadOnlyError, DiskFullError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC})


def storage_error(path: Path, error: OSError) -> StorageError:
    """Turn an OSError met while writing ``path`` into a sentence of the right class."""
    if error.errno in _READ_ONLY:
        return CacheReadOnlyError(f"The cache folder may not be written at {path}.")
    if error.errno in _FULL:
        return DiskFullError(f"There is no space left to write {path}.")
    return StorageError(f"{path} could not be written: {error.strerror or error}.")


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Raise StorageError in place of any OSError inside."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def unique_suffix() -> str:
    """Return a suffix that no other process or thread uses: process id and 64 random bits."""
    return f"{os.getpid()}-{os.urandom(8).hex()}"


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace ``path`` so that any reader, at any kill, sees the old or the new content whole.

    ``durable`` makes it outlast a power cut too, at the cost of two waits for the disk.
    Raises StorageError.
    """
    temporary = path.with_name(f".{path.name}.{unique_suffix()}.tmp")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)


def create_atomically(path: Path, content: bytes) -> None:
    """Make ``path`` with all its content unless it is there: of two processes one wins, no lock.

    Raises StorageError.
    """
    temporary = path.with_name(f".{path.name}.{unique_suffix()}.tmp")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            _link_or_replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _link_or_replace(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links: there the last of two processes wins
        temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable, where the platform can."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> bool:
    """Delete a file, also a read-only one; say whether it is gone now."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:  # Windows will not delete read-only files
        with contextlib.suppress(OSError):
            path.chmod(stat.S_IWRITE | stat.S_IREAD)
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return not path.exists()


def free_bytes(folder: Path) -> int | None:
    """Return the free space below ``folder`` in bytes, None where it cannot be told."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        if hasattr(os, "statvfs"):
            status = os.statvfs(folder)
            return status.f_bavail * status.f_frsize
        import shutil

        return shutil.disk_usage(folder).free
    except OSError:
        return None


class FileLock:
    """An advisory lock on a file, between threads and processes; released when its holder dies."""

    def __init__(self, path: Path) -> None:
        """Name the lock file; nothing is touched yet."""
        self._path = path
        self._descriptor: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if it is free; True also where there can be none (read-only, exotic)."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            return True
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            return error.errno not in {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

"""What an app makes of a model file on the device: compiled once, kept beside it, made again.

Core ML packages are compiled on the device before they run, and so are graphs of some
accelerators. The app passes a function; the SDK calls it after a file is verified and tested and
before it comes into use, keeps what it made for as long as the file, and asks for it again when
the system's version changes, which may read compiled files of an older one no more.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from typing import TYPE_CHECKING

from nightferry import log
from nightferry.device import platform_facts
from nightferry.errors import CompileFailedError
from nightferry.files import FileLock, storing, unique_suffix, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nightferry.cache import BlobCache

    Compile = Callable[[Path, Path], str | Path]
    """Takes the model file and an empty folder, and returns the path of what it made in there."""

_RESULT = "result.txt"
_LOCK_LOOK_S = 0.05


class Compiler:
    """Makes and keeps compiled copies. May be used by several threads and processes."""

    def __init__(
        self,
        function: Compile,
        cache: BlobCache,
        *,
        system: Callable[[], str] | None = None,
    ) -> None:
        """Use the app's function; ``system`` names the system and its version."""
        self._function = function
        self._cache = cache
        self._system = system or _this_system

    def find(self, sha256: str) -> Path | None:
        """Return what was made of the file under this system's version, None if nothing was."""
        folder = self._folder(sha256)
        try:
            path = folder / (folder / _RESULT).read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        return path if path.exists() else None

    def make(self, path: Path, sha256: str) -> Path:
        """Return what the app's function makes of the file, or made of it before.

        Raises:
            CompileFailedError: the function raised, or what it returned is not in its folder.
            StorageError: there is no room for it.

        """
        with self._locked(sha256):
            known = self.find(sha256)
            if known is not None:
                return known
            home = self._cache.compiled_of(sha256)
            begun = home / f"making-{unique_suffix()}"
            try:
                with storing(begun):
                    begun.mkdir(parents=True)
                name = self._call(path, begun)
                write_atomically(begun / _RESULT, name.encode())
                with storing(home):
                    # Of other versions of the system nothing is needed any more.
                    for old in home.iterdir():
                        if old.is_dir() and old != begun:
                            shutil.rmtree(old, ignore_errors=True)
                    begun.rename(self._folder(sha256))
            finally:
                shutil.rmtree(begun, ignore_errors=True)
        log.info("%s was compiled for %s.", path.name[:16], self._system())
        return self._folder(sha256) / name

    def _call(self, path: Path, folder: Path) -> str:
        try:
            made = self._function(path, folder)
        except Exception as error:
            message = f"The model could not be compiled on this device: {error}"
            raise CompileFailedError(message) from error
        with contextlib.suppress(TypeError, ValueError, OSError):
            relative = (folder / made).resolve(strict=True).relative_to(folder.resolve())
            if relative.parts:
                return relative.as_posix()
        message = (
            f"What the compile function returned, {str(made)[:80]!r}, is nothing in its folder."
        )
        raise CompileFailedError(message)

    def _folder(self, sha256: str) -> Path:
        return self._cache.compiled_of(sha256) / re.sub(r"[^A-Za-z0-9._-]+", "_", self._system())

    @contextlib.contextmanager
    def _locked(self, sha256: str) -> Iterator[None]:
        home = self._cache.compiled_of(sha256)
        with storing(home):
            home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / ".lock")
        while not lock.try_acquire():
            time.sleep(_LOCK_LOOK_S)
        try:
            yield
        finally:
            lock.release()


def _this_system() -> str:
    facts = platform_facts()
    return f"{facts['platform']}-{facts['os_version']}"

"""Signed metadata of The Update Framework: fetched, checked, and kept on the device.

``tuf.ngclient`` does the workflow of the specification. This module gives it our transport (one
server for credentials, resumption, limits on size and time), our clock, a folder that works without
symbolic links, read-only and after damage, and says in our words what it finds wrong.

Only this module and ``nightferry.tuf_cli`` import tuf, on first use.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
import time
import weakref
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from nightferry import log
from nightferry.errors import (
    CacheReadOnlyError,
    ClockWrongError,
    ConfigurationError,
    DiskFullError,
    DownloadInterruptedError,
    MetadataExpiredError,
    MetadataInvalidError,
    MetadataMissingError,
    MetadataRollbackError,
    NetworkError,
    NightferryError,
    ProtocolError,
    ServerUnreachableError,
    StorageError,
)
from nightferry.files import FileLock, storing, write_atomically
from nightferry.transport import API, problem
from nightferry.trust import Listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tuf.api.metadata import TargetFile

    from nightferry.timing import Timing
    from nightferry.transport import Reply, Transport

LONGEST_TIMESTAMP_LIFE_S = 48 * 3600
"""The timestamp is signed for 24 hours; one that lives longer tells that our clock is behind."""

_CLOCKS_DIFFER_S = 3600
_DEADLINE_FACTOR = 6  # a file of metadata may take so many time-outs on a slow line
_CHUNK_BYTES = 1 << 16
_MAX_FILE_BYTES = 1 << 40
_MAX_TRIES = 60
_LOCK_LOOK_S = 0.05
_OK, _PARTIAL, _NO_SUCH_RANGE = 200, 206, 416
_ABSENT = frozenset({403, 404})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")
_FIRST_ROOT = "first_root.json"


class Fetcher(FetcherInterface):
    """Fetches for ngclient over our transport, going on where a transfer broke off."""

    def __init__(self, transport: Transport, timing: Timing) -> None:
        """Use these parts."""
        self._transport = transport
        self._timing = timing
        self.server_ahead_s: float | None = None
        """By how much the server's clock was ahead of ours at its last answer, where it told."""

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return a short file, which has six time-outs to come whole.

        Raises DownloadLengthMismatchError above ``max_length`` bytes, DownloadHTTPError for 403
        and 404, NetworkError, ProtocolError.
        """
        timeout_s = self._timing.request_timeout_s
        buffer = BytesIO()
        deadline = time.monotonic() + _DEADLINE_FACTOR * timeout_s
        _Transfer(self, buffer, url, max_length, timeout_s, deadline).run()
        return buffer.getvalue()

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """Yield a temporary file with the content, however long that takes; raises as above."""
        with tempfile.TemporaryFile() as file:
            timeout_s = self._timing.stall_timeout_s
            _Transfer(self, file, url, max_length, timeout_s, float("inf")).run()
            file.seek(0)
            yield file

    def _fetch(self, url: str) -> Iterator[bytes]:
        with self.download_file(url, _MAX_FILE_BYTES) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def open(self, url: str, headers: dict[str, str], timeout_s: float) -> Reply:
        """Open an address and note what its server takes for the time."""
        reply = self._transport.open_url(_quoted(url), headers, timeout_s)
        self.server_ahead_s = _ahead_s(reply.header("Date"), self._timing.now())
        return reply

    def pause(self, error: NetworkError, failures: int) -> None:
        """Wait before the next try; raise the error where that is for later."""
        wished_s = error.retry_after_s or 0.0
        given_up = failures >= self._timing.retry_attempts
        if given_up or not error.retryable or wished_s > self._timing.retry_cap_s:
            raise error
        self._timing.sleep(max(wished_s, self._timing.retry_pause_s(failures)))


class _Transfer:
    """The requests that fill one file."""

    def __init__(
        self,
        fetcher: Fetcher,
        file: IO[bytes],
        url: str,
        max_length: int,
        timeout_s: float,
        deadline: float,
    ) -> None:
        self._fetcher = fetcher
        self._file = file
        self._url = url
        self._max_length = max_length
        self._timeout_s = timeout_s
        self._deadline = deadline
        self._size = 0
        self._total: int | None = None
        self._etag = ""

    def run(self) -> None:
        """Request until the end of the body has come."""
        failures = furthest = 0
        for tries in range(1, _MAX_TRIES + 1):
            try:
                return self._request_rest()
            except NetworkError as error:
                failures = 0 if self._size > furthest else failures + 1
                furthest = max(furthest, self._size)
                if tries == _MAX_TRIES or time.monotonic() > self._deadline:
                    raise
                self._fetcher.pause(error, failures)
        return None

    def _request_rest(self) -> None:
        headers = {"Accept-Encoding": "identity"}
        if self._size:
            headers["Range"] = f"bytes={self._size}-"
            if self._etag:
                headers["If-Range"] = self._etag
        with self._fetcher.open(self._url, headers, self._timeout_s) as reply:
            self._accept(reply)
            self._copy(reply)

    def _accept(self, reply: Reply) -> None:
        """Judge status and headers; afterwards the body continues the file."""
        if reply.header("Content-Encoding").lower() not in {"", "identity"}:
            raise ProtocolError("The answer came encoded although it was asked for as it is.")
        if reply.status == _OK:
            self._restart()
            length, etag = reply.header("Content-Length"), reply.header("ETag")
            self._total = int(length) if length.isdigit() else None
            self._etag = etag if etag.startswith('"') else ""
        elif reply.status == _PARTIAL and self._size:
            self._accept_range(reply)
        elif reply.status == _NO_SUCH_RANGE and self._size:
            self._give_up_range("the server has no such range")
        else:
            _refuse(reply)

    def _accept_range(self, reply: Reply) -> None:
        match = _CONTENT_RANGE.fullmatch(reply.header("Content-Range"))
        if match is None or int(match[1]) != self._size:
            self._give_up_range("it begins somewhere else")
        elif match[3] != "*" and self._total is not None and int(match[3]) != self._total:
            self._give_up_range("the file has another size now")
        elif self._etag and reply.header("ETag") not in {"", self._etag}:
            self._give_up_range("the file has changed")

    def _give_up_range(self, why: str) -> None:
        self._restart()
        raise DownloadInterruptedError(f"The download cannot be continued: {why}. It starts again.")

    def _restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._size = 0
        self._total = None
        self._etag = ""

    def _copy(self, reply: Reply) -> None:
        while chunk := reply.read(_CHUNK_BYTES):
            self._size += len(chunk)
            if self._size > self._max_length:
                raise tuf_errors.DownloadLengthMismatchError(
                    f"{_file_name(self._url)} is longer than the {self._max_length} bytes it may be"
                )
            self._file.write(chunk)
            if time.monotonic() > self._deadline:
                raise ServerUnreachableError(f"{_file_name(self._url)} comes too slowly.")
        if self._total is not None and self._size < self._total:
            raise DownloadInterruptedError(
                f"{_file_name(self._url)} broke off after {self._size} of {self._total} bytes."
            )


class PortableUpdater(Updater):
    """ngclient's updater without symbolic links, and durable in what it writes.

    ``Updater`` makes ``root.json`` a link, which not every file system or platform allows.
    """

    def _update_root_symlink(self) -> None:
        folder = Path(self._dir)
        version = self._trusted_set.root.version
        content = (folder / "root_history" / f"{version}.root.json").read_bytes()
        path = folder / "root.json"
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        if not path.is_file() or path.read_bytes() != data:
            write_atomically(path, data)


class _Session(PortableUpdater):
    """One refresh and what it found: the trusted metadata that releases are looked up in."""

    def __init__(
        self, root: bytes, folder: Path, fetcher: Fetcher, base_url: str, now: float
    ) -> None:
        super().__init__(
            str(folder), base_url, fetcher=fetcher, config=UpdaterConfig(), bootstrap=root
        )
        self.repository = ""
        self._words = _Words(fetcher, now)
        self._now = datetime.fromtimestamp(now, UTC)
        self._trusted_set.reference_time = self._now

    def bring_up_to_date(self, model: str) -> None:
        """Fetch what is new, and the model's role; raise NightferryError."""
        with self._words:
            self.refresh()
            self._check_clock()
        self.find(f"{model}/policy")

    def find(self, path: str) -> Listed | None:
        """Return the target of that path; see TrustedMetadata."""
        with self._words:
            found = self.get_targetinfo(path)
        return None if found is None else _listed(path, found)

    def _check_clock(self) -> None:
        left = self._trusted_set.timestamp.expires - self._now
        if left > timedelta(seconds=LONGEST_TIMESTAMP_LIFE_S):
            raise ClockWrongError(
                f"The server's metadata are good for {_span(left.total_seconds())} more by this "
                f"device's clock, which says {self._now:%Y-%m-%d %H:%M} UTC, but they live for one "
                "day: the clock is behind. Set it. The installed model stays, nothing new comes in."
            )


class _Delegated:
    """A model's role as it lies on the device: signed, of whatever age."""

    def __init__(self, role: Targets) -> None:
        self._role = role

    def find(self, path: str) -> Listed | None:
        found = self._role.targets.get(path)
        return None if found is None else _listed(path, found)


class MetadataStore:
    """The trusted metadata of one server, in one folder. Callers keep threads apart."""

    def __init__(
        self,
        root: bytes | None,
        folder: Path,
        transport: Callable[[], Transport],
        timing: Timing,
    ) -> None:
        """Use these parts; without a ``root``, the server's first one is believed."""
        self._root = root
        self._folder = folder
        self._transport = transport
        self._timing = timing

    def refresh(self, model: str) -> _Session:
        """Bring the metadata up to date, the role of ``model`` among them, and return them.

        Raises TrustError, NetworkError, ProtocolError, StorageError.
        """
        with self._locked():
            try:
                return self._refresh(model)
            except DiskFullError:
                raise
            except CacheReadOnlyError:
                self._work_elsewhere()
            except StorageError as error:
                log.warning("The folder of trusted metadata is damaged and made anew. %s", error)
                _clear(self._folder)
            return self._refresh(model)

    def load(self, model: str) -> _Delegated | None:
        """Return the model's role as last seen, its signatures checked, its age not."""
        try:
            root = _read(self._folder / _FIRST_ROOT) if self._root is None else self._root
            if root is None:
                return None
            *_, latest = _roots(root, self._folder)
            trusted = latest.signed
            targets = _verified(self._folder, Targets.type, trusted)
            role = _verified(self._folder, role_name(model), targets)
        except (tuf_errors.RepositoryError, ValueError, StorageError):
            return None
        return _Delegated(role)

    def _refresh(self, model: str) -> _Session:
        transport = self._transport()
        base_url = f"{transport.server_url}{API}/metadata/"
        fetcher = Fetcher(transport, self._timing)
        now = self._timing.now()
        root, first = self._bootstrap(fetcher, base_url, now)
        with storing(self._folder):
            try:
                session = _Session(root, self._folder, fetcher, base_url, now)
            except tuf_errors.RepositoryError as error:
                raise self._unusable_root(error) from error
            session.bring_up_to_date(model)
        if first is None:
            write_atomically(self._folder / _FIRST_ROOT, root)
        session.repository = hashlib.sha256(first or root).hexdigest()
        return session

    def _bootstrap(self, fetcher: Fetcher, base_url: str, now: float) -> tuple[bytes, bytes | None]:
        """Return the root to begin from, and the one by which this folder began, if it has.

        Where the app carries the root of another repository, the folder begins anew.
        """
        path = self._folder / _FIRST_ROOT
        if self._root is not None and path.is_dir():
            _remove(path)  # damage, and nothing is believed of it that the app does not know
        first = _read(path)
        if self._root is not None:
            if first is not None and _is_of_another_repository(self._root, first, self._folder):
                log.warning("The app carries the root of another repository: all begins anew.")
                _remove(self._folder)
                first = None
            return self._root, first
        if first is not None:
            return first, first
        log.warning("No root of trust is in the app: the server's first one is believed.")
        with _Words(fetcher, now):
            content = fetcher.download_bytes(
                f"{base_url}1.root.json", UpdaterConfig().root_max_length
            )
        return content, None

    def _unusable_root(self, error: Exception) -> NightferryError:
        if self._root is None:
            return MetadataInvalidError(f"The server's first root is no signed root: {error}.")
        return ConfigurationError(
            f"The trusted_root in the app is no root metadata that is signed by itself: {error}. "
            "Put the server's root.json into the app."
        )

    def _work_elsewhere(self) -> None:
        """Go on in a folder of this process, beginning with what lies in the read-only one."""
        scratch = tempfile.mkdtemp(prefix="nightferry-")
        weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        folder = Path(scratch) / "metadata"
        for path in self._folder.rglob("*.json"):
            copy = folder / path.relative_to(self._folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            content = _read(path)
            if content is not None:
                copy.write_bytes(content)  # not its mode, which forbids writing
        self._folder = folder

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from writing at the same time; go ahead if one hangs."""
        lock = FileLock(self._folder.with_name(f"{self._folder.name}.lock"))
        waited_s = 0.0
        while not lock.try_acquire() and waited_s < self._timing.lock_patience_s:
            self._timing.sleep(_LOCK_LOOK_S)
            waited_s += _LOCK_LOOK_S
        try:
            yield
        finally:
            lock.release()


class _Words:
    """A context that says in the SDK's errors what ngclient finds wrong."""

    def __init__(self, fetcher: Fetcher, now: float) -> None:
        self._fetcher = fetcher
        self._now = now

    def __enter__(self) -> None:
        """Do nothing yet."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise our error in place of one of tuf's."""
        if isinstance(error, tuf_errors.DownloadError | tuf_errors.RepositoryError):
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> NightferryError:
        if isinstance(error, tuf_errors.DownloadHTTPError):
            return _absent(error)
        if isinstance(error, tuf_errors.ExpiredMetadataError):
            return self._expired(error)
        if isinstance(error, tuf_errors.BadVersionNumberError):
            return MetadataRollbackError(
                f"The signed metadata do not follow on those this device has: {error}. Somebody "
                "plays back old ones, or the server was restored from an old backup: then its "
                "operator must sign with higher version numbers."
            )
        if isinstance(error, DeserializationError):
            return MetadataInvalidError(
                f"What the server sent is no signed metadata ({error}): perhaps a web page of a "
                "network that asks for a login. Nothing was believed of it."
            )
        return MetadataInvalidError(
            f"The server's metadata are refused: {error}. They are damaged, or not signed by the "
            "keys that this app trusts."
        )

    def _expired(self, error: Exception) -> NightferryError:
        ahead_s = self._fetcher.server_ahead_s
        here = datetime.fromtimestamp(self._now, UTC)
        if ahead_s is not None and ahead_s < -_CLOCKS_DIFFER_S:
            return ClockWrongError(
                f"{error}, by this device's clock: it says {here:%Y-%m-%d %H:%M} UTC and is "
                f"{_span(-ahead_s)} ahead of the server's. Set the clock. The installed model "
                "stays, nothing new comes in."
            )
        return MetadataExpiredError(
            f"{error}, and it is {here:%Y-%m-%d %H:%M} UTC here: the server has stopped signing, "
            "or somebody holds new metadata back. The installed model stays, nothing new comes in."
        )


def role_name(model: str) -> str:
    """Return the name of the role that signs a model's releases."""
    return f"model-{model}"


def _refuse(reply: Reply) -> None:
    error = problem(reply, b"")
    if reply.status in _ABSENT:  # ngclient takes both for the end of the chain of roots
        raise tuf_errors.DownloadHTTPError(str(error), reply.status) from error
    if reply.status < 400:  # noqa: PLR2004 - neither the file nor an error
        raise ProtocolError(f"{_file_name(reply.url)} was answered with status {reply.status}.")
    raise error


def _absent(error: tuf_errors.DownloadHTTPError) -> NightferryError:
    cause = error.__cause__
    if error.status_code != 404 and isinstance(cause, NightferryError):  # noqa: PLR2004
        return cause
    return MetadataMissingError(
        f"The server lacks a file of its signed metadata. {error} Either it has not signed "
        f"anything yet, or {API}/metadata/ does not reach it."
    )


def _roots(first: bytes, folder: Path) -> Iterator[Metadata[Root]]:
    """Follow the chain of roots on the device as far as each is signed by the one before."""
    root = Metadata[Root].from_bytes(first)
    yield root
    history = folder / "root_history"
    while (content := _read(history / f"{root.signed.version + 1}.root.json")) is not None:
        later = Metadata[Root].from_bytes(content)
        for signer in (root.signed, later.signed):
            signer.verify_delegate(Root.type, later.signed_bytes, later.signatures)
        if later.signed.version != root.signed.version + 1:
            break
        root = later
        yield root


def _is_of_another_repository(given: bytes, first: bytes, folder: Path) -> bool:
    """Tell whether no root since the first one vouches for the given one, nor the other way."""
    if given == first:
        return False
    known: list[Metadata[Root]] = []
    try:
        new = Metadata[Root].from_bytes(given)
        known.extend(_roots(first, folder))
    except (tuf_errors.RepositoryError, ValueError):
        if not known:
            return False  # one of them is no root: that is for the session to say
    return not any(_vouches(root, new) or _vouches(new, root) for root in known)


def _vouches(one: Metadata[Root], other: Metadata[Root]) -> bool:
    try:
        one.signed.verify_delegate(Root.type, other.signed_bytes, other.signatures)
    except (tuf_errors.RepositoryError, ValueError):
        return False
    return True


def _verified(folder: Path, role: str, delegator: Root | Targets) -> Targets:
    """Return a role's targets from the disk; raise RepositoryError, ValueError."""
    content = _read(folder / f"{role}.json")
    if content is None:
        raise ValueError(role)
    metadata = Metadata[Targets].from_bytes(content)
    delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    if metadata.signed.type != Targets.type:
        raise ValueError(role)
    return metadata.signed


def _listed(path: str, found: TargetFile) -> Listed:
    custom = found.custom
    return Listed(
        path=path,
        sha256=found.hashes.get("sha256", ""),
        size_bytes=found.length,
        custom=custom if isinstance(custom, dict) else {},
    )


def _read(path: Path) -> bytes | None:
    """Return a file's content, None only where there is no such file; raise StorageError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error.strerror or error}.") from error


def _clear(folder: Path) -> None:
    """Remove what lies there, whatever it is, but not by which root it all began."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name != _FIRST_ROOT:
                _remove(path)
        return
    _remove(folder)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def _quoted(url: str) -> str:
    """Escape what may not stand in a request line; target names may hold anything."""
    return quote(url, safe="%/:=&?~#+!$,;'@()*[]")


def _file_name(url: str) -> str:
    return url.rpartition("/")[2]


def _ahead_s(date: str, now: float) -> float | None:
    """Return by how many seconds an HTTP date is ahead of ours, None where there is none."""
    try:
        return parsedate_to_datetime(date).timestamp() - now
    except (ValueError, OverflowError, OSError):
        return None


def _span(seconds: float) -> str:
    days, hours = seconds / 86400, seconds / 3600
    return f"{days:.0f} days" if days >= 2 else f"{hours:.0f} hours"  # noqa: PLR2004

"""A device's view of what was published: a fresh client, the oldest root, an empty folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from server.domain.errors import DomainError
from server.trust import queries, roles
from server.trust.targets import SignedTarget

_BASE = "stored://metadata/"
_NOT_FOUND = 404


class StoredFiles(FetcherInterface):
    """Fetches from the database what the web server would serve."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        content = queries.metadata_file(url.removeprefix(_BASE))
        if content is None:
            message = f"{url} is not there"
            raise DownloadHTTPError(message, _NOT_FOUND)
        return iter((content,))


def check(*, role: str, targets: Sequence[SignedTarget]) -> None:
    """Raise unless a client finds exactly these targets in the role.

    Raises:
        DomainError: ``read_back_failed``.

    """
    with tempfile.TemporaryDirectory(prefix="nightferry-") as name:
        folder = Path(name)
        try:
            updater = Updater(
                str(folder), _BASE, fetcher=StoredFiles(), bootstrap=queries.first_root()
            )
            updater.refresh()
            # A path that nobody lists makes the client load the role even where it is empty.
            updater.get_targetinfo(_path_of(role, folder))
            found = {target.path: updater.get_targetinfo(target.path) for target in targets}
            listed = set(_read(folder, role).targets)
        except (RepositoryError, OSError) as error:
            message = f"What was published for {role} does not verify: {error}."
            raise DomainError(message, code="read_back_failed") from error
    wrong = [target.path for target in targets if not _agrees(target, found[target.path])]
    wrong += sorted(listed - found.keys())
    if wrong:
        message = f"Devices do not see what was published for {role}: {', '.join(wrong)}."
        raise DomainError(message, code="read_back_failed")


def _path_of(role: str, folder: Path) -> str:
    delegations = _read(folder, roles.TARGETS).delegations
    delegated = (delegations.roles or {}).get(role) if delegations else None
    if delegated is None or not delegated.paths:
        message = f"{role} is not delegated"
        raise RepositoryError(message)
    return delegated.paths[0].replace("*", "-")


def _read(folder: Path, role: str) -> Targets:
    """Return what the client has verified and kept."""
    return Metadata[Targets].from_file(str(folder / f"{role}.json")).signed


def _agrees(wanted: SignedTarget, found: TargetFile | None) -> bool:
    return (
        found is not None
        and found.length == wanted.size_bytes
        and found.hashes.get("sha256") == wanted.sha256
        and found.custom == dict(wanted.custom)
    )

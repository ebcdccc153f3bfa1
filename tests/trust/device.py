"""A real client with a memory: the judge of everything the repository shows."""

from __future__ import annotations

from pathlib import Path

from tuf.ngclient import Updater

from server.trust import queries
from server.trust.readback import StoredFiles
from server.trust.targets import SignedTarget


class Device:
    """A folder of trusted metadata that lives on over updates."""

    def __init__(self, folder: Path, root: bytes | None = None) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)
        self._root = root or queries.trusted_root()
        self._updater: Updater | None = None

    def refresh(self) -> None:
        """Bring everything up to date, or raise as a device would."""
        self._updater = Updater(
            str(self.folder), "stored://metadata/", fetcher=StoredFiles(), bootstrap=self._root
        )
        self._updater.refresh()

    def sees(self, target: SignedTarget) -> bool:
        """Whether the target is listed as it is."""
        assert self._updater is not None
        found = self._updater.get_targetinfo(target.path)
        return (
            found is not None
            and found.hashes == {"sha256": target.sha256}
            and found.length == target.size_bytes
            and found.custom == dict(target.custom)
        )

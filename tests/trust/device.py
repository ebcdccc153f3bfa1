"""A real client with a memory: the judge of everything the repository shows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
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

    def refresh(self, at: dt.datetime | None = None) -> None:
        """Bring everything up to date, or raise as a device would whose clock says ``at``."""
        self._updater = Updater(
            str(self.folder), "stored://metadata/", fetcher=StoredFiles(), bootstrap=self._root
        )
        if at is not None:
            self._updater._trusted_set.reference_time = at
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

    def lists(self, path: str) -> bool:
        """Whether anything is listed there."""
        assert self._updater is not None
        return self._updater.get_targetinfo(path) is not None


def look(
    devices: Iterable[Device], targets: Iterable[SignedTarget], at: dt.datetime | None = None
) -> None:
    """See that every device accepts what is shown, and finds the targets."""
    wanted = list(targets)
    for device in devices:
        device.refresh(at)
        assert all(device.sees(target) for target in wanted)

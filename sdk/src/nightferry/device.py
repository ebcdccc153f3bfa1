"""What the SDK knows about the device: its power and network, and the facts it tells the server.

The facts are the ones a release may be targeted by: platform, its version, and a random
installation id made here. Nothing about the person, the machine's name or its network.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nightferry.errors import ConditionsNotMetError, StorageError
from nightferry.files import create_atomically, write_atomically

if TYPE_CHECKING:
    from nightferry.models import DownloadConditions

_PLATFORMS = {"win32": "windows", "darwin": "macos", "cygwin": "windows"}


class DeviceProbe(Protocol):
    """Answers what download conditions ask; an app replaces it where it knows better."""

    def is_metered(self) -> bool | None:
        """Tell whether the network costs money per byte; None if unknown."""

    def is_charging(self) -> bool | None:
        """Tell whether the device has outside power; None if unknown."""


class SystemProbe:
    """What the operating system tells without extra packages: power on Linux, nothing else."""

    def __init__(self, power_supplies: Path = Path("/sys/class/power_supply")) -> None:
        """Read power from this folder of the kernel."""
        self._power_supplies = power_supplies

    def is_metered(self) -> bool | None:
        """Return None: no operating system tells this to a plain Python program."""
        return None

    def is_charging(self) -> bool | None:
        """Tell from the kernel's list of batteries; a machine without one has outside power."""
        if not self._power_supplies.is_dir():
            return None
        states = []
        for supply in self._power_supplies.iterdir():
            with contextlib.suppress(OSError):
                if (supply / "type").read_text().strip() == "Battery":
                    states.append((supply / "status").read_text().strip())
        return "Discharging" not in states


def check_conditions(
    conditions: DownloadConditions, probe: DeviceProbe, download_bytes: int
) -> None:
    """Raise ConditionsNotMetError if the download may not start now.

    What the probe cannot tell counts as not met: an app that asks for a condition means it.
    """
    if conditions.max_bytes is not None and download_bytes > conditions.max_bytes:
        message = f"The download has {download_bytes} bytes; the app allows {conditions.max_bytes}."
        raise ConditionsNotMetError(message)
    if not conditions.allow_metered:
        _require(probe.is_metered(), wanted=False, what="an unmetered network")
    if conditions.require_charging:
        _require(probe.is_charging(), wanted=True, what="a charging device")


def _require(answer: bool | None, *, wanted: bool, what: str) -> None:  # noqa: FBT001
    if answer is None:
        message = (
            f"The app asks for {what}, and this device does not tell. "
            "Pass a device_probe that knows."
        )
        raise ConditionsNotMetError(message)
    if answer is not wanted:
        message = f"The app asks for {what}; the download waits until then."
        raise ConditionsNotMetError(message)


def platform_facts() -> dict[str, str]:
    """Return ``platform`` and ``os_version``."""
    import platform

    return {
        "platform": _PLATFORMS.get(sys.platform, sys.platform),
        "os_version": platform.release()[:64],
    }


def installation_id(path: Path) -> str:
    """Return this installation's random id, made on first use.

    Where the cache cannot be written, the id lasts as long as the process.
    """
    known = _read_id(path)
    if known:
        return known
    import uuid

    made = str(uuid.uuid4())
    with contextlib.suppress(StorageError):
        create_atomically(path, made.encode())
        if _read_id(path) is None:  # there before, and torn
            write_atomically(path, made.encode())
    return _read_id(path) or made


def _read_id(path: Path) -> str | None:
    import uuid

    try:
        return str(uuid.UUID(path.read_text("ascii").strip()))
    except (OSError, ValueError):
        return None

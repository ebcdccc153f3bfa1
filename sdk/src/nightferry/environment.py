"""The environment variables the SDK obeys.

==============================  ====================================================
``NIGHTFERRY_HOME``             cache folder, where the app names none
``NIGHTFERRY_ENDPOINT``         server address, where the app names none
``NIGHTFERRY_TRUSTED_ROOT``     path of the server's root.json, for the command line
``NIGHTFERRY_OFFLINE``          1: never touch the network
``NIGHTFERRY_DISABLE_TELEMETRY``  1: record and send no events
``DO_NOT_TRACK``                1: the same
==============================  ====================================================
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_OFF = frozenset({"", "0", "false", "no", "off"})


def is_set(name: str) -> bool:
    """Tell whether a yes/no variable says yes (anything but empty, 0, false, no, off)."""
    return os.environ.get(name, "").strip().lower() not in _OFF


def offline() -> bool:
    """Tell whether the network may not be touched."""
    return is_set("NIGHTFERRY_OFFLINE")


def telemetry_disabled() -> bool:
    """Tell whether events may be neither recorded nor sent."""
    return is_set("NIGHTFERRY_DISABLE_TELEMETRY") or is_set("DO_NOT_TRACK")


def endpoint() -> str | None:
    """Return the server address from the environment, if there is one."""
    return os.environ.get("NIGHTFERRY_ENDPOINT", "").strip() or None


def trusted_root() -> str | None:
    """Return the path of the root from the environment, if there is one."""
    return os.environ.get("NIGHTFERRY_TRUSTED_ROOT", "").strip() or None


def default_cache_dir() -> Path:
    """Return NIGHTFERRY_HOME, else the platform's folder for data an app can fetch again."""
    home = os.environ.get("NIGHTFERRY_HOME", "").strip()
    if home:
        return Path(home)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "nightferry"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nightferry"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nightferry"

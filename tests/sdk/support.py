"""Helpers of the SDK's tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nightferry import ModelClient, Timing
from nightferry.testing import FakeServer

NAME = "recyclables"
LABELS = ["can", "cup", "jar"]


class Clock:
    """The time, for a device and its server alike, which a test moves."""

    def __init__(self, server: FakeServer | None = None) -> None:
        self.now = 1_800_000_000.0
        if server is not None:
            server.now = self

    def __call__(self) -> float:
        return self.now


def quick_timing(**changes: object) -> Timing:
    """Return the usual limits with pauses of milliseconds."""
    pauses = {"retry_base_s": 0.001, "retry_cap_s": 0.01, "request_timeout_s": 5.0}
    return Timing(**{**pauses, **changes})


def read(client: ModelClient, name: str = NAME) -> bytes:
    """Return the bytes of the model in use."""
    current = client.status(name).current
    assert current is not None
    return current.path.read_bytes()


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 20.0) -> None:
    """Wait for something another thread or process does; fail with its name."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


def start_python(script: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start a process that has the SDK and nothing of ours in its environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NIGHTFERRY_")}
    environment = {**clean, "PYTHONPATH": str(source_folder()), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def source_folder() -> Path:
    """Return the folder that holds the package under test."""
    import nightferry

    return Path(nightferry.__file__).resolve().parent.parent


def leftovers(cache_dir: Path) -> list[str]:
    """Return temporary and partial files in a cache folder."""
    found = [*cache_dir.glob("partial/*"), *cache_dir.rglob("*.tmp")]
    return [path.name for path in found]

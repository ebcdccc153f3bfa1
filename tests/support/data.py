"""Where the real photos and weights lie, and what happens when something is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def data_folder(name: str) -> Path:
    """Return the folder ``name`` of the test data, or skip the test (fail it where CI=true)."""
    root = Path(os.environ.get("NIGHTFERRY_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    folder = root / name
    if not folder.is_dir():
        missing(
            f"real data '{name}' not found in {root}: set NIGHTFERRY_TEST_DATA to the folder "
            f"that holds '{name}'"
        )
    return folder


def require_program(name: str, *, package: str, folders: tuple[str, ...] = ()) -> Path:
    """Return the path of a program, or skip the test and name the Debian package that has it."""
    places = [*folders, "/usr/sbin", "/usr/local/sbin"]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        missing(f"program '{name}' is not installed: run scripts/install-test-services ({package})")
    return Path(found)


def missing(reason: str) -> NoReturn:
    """Skip the running test for want of something real; on CI nothing may be wanting."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"NOT TESTED, and CI must test everything: {reason}", pytrace=False)
    pytest.skip(f"NOT TESTED: {reason}")

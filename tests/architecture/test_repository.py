"""What is in the repository: no trace of a machine or a registry, and nothing promised in vain."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.architecture.probe import REPOSITORY

LOCKS = sorted(path.name for path in REPOSITORY.glob("requirements*.lock"))
# Where a home folder begins, on the systems people develop on.
_HOMES = re.compile(r"/(?:root|home|Users)/[\w.]")
_DEPENDENCY = re.compile(r'^\s*"(?P<requirement>[^"]+)",\s*(?P<comment>#.*)?$')


def _tracked() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every file that belongs to the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("NOT TESTED: this is no git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = REPOSITORY / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content:
            yield name, content.decode("utf-8")


def _registries() -> set[str]:
    """Return the hosts and folders that this machine installs packages from."""
    places = [
        os.environ.get(name, "") for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX")
    ]
    for folder in (Path("/etc"), Path.home() / ".config/pip", Path.home() / ".pip"):
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(folder / "pip.conf")
        for section in parser.sections():
            for option in ("index-url", "extra-index-url", "find-links"):
                places += parser.get(section, option, fallback="").split()
    return {urlsplit(place).hostname or urlsplit(place).path for place in places}


def test_no_file_names_a_folder_of_a_developers_machine_or_its_registry() -> None:
    checkout = {str(REPOSITORY), str(REPOSITORY.parent / "shared")}
    if len(REPOSITORY.parts) <= 2:
        checkout = set()  # such as /app, a name that other things have too
    private = {text for text in checkout | _registries() if len(text) > 4}
    found = [
        (name, text)
        for name, content in _tracked()
        for text in [*(text for text in private if text in content), *_HOMES.findall(content)]
    ]

    assert found == []


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_files_hold_hashes_and_no_address(lock: str) -> None:
    text = (REPOSITORY / lock).read_text(encoding="utf-8")
    pinned = re.findall(r"^[\w.\[\]-]+==", text, flags=re.MULTILINE)
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if entry.strip()]

    assert "://" not in text
    assert len(pinned) == len(entries)
    assert all("--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize("file", ["pyproject.toml", "sdk/pyproject.toml"])
def test_every_dependency_says_why_it_is_there(file: str) -> None:
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    project = tomllib.loads(text)
    groups = [
        project["project"].get("dependencies", []),
        *project["project"].get("optional-dependencies", {}).values(),
        *project.get("dependency-groups", {}).values(),
    ]
    wanted = {requirement for group in groups for requirement in group}
    reasons = {
        match["requirement"]: match["comment"] or ""
        for line in text.splitlines()
        if (match := _DEPENDENCY.match(line))
    }

    assert {one for one in wanted if len(reasons.get(one, "")) < len("# because")} == set()

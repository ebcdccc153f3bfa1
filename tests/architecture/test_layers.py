"""The layers of ARCHITECTURE.md, and a database that the migrations describe completely."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.architecture.probe import REPOSITORY


def _run(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_import_keeps_to_the_layers() -> None:
    done = _run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")

    assert done.returncode == 0, done.stdout[-4000:]


def test_the_migrations_are_complete(tmp_path: Path) -> None:
    done = _run(
        *(sys.executable, "manage.py", "makemigrations", "--check", "--dry-run"),
        NIGHTFERRY_DATA=str(tmp_path),
        DATABASE_URL="",
    )

    assert done.returncode == 0, done.stdout + done.stderr

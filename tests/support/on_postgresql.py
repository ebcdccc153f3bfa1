"""``python -m tests.support.on_postgresql [pytest's arguments]``: the same tests on PostgreSQL.

Everything that uses the database runs a second time on a real server; what trains networks or
drives a browser, and what starts servers of its own, does so once, on the default.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.support.services import postgresql

DEFAULT = (
    "-m", "not ml and not browser and not services",
    "tests/http", "tests/registry", "tests/photos", "tests/telemetry", "tests/training",
    "tests/rollouts", "tests/delivery", "tests/console", "tests/jobs", "tests/trust",
    "-n", "2", "--dist", "loadfile",
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Start PostgreSQL, run pytest against it, return its status."""
    try:
        with postgresql() as server:
            env = os.environ | {"DATABASE_URL": server.create_database()}
            print(f"The same tests on PostgreSQL, {server.url()}", flush=True)
            command = [sys.executable, "-m", "pytest", *(arguments or DEFAULT)]
            return subprocess.run(command, env=env, check=False).returncode
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:
        print(missing.msg, file=sys.stderr)
        return 1 if os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

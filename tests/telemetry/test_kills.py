"""Whoever is killed in the middle of taking in or counting: no event is lost or counted twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import REPOSITORY
from tests.telemetry.conftest import enrolled

PATIENCE_S = 120


@pytest.fixture(params=["embedded", pytest.param("at scale", marks=pytest.mark.services)])
def environment(request: Any, tmp_path: Path) -> dict[str, str]:
    """Return the settings of a data folder of its own: SQLite, then PostgreSQL and Redis."""
    services = {"DATABASE_URL": "", "BROKER_URL": "filesystem://"}
    if request.param == "at scale":
        services = {
            "DATABASE_URL": request.getfixturevalue("postgresql_server").create_database(),
            "BROKER_URL": request.getfixturevalue("redis_server").url(5),
        }
    settings = {"DJANGO_SETTINGS_MODULE": "server.settings", "NIGHTFERRY_DATA": str(tmp_path)}
    environment = {**os.environ, **settings, **services}
    command = [sys.executable, "manage.py", "migrate", "--verbosity=0"]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    run(environment, "prepare")
    return environment


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.telemetry.victim", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(environment: dict[str, str], *arguments: str) -> str:
    process = start(environment, *arguments)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    return output


def make_events(count: int) -> list[dict[str, Any]]:
    """Return events of four kinds in equal numbers, of as many installations as of each kind."""
    now = datetime.now(UTC).isoformat()
    kinds: list[dict[str, Any]] = [
        {"type": "assigned"},
        {"type": "failed", "data": {"code": "crash"}},
        {"type": "feedback", "data": {"correct": True}},
        {"type": "latency", "data": {"latency_ms": 20, "count": 3}},
    ]
    return [
        enrolled(device=f"d-{number // 4}", occurred_at=now, **kinds[number % 4])
        for number in range(count)
    ]


def test_nothing_is_lost_or_counted_twice(environment: dict[str, str], tmp_path: Path) -> None:
    chance, total = random.Random(4), 800
    file = tmp_path / "events.json"
    file.write_text(json.dumps(make_events(total)))

    # Killed at the worst moments: before the commit, and right after it.
    for point in ("counted", "stored"):
        half_sent = start(environment, "send", str(file))
        drain = start(environment, "drain", point)
        assert drain.stdout is not None
        drain.stdout.readline()
        if point == "counted" or environment["BROKER_URL"].startswith("redis"):
            drain.wait(PATIENCE_S)
        kill(drain)
        kill(half_sent)

    # And at any moment, while everything is sent once more.
    sender = start(environment, "send", str(file))
    for _ in range(4):
        drain = start(environment, "drain")
        assert drain.stdout is not None
        drain.stdout.readline()
        time.sleep(chance.uniform(0.02, 0.4))
        kill(drain)
    sender.communicate(timeout=PATIENCE_S)
    assert sender.returncode == 0

    each = total // 4
    assert json.loads(run(environment, "report")) == {
        "events": total, "uncounted": 0, "facts": 2 * each, "timed": 3 * each, "answers": each,
        "successes": each,
    }  # fmt: skip


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()

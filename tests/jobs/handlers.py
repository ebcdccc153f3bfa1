"""Jobs for the tests: each leaves a mark where it starts, and one row where it takes effect."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from django.db import connection

from server.domain.errors import Unavailable
from worker.context import JobContext
from worker.handlers import Handler


def create_effects() -> None:
    """Make the table in which effects are counted."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS test_effects (job_id varchar(40) NOT NULL)")


def count_effects(job_id: object) -> int:
    """Return how often the job took effect."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM test_effects WHERE job_id = %s", [str(job_id)])
        (count,) = cursor.fetchone()
    return int(count)


def work(context: JobContext) -> dict[str, Any] | None:
    """Take ``seconds``, then take effect and succeed in one transaction."""
    _mark(context)
    end = time.monotonic() + context.args["seconds"]
    while time.monotonic() < end:
        context.check_alive()
        time.sleep(0.05)
    with context.holding(), connection.cursor() as cursor:
        cursor.execute("INSERT INTO test_effects VALUES (%s)", [str(context.job_id)])
        context.complete({"attempt": context.attempt})
    return None


def hang(context: JobContext) -> None:
    """Neither end nor listen, and have a child of one's own that does the same."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["/bin/sleep", "600"])
    _mark(context)
    time.sleep(600)


def crash(context: JobContext) -> None:
    """Die by a signal, as native code does, after saying something."""
    _mark(context)
    print("about to crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def refuse(context: JobContext) -> None:
    """Fail in a way that may pass."""
    _mark(context)
    message = "The store of photos does not answer."
    raise Unavailable(message)


def _mark(context: JobContext) -> None:
    """Leave a file that says which process runs which attempt."""
    path = Path(context.args["folder"], f"{context.job_id}.{context.fencing}")
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(str(os.getpid()))
    draft.rename(path)


HANDLERS = {
    "test.light": Handler("tests.jobs.handlers:work", isolated=False),
    "test.isolated": Handler("tests.jobs.handlers:work", isolated=True),
    "test.hang": Handler("tests.jobs.handlers:hang", isolated=True),
    "test.crash": Handler("tests.jobs.handlers:crash", isolated=True),
    "test.refuse": Handler("tests.jobs.handlers:refuse", isolated=False),
}

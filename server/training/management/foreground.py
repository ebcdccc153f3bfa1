"""A run done in this terminal: its process, and its log as it is written."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

from django.conf import settings

from server.jobs.models import JobState
from server.jobs.queries import get_job
from server.training.models import TrainingRun

if TYPE_CHECKING:
    from django.core.management.base import BaseCommand


def start_job(job_id: object) -> subprocess.Popen[bytes]:
    """Start a process of the worker's own that performs one job."""
    return subprocess.Popen(
        [sys.executable, "-m", "worker.foreground", str(job_id)], cwd=settings.BASE_DIR
    )


def perform_run(command: BaseCommand, run: TrainingRun) -> bool:
    """Do the run's job here, print its log; say whether it reached its end.

    A running worker may take the job first; then it is only watched.
    """
    worker = start_job(run.job_id)
    try:
        return _follow(command, run, worker)
    finally:
        worker.terminate()
        worker.wait()


def _follow(command: BaseCommand, run: TrainingRun, worker: subprocess.Popen[bytes]) -> bool:
    seen, shown = 0, ""
    while True:
        alive = worker.poll() is None
        run.refresh_from_db()
        for line in run.lines.filter(pk__gt=seen):
            seen = line.pk
            if line.message:
                command.stdout.write(f"  {line.stage or 'start':<11} {line.message}")
        position = f"  {run.stage} {run.step}/{run.total_steps}"
        if run.total_steps > 1 and position != shown:
            shown = position
            command.stdout.write(position)
        if run.state not in TrainingRun.ACTIVE:
            return run.state == TrainingRun.State.SUCCEEDED
        if not alive and _is_waiting(run):
            command.stderr.write("The worker process ended before it began.")
            return False
        time.sleep(0.5)


def _is_waiting(run: TrainingRun) -> bool:
    """Say whether nobody has begun: a running worker may have taken the job before ours."""
    return run.job_id is not None and get_job(run.job_id).state == JobState.QUEUED

"""The Celery tasks: one for each job name, one for each call of the clock.

No function here imports TensorFlow, nor anything that does.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import asdict

import structlog
from celery import Celery
from django.utils import timezone

from server.jobs import actions, names
from worker import execution, handlers

log = structlog.get_logger(__name__)


def register(app: Celery) -> None:
    """Give every name its task."""
    for name in handlers.all_names():
        app.task(name=name, shared=False)(run_job)
    app.task(name=names.REAP, shared=False)(reap)
    for name, path in handlers.TICKS.items():
        app.task(name=name, shared=False)(_make_tick(path))


def run_job(job_id: str, *_: object, **__: object) -> None:
    """Run the job if it is still to be run; a message that came twice ends here.

    Further arguments are from newer senders, and not for us.
    """
    if execution.stopping.is_set():
        return  # the reaper sends it again
    job = actions.claim(job_id=job_id, owner=f"{socket.gethostname()}:{os.getpid()}")
    if job is None:
        log.info("job_not_to_be_run", job_id=job_id)
        return
    with structlog.contextvars.bound_contextvars(
        job_id=job_id, job=job.name, request_id=job.request_id
    ):
        log.info("job_started", attempt=job.attempts, fencing=job.fencing)
        handler = handlers.find(job.name)
        if handler.isolated:
            execution.run_isolated(job)
        else:
            execution.run_here(job, handler.run)


def reap(*_: object, **__: object) -> None:
    """See to the jobs that nobody sees to."""
    reaped = actions.reap()
    if reaped != actions.Reaped():
        log.info("reaped", **asdict(reaped))


def _make_tick(path: str) -> Callable[..., None]:
    """Return the task that calls the function at ``path`` with the time."""

    def tick(*_: object, **__: object) -> None:
        handlers.load(path)(now=timezone.now())

    return tick

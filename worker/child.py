"""A job's own process: ``python -m worker.child JOB_ID FENCING``.

A fresh interpreter, so that TensorFlow starts clean and gives its memory back. Its guard
(:mod:`server.jobs.processes`) ends it when the worker dies.
"""

from __future__ import annotations

import os
import signal
import sys

import django
import structlog

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "server.settings")
django.setup()

from server.jobs import queries  # noqa: E402 - needs the settings
from worker import execution, handlers  # noqa: E402
from worker.context import JobContext  # noqa: E402


def main(job_id: str, fencing: int) -> None:
    """Run one attempt and report its outcome to the ledger."""
    job = queries.get_job(job_id)
    # The number the worker claimed, not the newest: a newer claim is another worker's.
    job.fencing = fencing
    context = JobContext(job)

    def interrupt(*_: object) -> None:
        context.interrupt()

    signal.signal(signal.SIGTERM, interrupt)
    structlog.contextvars.bind_contextvars(job_id=job_id, job=job.name, request_id=job.request_id)
    execution.perform(context, handlers.find(job.name).run)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""Asks the ledger of another data folder: one JSON question a line, one JSON answer a line.

A process of its own, because Django's settings, and with them the database and the broker, are
fixed when a process starts.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import django

django.setup()

from server.jobs import actions, queries  # noqa: E402 - needs the settings
from tests.jobs import handlers  # noqa: E402


def enqueue(**question: Any) -> str:
    """Queue a job and return its id."""
    return str(actions.enqueue(**question).pk)


def send(job_id: str) -> bool:
    """Send a job's message once more, as a broker does that delivers twice."""
    return actions.send(job=queries.get_job(job_id))


def cancel(job_id: str) -> None:
    """Ask for a job to end."""
    actions.request_cancel(job_id=job_id)


def read(job_id: str) -> dict[str, Any]:
    """Return what the ledger says of a job, and how often it took effect."""
    job = queries.get_job(job_id)
    return {
        "state": job.state,
        "attempts": job.attempts,
        "code": job.error_code,
        "detail": job.error_detail,
        "output": job.last_output,
        "effects": handlers.count_effects(job_id),
    }


ANSWERS = {"enqueue": enqueue, "send": send, "cancel": cancel, "read": read}


def main() -> None:
    """Answer until there are no more questions."""
    handlers.create_effects()
    for line in sys.stdin:
        verb, arguments = json.loads(line)
        print(json.dumps(ANSWERS[verb](**arguments)), flush=True)


if __name__ == "__main__":
    main()

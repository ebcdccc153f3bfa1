"""A process to kill: ``python -m tests.telemetry.victim VERB [FILE] [POINT]``.

``prepare`` makes the model, ``send`` takes the events of a file in batches, ``drain`` counts for
ever in small steps, or until it dies by itself at the named point; ``report`` counts the rest and
prints what there is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import django

django.setup()

from django.db.models import Sum  # noqa: E402 - needs the settings

from server.telemetry import actions, buffers, counting  # noqa: E402
from server.telemetry.models import Event, FeedbackTotal, FirstFact, LatencyCount  # noqa: E402
from tests.support.factories import make_model  # noqa: E402

BATCH = 7


def prepare() -> None:
    make_model()


def send(file: str) -> None:
    """Take all the file's events, again and from the start if it was done before."""
    events = json.loads(Path(file).read_text())
    for start in range(0, len(events), BATCH):
        actions.record_events(events[start : start + BATCH], may_report=lambda _: True)
    print(json.dumps("sent"), flush=True)


def drain(point: str = "") -> None:
    """Count for ever, and say that it began."""
    actions.DRAIN_BATCH = 10
    if point == "counted":
        _die_after(counting, "count_events")
    if point == "stored":
        # The transaction has ended; Redis still has the batches, the database its rows.
        _die_before(buffers.RedisBuffer, "delete")
    print("began", flush=True)
    while True:
        actions.drain(budget_s=1)


def report() -> None:
    actions.drain(budget_s=600)
    sums = FeedbackTotal.objects.aggregate(answers=Sum("answers"), successes=Sum("successes"))
    timed = LatencyCount.objects.aggregate(count=Sum("count"))
    found = {
        "events": Event.objects.count(),
        "uncounted": Event.objects.filter(is_counted=False).count(),
        "facts": FirstFact.objects.count(),
        "timed": timed["count"],
        **sums,
    }
    print(json.dumps(found), flush=True)


def _die_after(owner: Any, name: str) -> None:
    found = getattr(owner, name)

    def replaced(*arguments: Any) -> None:
        found(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, replaced)


def _die_before(owner: Any, name: str) -> None:
    setattr(owner, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    {"prepare": prepare, "send": send, "drain": drain, "report": report}[verb](*arguments)

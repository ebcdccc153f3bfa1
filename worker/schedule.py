"""What the clock calls. Beat copies these entries into the database, where the admin shows them."""

from __future__ import annotations

from typing import Any

from django.conf import settings

from server.jobs import names

NIGHTLY_TICK_S = 60
CATCH_UP_S = 60
RENEW_S = 3600
DRAIN_S = 5
SUMMARISE_S = 60
UPKEEP_S = 3600
SEND_AGAIN_S = 30


def entries() -> dict[str, dict[str, Any]]:
    """Return beat's schedule; a call that waited for a whole round is dropped for the next."""
    return {
        "Look for lapsed jobs": _every(settings.JOB_REAP_S, names.REAP),
        "Look for models due for their nightly run": _every(NIGHTLY_TICK_S, names.NIGHTLY),
        "Look for releases that wait to be signed": _every(
            CATCH_UP_S, names.CATCH_UP, names.SIGNING_QUEUE
        ),
        "Sign metadata again before they expire": _every(RENEW_S, names.RENEW, names.SIGNING_QUEUE),
        "Count the events that wait": _every(DRAIN_S, names.DRAIN),
        "Count days again whose events changed": _every(SUMMARISE_S, names.SUMMARISE),
        "Look for silent installations and old events": _every(UPKEEP_S, names.UPKEEP),
        "Look at the rollouts under way": _every(settings.ROLLOUT_LOOK_S, names.LOOK),
        "Send webhooks again": _every(SEND_AGAIN_S, names.SEND_AGAIN),
    }


def _every(seconds: int, name: str, queue: str = names.DEFAULT_QUEUE) -> dict[str, Any]:
    """Return one entry."""
    return {
        "task": name,
        "schedule": float(seconds),
        "options": {"queue": queue, "expires": float(seconds)},
    }

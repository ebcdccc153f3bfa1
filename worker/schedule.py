"""What the clock calls. Beat copies these entries into the database, where the admin shows them."""

from __future__ import annotations

from typing import Any

from django.conf import settings

from server.jobs import names

NIGHTLY_TICK_S = 60


def entries() -> dict[str, dict[str, Any]]:
    """Return beat's schedule; a call that waited for a whole round is dropped for the next."""
    return {
        "Look for lapsed jobs": _every(settings.JOB_REAP_S, names.REAP),
        "Look for models due for their nightly run": _every(NIGHTLY_TICK_S, names.NIGHTLY),
    }


def _every(seconds: int, name: str) -> dict[str, Any]:
    """Return one entry."""
    return {
        "task": name,
        "schedule": float(seconds),
        "options": {"queue": names.DEFAULT_QUEUE, "expires": float(seconds)},
    }

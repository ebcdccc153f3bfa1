"""A model whose installations report."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest

from server.telemetry import actions
from tests.support.factories import make_model

NOW = dt.datetime(2026, 3, 20, 12, tzinfo=dt.UTC)


def event(**values: Any) -> dict[str, Any]:
    """Return a sound event."""
    return {
        "event_id": str(uuid.uuid4()),
        "device": "d-1",
        "type": "activated",
        "model": "recyclables",
        "channel": "production",
        "label": "v1",
        "version": 1,
        "occurred_at": (NOW - dt.timedelta(hours=1)).isoformat(),
        **values,
    }


def enrolled(arm: str = "treatment", rollout: str = "r1", **values: Any) -> dict[str, Any]:
    """Return an event of an installation that takes part in a rollout."""
    label = "v2" if arm == "treatment" else "v1"
    return event(enrolment={"rollout": rollout, "arm": arm}, **{"label": label, **values})


def at(hours: float = 0, **more: float) -> str:
    """Return a time after NOW (or before), as devices write it."""
    return (NOW + dt.timedelta(hours=hours, **more)).isoformat()


def take(events: list[dict[str, Any]], *, now: dt.datetime = NOW) -> actions.Receipt:
    """Take a batch as the web process does."""
    return actions.record_events(events, may_report=lambda _: True, now=now)


@pytest.fixture
def model(db: Any) -> Any:
    """Return a model that devices may report about."""
    return make_model()

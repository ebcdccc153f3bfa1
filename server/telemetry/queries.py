"""Reads of what devices reported."""

from __future__ import annotations

from server.registry.models import Model
from server.telemetry.models import Event


def device_count(model: Model, label: str) -> int:
    """Return how many different devices reported anything about a release."""
    return Event.objects.filter(model=model, label=label).values("device").distinct().count()

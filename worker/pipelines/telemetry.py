"""Counting what devices report, and keeping the tables in shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from server.telemetry import actions

if TYPE_CHECKING:
    from datetime import datetime

log = structlog.get_logger(__name__)


def drain(*, now: datetime) -> None:
    """Count the events that wait; called every few seconds."""
    drained = actions.drain(now=now)
    if not drained.is_done:
        log.warning("events_still_wait", counted=drained.events)


def summarise(*, now: datetime) -> None:
    """Count changed days again; called every minute."""
    actions.summarise(now=now)


def upkeep(*, now: datetime) -> None:
    """Note the fleet and who fell silent, and delete old events; called every hour."""
    silent, releases = actions.mark_silent(now=now), actions.snapshot_fleet(now=now)
    pruned = actions.prune(now=now)
    log.info("telemetry_kept", fell_silent=silent, releases=releases, pruned=pruned)

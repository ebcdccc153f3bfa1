"""The periodic look at rollouts: what is under way is judged, what waits gets its turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from server.domain.errors import DomainError
from server.domain.stages import OPEN_STATES
from server.rollouts import staging
from server.rollouts.models import Rollout

if TYPE_CHECKING:
    from datetime import datetime

log = structlog.get_logger(__name__)


def look(*, now: datetime) -> None:
    """Judge every open rollout once, then start what waits; one's trouble costs no other's."""
    rows = Rollout.objects.select_related("channel__model", "candidate")
    for rollout in rows.filter(state__in=OPEN_STATES):
        try:
            decision = staging.look_at(rollout=rollout, now=now)
        except DomainError as error:
            log.warning("not_looked_at", rollout=rollout.pk, error=error.detail)
        except Exception:
            log.exception("not_looked_at", rollout=rollout.pk)
        else:
            if decision is not None and decision.verb:
                log.info("rollout_moved", rollout=rollout.pk, verb=decision.verb)
    for rollout in rows.filter(state="queued"):
        try:
            staging.start_waiting(channel=rollout.channel, now=now)
        except Exception:
            log.exception("not_started", rollout=rollout.pk)

"""The nightly: which models run tonight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from django.db import transaction

from server.domain.errors import Conflict
from server.photos.actions import remove_forgotten_blobs
from server.registry.models import Model
from server.training import actions, queries
from server.training.models import Night

if TYPE_CHECKING:
    from datetime import datetime

log = structlog.get_logger(__name__)


def tick(*, now: datetime) -> None:
    """Start the runs that are due at ``now``, and sweep up; called every minute."""
    remove_forgotten_blobs()
    for model in Model.objects.filter(retired_at__isnull=True, nightly_enabled=True):
        night = Night.objects.filter(model=model).first()
        if queries.is_night_due(model, now, night.last_on if night else None):
            log.info("nightly", model=model.slug, summary=start_night(model=model, now=now))


def start_night(*, model: Model, now: datetime, trigger: str = "nightly") -> str:
    """Start one model's run if it has new accepted photos; return what was done, in a sentence."""
    with transaction.atomic():
        Model.objects.select_for_update().get(pk=model.pk)
        night, created = Night.objects.get_or_create(model=model, defaults={"last_on": now.date()})
        if not created and trigger == "nightly" and night.last_on == now.date():
            return night.summary
        count = queries.new_photo_count(model)
        night.last_on = now.date()
        night.summary = _start(model, count, trigger) if count else "No new photos: nothing to do."
        night.save()
    return night.summary


def _start(model: Model, count: int, trigger: str) -> str:
    try:
        run = actions.request_run(model=model, trigger=trigger)
    except Conflict as conflict:
        return conflict.detail
    return f"{count} new photos: run {run.pk} started."

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
    from datetime import date, datetime

log = structlog.get_logger(__name__)


def tick(*, now: datetime) -> None:
    """Start the runs that are due at ``now``, and sweep up; called every minute."""
    for model in Model.objects.filter(retired_at__isnull=True, nightly_enabled=True):
        night = Night.objects.filter(model=model).first()
        due = queries.due_night(model, now, night.last_on if night else None)
        if due is not None:
            # One model's trouble must not cost the others their night.
            try:
                log.info("nightly", model=model.slug, summary=start_night(model=model, night=due))
            except Exception:
                log.exception("nightly_failed", model=model.slug)
    remove_forgotten_blobs()


def start_night(*, model: Model, night: date) -> str:
    """Start one model's run if it has new accepted photos; return what was done, in a sentence.

    A model that is busy keeps its night: the next minute tries again.
    """
    with transaction.atomic():
        Model.objects.select_for_update().get(pk=model.pk)
        row = Night.objects.filter(model=model).first()
        if row is not None and row.last_on >= night:
            return row.summary
        count = queries.new_photo_count(model)
        summary = "No new photos: nothing to do."
        if count:
            try:
                run = actions.request_run(model=model, trigger="nightly")
            except Conflict as conflict:
                return conflict.detail
            summary = f"{count} new photos: run {run.pk} started."
        Night.objects.update_or_create(model=model, defaults={"last_on": night, "summary": summary})
    return summary

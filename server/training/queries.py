"""Reads of runs and snapshots."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from django.conf import settings

from server.domain.errors import NotFound
from server.domain.variants import MENU
from server.photos.queries import trainable_photos
from server.registry.models import Model
from server.training.models import RunLine, TrainingRun

if TYPE_CHECKING:
    import uuid

    from django.db.models import QuerySet

    from server.photos.models import Photo
    from server.registry.models import ModelVersion

# A night missed by more than this (the machine was off) waits for the next one.
CATCH_UP = timedelta(hours=6)
# How long a transaction that accepts photos may take.
COMMIT_DELAY = timedelta(minutes=10)
# One answer's worth; who wants more asks again from the last id on.
MAX_LINES = 2000


def get_run(run_id: uuid.UUID) -> TrainingRun:
    """Return a run.

    Raises:
        NotFound: ``unknown_run``.

    """
    try:
        return TrainingRun.objects.select_related("model", "version", "snapshot").get(pk=run_id)
    except TrainingRun.DoesNotExist as error:
        message = "There is no run of that id."
        raise NotFound(message, code="unknown_run") from error


def list_runs(*, model: str = "", state: str = "", kind: str = "") -> QuerySet[TrainingRun]:
    """Return the runs, newest first, of that model, state and kind where given."""
    wanted = {"model__slug": model, "state": state, "kind": kind}
    return TrainingRun.objects.select_related("model", "version").filter(
        **{field: value for field, value in wanted.items() if value}
    )


def log(run: TrainingRun, *, after: int = 0) -> list[RunLine]:
    """Return the run's sentences with a greater id, oldest first."""
    return list(run.lines.filter(pk__gt=after).exclude(message="")[:MAX_LINES])


def curve(run: TrainingRun, *, after: int = 0) -> list[RunLine]:
    """Return the lines that carry figures with a greater id, oldest first."""
    return list(run.lines.filter(pk__gt=after).exclude(metrics={})[:MAX_LINES])


def accepted_photos(model: Model) -> QuerySet[Photo]:
    """Return the model's photos that may train, in a stable order, with their labels."""
    return trainable_photos(model).select_related("label").order_by("created_at", "pk")


def new_photo_count(model: Model) -> int:
    """Return how many accepted photos no finished run has seen."""
    last = (
        model.runs.filter(
            kind=TrainingRun.Kind.TRAIN, state=TrainingRun.State.SUCCEEDED, snapshot__isnull=False
        )
        .order_by("-created_at")
        .first()
    )
    photos = accepted_photos(model)
    if last is not None and last.snapshot is not None:
        # The moment counts and not the entries alone: photos that a cap left out are not new
        # every night. What was accepted just before may have been committed just after.
        since = last.snapshot.created_at - COMMIT_DELAY
        photos = photos.filter(decided_at__gt=since)
        photos = photos.exclude(snapshot_entries__snapshot=last.snapshot)
    return photos.count()


def shipped_kinds(version: ModelVersion) -> set[str]:
    """Return the files that devices may get of a version, as ``runtime:precision``."""
    shipped = version.variants.filter(is_shipped=True)
    return {f"{one.runtime}:{one.precision}" for one in shipped}


def variant_menu(version: ModelVersion) -> list[dict[str, Any]]:
    """Return everything that can be compiled, what it is for, and what the version has of it."""
    known = {f"{one.runtime}:{one.precision}": one for one in version.variants.all()}
    return [
        {
            "kind": name,
            "purpose": kind.purpose,
            "is_trained": kind.is_trained,
            "is_shipped": name in known and known[name].is_shipped,
            "refusal": known[name].refusal if name in known else "",
        }
        for name, kind in MENU.items()
    ]


def due_night(model: Model, now: datetime, last_on: date | None) -> date | None:
    """Return the date of the night that should start now and was not looked at yet, if any.

    A night missed while the server was away is made up for within ``CATCH_UP``, past midnight too.
    """
    hours, minutes = (model.nightly_at or settings.NIGHTLY_AT).split(":")
    today = now.astimezone(UTC).date()
    for day in (today, today - timedelta(days=1)):
        due_at = datetime.combine(day, time(int(hours), int(minutes)), UTC)
        if due_at <= now < due_at + CATCH_UP and (last_on is None or last_on < day):
            return day
    return None

"""What the home page says, in a number of queries that does not grow with the models."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db.models import Count, Max, Q

from server.delivery.models import ApplicationKey
from server.domain import maturity
from server.jobs.queries import count_by_state
from server.photos.models import Photo
from server.registry.figures import accepted_photos, shown_accuracy
from server.registry.models import Model, ModelVersion
from server.registry.queries import models_with_photos, training_policy
from server.rollouts import queries as rollouts
from server.rollouts.actions import PRODUCTION
from server.rollouts.models import Release
from server.training.models import Night, TrainingRun
from server.trust import queries as trust

# Enough for a look; the list has the rest.
RECENT_RUNS = 8


@dataclass
class ModelOverview:
    """One model on the home page."""

    model: Model
    night: str
    serves: Release | None
    pending: int = 0
    accepted: int = 0
    active_run: TrainingRun | None = None
    newest: ModelVersion | None = None

    @property
    def photos_sentence(self) -> str:
        """Say which labels have too few photos; blank where all have enough."""
        minimum = training_policy(self.model).min_photos_per_label
        return maturity.describe(accepted_photos(self.model), minimum=minimum)

    @property
    def newest_accuracy(self) -> str:
        """Return the newest version's accuracy with its interval and count."""
        return shown_accuracy(self.newest.metrics) if self.newest is not None else ""

    @property
    def is_unreleased(self) -> bool:
        """Say whether there is a published version newer than what production serves."""
        if self.newest is None:
            return False
        return self.serves is None or self.newest.number > self.serves.version.number


def overview() -> dict[str, Any]:
    """Return the home page's facts."""
    models = list(models_with_photos().filter(retired_at__isnull=True))
    serves = {
        channel.model_id: release
        for channel, release in rollouts.serving(models)
        if channel.name == PRODUCTION
    }
    counts = _photo_counts()
    runs = _newest_runs(models)
    nights = {night.model_id: night for night in Night.objects.filter(model__in=models)}
    newest = _newest_versions(models)
    rows = []
    for model in models:
        found = runs[model.pk]
        row = ModelOverview(
            model=model,
            night=_night_sentence(found, nights.get(model.pk)),
            serves=serves.get(model.pk),
            active_run=next((run for run in found if run.state in TrainingRun.ACTIVE), None),
            newest=newest.get(model.pk),
            pending=counts.get(model.pk, {}).get("pending", 0),
            accepted=counts.get(model.pk, {}).get("accepted", 0),
        )
        rows.append(row)
    return {
        "models": rows,
        "pending_photos": sum(row.pending for row in rows),
        "active_runs": [row.active_run for row in rows if row.active_run is not None],
        "recent_runs": TrainingRun.objects.select_related("model", "version")[:RECENT_RUNS],
        "jobs": count_by_state(),
        "trust_alarms": trust.alarms(),
        "waiting_signings": rollouts.waiting_signings(),
        "has_keys": ApplicationKey.objects.filter(revoked_at__isnull=True).exists(),
    }


def trust_overview() -> dict[str, Any]:
    """Return the trust page's facts."""
    return {
        "lives": [
            {**vars(life), "percent": round(life.fraction_left * 100)}
            for life in trust.role_lives()
        ],
        "alarms": trust.alarms(),
        "waiting": rollouts.waiting_signings(),
        "is_embedded": settings.TRUST_IS_EMBEDDED,
    }


def _photo_counts() -> dict[int, dict[str, int]]:
    rows = (
        Photo.objects.order_by()
        .values("model_id")
        .annotate(
            pending=Count("pk", filter=Q(state=Photo.State.PENDING)),
            accepted=Count("pk", filter=Q(state=Photo.State.ACCEPTED)),
        )
    )
    return {
        row["model_id"]: {"pending": row["pending"], "accepted": row["accepted"]} for row in rows
    }


def _newest_runs(models: list[Model]) -> dict[int, list[TrainingRun]]:
    """Return, for each model, its unfinished run and its last finished training."""
    newest = (
        TrainingRun.objects.filter(model__in=models, kind=TrainingRun.Kind.TRAIN)
        .exclude(state__in=TrainingRun.ACTIVE)
        .order_by()
        .values("model_id")
        .annotate(newest=Max("created_at"))
        .values("newest")
    )
    wanted = Q(state__in=TrainingRun.ACTIVE) | Q(created_at__in=newest, kind=TrainingRun.Kind.TRAIN)
    found: dict[int, list[TrainingRun]] = defaultdict(list)
    for run in TrainingRun.objects.filter(wanted, model__in=models).select_related("model"):
        found[run.model_id].append(run)
    return found


def _newest_versions(models: list[Model]) -> dict[int, ModelVersion]:
    numbers = (
        ModelVersion.objects.filter(model__in=models, state=ModelVersion.State.PUBLISHED)
        .order_by()
        .values("model_id")
        .annotate(newest=Max("number"))
        .values_list("model_id", "newest")
    )
    wanted = Q(pk__in=())
    for model_id, number in numbers:
        wanted |= Q(model_id=model_id, number=number)
    return {version.model_id: version for version in ModelVersion.objects.filter(wanted)}


def _night_sentence(runs: list[TrainingRun], night: Night | None) -> str:
    """Say in one sentence what the last night did."""
    last = next((run for run in runs if run.state not in TrainingRun.ACTIVE), None)
    if night is not None and last is not None and last.created_at.date() == night.last_on:
        return f"The night of {night.last_on}: {last.outcome or last.state}"
    if night is not None:
        return f"The night of {night.last_on}: {night.summary}"
    if last is not None:
        return f"Trained {last.created_at:%Y-%m-%d %H:%M} UTC: {last.outcome or last.state}"
    return "No night yet."

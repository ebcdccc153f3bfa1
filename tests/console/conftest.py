"""A server with something to show on every page."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from server.delivery.actions import create_application_key
from server.registry.models import Model
from server.telemetry.actions import record_events
from server.training import actions as training
from server.training.models import DatasetSnapshot, Night, SnapshotEntry, TrainingRun
from tests.support.factories import make_model, make_version, release


@pytest.fixture(autouse=True)
def _quick_passwords(settings: Any) -> None:
    """Spare every test the half second that a password is made to cost."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def model(db: Any) -> Model:
    """Return a model with two versions, both released, and a finished run."""
    model = make_model("recyclables", name="Recyclables")
    for _ in range(2):
        release(make_version(model))
    finish_run(model)
    Night.objects.create(model=model, last_on=timezone.now().date(), summary="No new photos.")
    create_application_key(name="app", models=[model])
    record_events(
        [
            {
                "event_id": "7b0c2a54-9d0e-4e9c-8a8a-0d6ac5f3e0b1",
                "device": "a-phone",
                "type": "confirmed",
                "model": model.slug,
                "label": "v2",
                "occurred_at": "2026-01-01T00:00:00Z",
            }
        ],
        may_report=lambda _: True,
    )
    return model


def finish_run(model: Model) -> TrainingRun:
    """Return a run that trained and succeeded."""
    run = training.request_run(model=model)
    training.start_run(run_id=run.pk)
    snapshot = DatasetSnapshot.objects.create(
        model=model,
        labels=["glass", "metal"],
        counts={"train": {"glass": 3, "metal": 4}, "validation": {}, "test": {"glass": 1}},
        digest="0" * 64,
    )
    SnapshotEntry.objects.create(snapshot=snapshot, label="glass", split="train")
    run.refresh_from_db()
    run.snapshot, run.version = snapshot, model.versions.first()
    run.save()
    for step in range(3):
        training.report_progress(
            run=run, stage="training", step=step, total=3, metrics={"loss": 1 / (step + 1)}
        )
    training.succeed_run(run=run, outcome="Version 2 is as good as version 1.")
    run.refresh_from_db()
    return run

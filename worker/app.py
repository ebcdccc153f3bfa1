"""The worker's Celery application: ``celery -A worker.app worker`` and ``… beat``."""

from __future__ import annotations

import logging
import os
import warnings

import django
from celery.exceptions import SecurityWarning
from celery.signals import setup_logging, worker_shutting_down

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "server.settings")
django.setup()

from server.jobs.broker import app  # noqa: E402 - needs the settings
from worker import execution, schedule, tasks  # noqa: E402

__all__ = ["app"]

# Celery warns of root because a pickled message could run code as root; we take JSON only.
warnings.filterwarnings("ignore", category=SecurityWarning)

# These say a line or more per task; the ledger's own log says what matters of it.
for _name in ("celery.app.trace", "celery.worker.strategy", "celery.beat", "django_celery_beat"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def _keep_logging(**_: object) -> None:
    """Keep Django's log settings: Celery configures its own unless something is connected."""


def _stop_jobs(**_: object) -> None:
    """Let running jobs go back to their queue, so that a shutdown takes seconds."""
    execution.stopping.set()


setup_logging.connect(_keep_logging)
worker_shutting_down.connect(_stop_jobs)
tasks.register(app)
app.conf.beat_schedule = schedule.entries()

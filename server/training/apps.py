"""The training app: a run learns how its job ended."""

from __future__ import annotations

from django.apps import AppConfig


class TrainingConfig(AppConfig):
    """Snapshots and runs."""

    name = "server.training"

    def ready(self) -> None:
        """Listen to the job ledger."""
        from server.training import signals  # noqa: F401 - connects on import

"""The rollouts app: devices learn of a changed model like of a release."""

from __future__ import annotations

from django.apps import AppConfig


class RolloutsConfig(AppConfig):
    """Channels and releases."""

    name = "server.rollouts"

    def ready(self) -> None:
        """Listen to the registry."""
        from server.rollouts import signals  # noqa: F401 - connects on import

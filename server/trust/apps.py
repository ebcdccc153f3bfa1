"""The Django application ``trust``."""

from __future__ import annotations

from django.apps import AppConfig


class TrustConfig(AppConfig):
    """The repository of signed metadata."""

    name = "server.trust"
    label = "trust"
    verbose_name = "Signed metadata"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Show how long metadata hold at ``/metrics``."""
        from prometheus_client import REGISTRY

        from server.trust.metrics import MetadataLives

        REGISTRY.register(MetadataLives())

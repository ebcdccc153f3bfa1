"""Registers the HTTP layer: its one model is the audit log."""

from __future__ import annotations

from django.apps import AppConfig


class HttpConfig(AppConfig):
    """The HTTP layer."""

    name = "server.http"
    label = "http"
    verbose_name = "Audit"

    def ready(self) -> None:
        """Teach the schema generator our authentication."""
        from server.http import schema  # noqa: F401 - registers on import

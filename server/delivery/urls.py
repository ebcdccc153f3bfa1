"""Addresses of the devices' calls."""

from __future__ import annotations

from django.urls import path, register_converter

from server.delivery import api, keys_api


class Sha256Converter:
    """64 hexadecimal digits."""

    regex = "[0-9a-f]{64}"

    def to_python(self, value: str) -> str:
        """Return the digits."""
        return value

    def to_url(self, value: str) -> str:
        """Return the digits."""
        return value


register_converter(Sha256Converter, "sha256")

urlpatterns = [
    path("models/<str:model>/update", api.check_update, name="update"),
    path("models/<slug:model>/explain", api.Explain.as_view(), name="explain"),
    path("artifacts/<sha256:sha256>", api.fetch_artifact, name="artifact"),
    path("metadata/<str:name>", api.fetch_metadata, name="metadata"),
    path("events", api.take_events, name="events"),
    path("keys", keys_api.ApplicationKeys.as_view(), name="keys"),
    path("keys/<int:key_id>", keys_api.OneApplicationKey.as_view(), name="key"),
]

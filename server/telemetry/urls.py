"""Addresses of fleets and telemetry."""

from __future__ import annotations

from django.urls import path

from server.telemetry import api

urlpatterns = [
    path("models/<slug:model>/fleet", api.Fleet.as_view(), name="fleet"),
    path("models/<slug:model>/telemetry", api.Telemetry.as_view(), name="telemetry"),
]

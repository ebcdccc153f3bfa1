"""Addresses of models and versions."""

from __future__ import annotations

from django.urls import path

from server.registry import api

urlpatterns = [
    path("models", api.Models.as_view(), name="models"),
    path("models/<slug:model>", api.OneModel.as_view(), name="model"),
    path("models/<slug:model>/versions/<int:number>", api.OneVersion.as_view(), name="version"),
]

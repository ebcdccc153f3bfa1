"""Addresses of channels and releases."""

from __future__ import annotations

from django.urls import path

from server.rollouts import api

urlpatterns = [
    path("models/<slug:model>/channels", api.Channels.as_view(), name="channels"),
    path(
        "models/<slug:model>/channels/<slug:channel>/releases",
        api.Releases.as_view(),
        name="releases",
    ),
    path(
        "models/<slug:model>/channels/<slug:channel>/rollback",
        api.Rollback.as_view(),
        name="rollback",
    ),
    path("models/<slug:model>/versions/<int:number>/recall", api.Recall.as_view(), name="recall"),
    path("models/<slug:model>/kill", api.Kill.as_view(), name="kill"),
]

"""Addresses of channels, releases and rollouts."""

from __future__ import annotations

from django.urls import path

from server.rollouts import api, rollout_api

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
    path(
        "models/<slug:model>/delivery-policy",
        rollout_api.DeliveryPolicies.as_view(),
        name="delivery_policy",
    ),
    path(
        "models/<slug:model>/channels/<slug:channel>/golden",
        rollout_api.Golden.as_view(),
        name="golden",
    ),
    path(
        "models/<slug:model>/channels/<slug:channel>/overrides",
        rollout_api.Overrides.as_view(),
        name="overrides",
    ),
    path(
        "models/<slug:model>/channels/<slug:channel>/overrides/<str:device>",
        rollout_api.OneOverride.as_view(),
        name="override",
    ),
    path("rollouts", rollout_api.Rollouts.as_view(), name="rollouts"),
    path("rollouts/<int:rollout_id>", rollout_api.OneRollout.as_view(), name="rollout"),
    path("rollouts/<int:rollout_id>/decisions", rollout_api.Decisions.as_view(), name="decisions"),
    path("rollouts/<int:rollout_id>/approve", rollout_api.Approve.as_view(), name="approve"),
    *(
        path(f"rollouts/<int:rollout_id>/{verb}", view.as_view(), name=f"{verb}_rollout")
        for verb, view in rollout_api.VERBS.items()
    ),
]

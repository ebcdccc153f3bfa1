"""Addresses of runs, and of versions as a list."""

from __future__ import annotations

from django.urls import path

from server.training import api, golden_api, search_api

urlpatterns = [
    path("models/<slug:model>/versions", api.Versions.as_view(), name="versions"),
    path(
        "models/<slug:model>/versions/<int:number>/variants",
        api.Variants.as_view(),
        name="version_variants",
    ),
    path("models/<slug:model>/train", api.Train.as_view(), name="train"),
    path("models/<slug:model>/versions/<int:number>/card", api.Card.as_view(), name="version_card"),
    path("models/<slug:model>/golden", golden_api.Golden.as_view(), name="golden"),
    path(
        "models/<slug:model>/golden/<uuid:photo_id>",
        golden_api.OneGolden.as_view(),
        name="golden_photo",
    ),
    path("models/<slug:model>/searches", search_api.Searches.as_view(), name="searches"),
    path("runs/<uuid:run_id>/search", search_api.OneSearch.as_view(), name="search"),
    path("runs/<uuid:run_id>/search/adopt", search_api.Adoption.as_view(), name="adopt_candidate"),
    path("runs", api.Runs.as_view(), name="runs"),
    path("runs/<uuid:run_id>", api.OneRun.as_view(), name="run"),
    path("runs/<uuid:run_id>/cancel", api.CancelRun.as_view(), name="cancel_run"),
]

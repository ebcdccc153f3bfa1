"""Addresses of the volunteers' calls, under ``/api/v1/``."""

from __future__ import annotations

from django.urls import path

from server.photos import api

urlpatterns = [
    path("consent", api.Terms.as_view(), name="consent"),
    path("volunteers", api.Volunteers.as_view(), name="volunteers"),
    path("volunteers/me", api.Me.as_view(), name="me"),
    path("volunteers/<uuid:volunteer_id>/trust", api.Trust.as_view(), name="volunteer-trust"),
    path("photos", api.Photos.as_view(), name="photos"),
    path("photos/<uuid:photo_id>", api.PhotoDetail.as_view(), name="photo"),
    path("photos/<uuid:photo_id>/image", api.PhotoImage.as_view(), name="photo-image"),
    path("photos/<uuid:photo_id>/thumbnail", api.PhotoThumbnail.as_view(), name="photo-thumbnail"),
    path("models/<str:model>/challenge", api.ChallengeOfDay.as_view(), name="challenge"),
    path("models/<str:model>/leaderboard", api.LeaderboardOfWeek.as_view(), name="leaderboard"),
]

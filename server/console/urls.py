"""Addresses of the operators' own access."""

from __future__ import annotations

from django.urls import path

from server.console import api

urlpatterns = [
    path("auth/token", api.SignIn.as_view(), name="sign_in"),
    path("auth/token/current", api.SignOut.as_view(), name="sign_out"),
]

"""Registers the photos app."""

from __future__ import annotations

from django.apps import AppConfig


class PhotosConfig(AppConfig):
    """Volunteers and their photos."""

    name = "server.photos"
    label = "photos"
    verbose_name = "Photos"

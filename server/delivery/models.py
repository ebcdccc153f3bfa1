"""Keys by which applications fetch models."""

from __future__ import annotations

from django.db import models


class ApplicationKey(models.Model):
    """An application's key; only its digest is stored."""

    name = models.CharField(max_length=120)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(max_length=8, editable=False, help_text="The key's first characters.")
    covers = models.ManyToManyField(
        "registry.Model", blank=True, help_text="Empty: every model of this server."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        """By name."""

        ordering = ("name",)

    def __str__(self) -> str:
        """Return the name and the hint."""
        return f"{self.name} ({self.hint}…)"

"""Channels and releases: which version devices should run."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from server.registry.models import SLUG


class Channel(models.Model):
    """A named stream of releases of one model."""

    model = models.ForeignKey("registry.Model", on_delete=models.CASCADE, related_name="channels")
    name = models.CharField(max_length=63, validators=[SLUG])
    next_label = models.PositiveIntegerField(default=1, editable=False)

    class Meta:
        """A name once per model."""

        ordering = ("model", "name")
        constraints = (
            models.UniqueConstraint(fields=["model", "name"], name="channel_once_per_model"),
        )

    def __str__(self) -> str:
        """Return ``model/channel``."""
        return f"{self.model.slug}/{self.name}"


class Release(models.Model):
    """A version put on a channel. Labels only grow; rows are never changed but to withdraw them."""

    class Kind(models.TextChoices):
        """Why the release was made."""

        UPDATE = "update"
        ROLLBACK = "rollback"

    channel = models.ForeignKey(Channel, on_delete=models.CASCADE, related_name="releases")
    label_number = models.PositiveIntegerField()
    version = models.ForeignKey(
        "registry.ModelVersion", on_delete=models.PROTECT, related_name="releases"
    )
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.UPDATE)
    reason = models.TextField(blank=True)
    notes = models.TextField(blank=True)
    is_mandatory = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    killed_at = models.DateTimeField(null=True, blank=True)
    killed_reason = models.TextField(blank=True)

    class Meta:
        """Newest first; a label once per channel."""

        ordering = ("channel", "-label_number")
        constraints = (
            models.UniqueConstraint(
                fields=["channel", "label_number"], name="label_once_per_channel"
            ),
        )

    def __str__(self) -> str:
        """Return ``model/channel v3``."""
        return f"{self.channel} {self.label}"

    @property
    def label(self) -> str:
        """Return the label as devices know it, such as ``v3``."""
        return f"v{self.label_number}"


class DecisionEpoch(models.Model):
    """One row whose number grows with every change that devices may see.

    Web processes compare it with the number of the decision set they hold.
    """

    number = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        """Return the number."""
        return str(self.number)

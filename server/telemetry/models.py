"""What devices report."""

from __future__ import annotations

from django.db import models


class Event(models.Model):
    """One fact an SDK reported; sending it again changes nothing."""

    class Type(models.TextChoices):
        """What happened on the device."""

        ASSIGNED = "assigned"
        DOWNLOADED = "downloaded"
        ACTIVATED = "activated"
        FIRST_INFERENCE = "first_inference"
        CONFIRMED = "confirmed"
        FAILED = "failed"
        ROLLED_BACK = "rolled_back"
        FEEDBACK = "feedback"
        BENCHMARK = "benchmark"

    event_id = models.UUIDField(primary_key=True)
    device = models.CharField(max_length=128)
    type = models.CharField(max_length=20, choices=Type.choices)
    model = models.ForeignKey("registry.Model", on_delete=models.CASCADE, related_name="events")
    channel = models.CharField(max_length=63, blank=True)
    label = models.CharField(max_length=20, blank=True)
    version_number = models.PositiveIntegerField(null=True, blank=True)
    sha256 = models.CharField(max_length=64, blank=True)
    enrolment = models.JSONField(null=True, blank=True)
    data = models.JSONField(default=dict)
    occurred_at = models.DateTimeField()
    received_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """Counted by release and type over distinct devices."""

        ordering = ("-received_at",)
        indexes = (models.Index(fields=["model", "label", "type"], name="event_by_release"),)

    def __str__(self) -> str:
        """Return the device and what it reported."""
        return f"{self.device} {self.type} {self.label}"

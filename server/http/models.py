"""The audit log: who did what to which thing, and when."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class AuditEntry(models.Model):
    """One write by a person or a job. Rows are only ever added."""

    at = models.DateTimeField(auto_now_add=True, db_index=True)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    actor_name = models.CharField(max_length=150)
    action = models.CharField(max_length=80, db_index=True)
    subject = models.CharField(max_length=200, db_index=True)
    detail = models.JSONField(default=dict)

    class Meta:
        """Newest first."""

        ordering = ("-id",)
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        """Return the entry as a sentence."""
        return f"{self.actor_name}: {self.action} {self.subject}"

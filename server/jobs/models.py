"""The job ledger: what was asked for, who works on it, and how it ended."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import Q

from server.jobs.names import DEFAULT_QUEUE


class JobState(models.TextChoices):
    """Where a job stands; the last three are final."""

    QUEUED = "queued", "queued"
    RUNNING = "running", "running"
    SUCCEEDED = "succeeded", "succeeded"
    FAILED = "failed", "failed"
    CANCELLED = "cancelled", "cancelled"


UNFINISHED = (JobState.QUEUED, JobState.RUNNING)


class Job(models.Model):
    """One piece of work, done exactly once or reported failed.

    A worker claims the job for the length of a lease and renews it with heartbeats. Each claim
    raises ``fencing``; a write that carries an older number is refused, so a worker that lost
    its lease can no longer change anything.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=100)
    args = models.JSONField(default=dict, blank=True, help_text="ids only")
    queue = models.CharField(max_length=20, default=DEFAULT_QUEUE)
    state = models.CharField(max_length=10, choices=JobState, default=JobState.QUEUED)
    unique_key = models.CharField(
        max_length=200, blank=True, help_text="at most one unfinished job has this key"
    )
    request_id = models.CharField(max_length=100, blank=True)

    attempts = models.PositiveIntegerField(default=0)
    max_attempts = models.PositiveIntegerField(default=2)
    fencing = models.PositiveBigIntegerField(default=0)
    lease_owner = models.CharField(max_length=200, blank=True)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)

    sends = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    error_code = models.CharField(max_length=100, blank=True)
    error_detail = models.TextField(blank=True)
    last_output = models.TextField(
        blank=True, help_text="the last lines of a process that died without reporting"
    )
    result = models.JSONField(default=dict, blank=True)

    class Meta:
        """Invariants that hold whoever writes."""

        ordering = ("-created_at",)
        indexes = (
            models.Index(fields=("state", "lease_expires_at"), name="jobs_lapsing"),
            models.Index(fields=("state", "sent_at"), name="jobs_waiting"),
        )
        constraints = (
            models.UniqueConstraint(
                fields=("unique_key",),
                condition=Q(state__in=UNFINISHED) & ~Q(unique_key=""),
                name="jobs_one_unfinished_per_key",
            ),
            models.CheckConstraint(
                condition=Q(state=JobState.RUNNING, lease_expires_at__isnull=False)
                | (~Q(state=JobState.RUNNING) & Q(lease_expires_at__isnull=True)),
                name="jobs_lease_exactly_while_running",
            ),
            models.CheckConstraint(
                condition=Q(state__in=UNFINISHED, finished_at__isnull=True)
                | (~Q(state__in=UNFINISHED) & Q(finished_at__isnull=False)),
                name="jobs_end_has_a_time",
            ),
        )

    def __str__(self) -> str:
        """Return the name with enough of the id to tell two apart."""
        return f"{self.name} {str(self.id)[:8]}"

    @property
    def is_finished(self) -> bool:
        """Whether the state is final."""
        return self.state not in UNFINISHED

"""What devices report, and what is counted from it.

Events are raw and pruned after a while. Everything else is derived from them, each event once:
``ReleaseArm`` names a release in one arm of a rollout (or in none), and the counts hang on it.
"""

from __future__ import annotations

from datetime import UTC, datetime

from django.db import models
from django.db.models import Q
from django.utils import timezone

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


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
        LATENCY = "latency"
        HEARTBEAT = "heartbeat"

    class Clock(models.TextChoices):
        """Whether the device's time could be believed."""

        SOUND = "", "sound"
        AHEAD = "ahead"
        BEHIND = "behind"

    event_id = models.UUIDField(primary_key=True)
    device = models.CharField(max_length=128)
    type = models.CharField(max_length=20, choices=Type.choices)
    model = models.ForeignKey("registry.Model", on_delete=models.CASCADE, related_name="events")
    channel = models.CharField(max_length=63, blank=True)
    label = models.CharField(max_length=20, blank=True)
    version_number = models.PositiveIntegerField(null=True, blank=True)
    sha256 = models.CharField(max_length=64, blank=True)
    device_class = models.CharField(max_length=40, blank=True)
    enrolment = models.JSONField(null=True, blank=True)
    sample_bp = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="Share of installations that report such events."
    )
    data = models.JSONField(default=dict)
    occurred_at = models.DateTimeField(help_text="As the device's clock has it.")
    clock = models.CharField(
        max_length=6,
        choices=Clock.choices,
        blank=True,
        help_text="Ahead or behind: counted by the time it was received.",
    )
    received_at = models.DateTimeField(default=timezone.now)
    is_counted = models.BooleanField(default=False, editable=False)

    class Meta:
        """Newest first; what waits to be counted is found without looking at the rest."""

        ordering = ("-received_at",)
        indexes = (
            models.Index(fields=["received_at"], name="event_by_time"),
            models.Index(
                fields=["received_at"], name="event_uncounted", condition=Q(is_counted=False)
            ),
        )

    def __str__(self) -> str:
        """Return the device and what it reported."""
        return f"{self.device} {self.type} {self.label}"

    @property
    def effective_at(self) -> datetime:
        """Return when it happened, by the server's clock where the device's is wrong."""
        if self.clock:
            return self.received_at
        return min(self.occurred_at, self.received_at)


class ReleaseArm(models.Model):
    """A release on a channel, in one arm of a rollout; outside of any, both are empty."""

    model = models.ForeignKey(
        "registry.Model", on_delete=models.CASCADE, related_name="release_arms"
    )
    channel = models.CharField(max_length=63, blank=True)
    label = models.CharField(max_length=20, blank=True)
    rollout = models.CharField(max_length=63, blank=True)
    arm = models.CharField(max_length=16, blank=True)

    class Meta:
        """Once each; found by release and by rollout."""

        ordering = ("model", "channel", "label", "rollout", "arm")
        constraints = (
            models.UniqueConstraint(
                fields=["model", "channel", "label", "rollout", "arm"], name="release_arm_once"
            ),
        )
        indexes = (
            models.Index(fields=["rollout", "arm"], name="release_arm_by_rollout",
                         condition=~Q(rollout="")),
        )  # fmt: skip

    def __str__(self) -> str:
        """Return the release, and the arm where there is one."""
        suffix = f" ({self.arm} of {self.rollout})" if self.rollout else ""
        return f"{self.model}/{self.channel} {self.label}{suffix}"


class FirstFact(models.Model):
    """That a device reported something of a release, and when it first happened.

    Counts of installations are counts of these rows. ``type`` is an event's type, or ``slow`` or
    ``silent``; ``code`` is the class of a failure (see ``failures``) and else empty.
    """

    release_arm = models.ForeignKey(ReleaseArm, on_delete=models.CASCADE, related_name="facts")
    device = models.CharField(max_length=128)
    type = models.CharField(max_length=20)
    code = models.CharField(max_length=20, blank=True)
    first_occurred_at = models.DateTimeField()

    class Meta:
        """Once per installation."""

        ordering = ("-first_occurred_at",)
        constraints = (
            models.UniqueConstraint(
                fields=["release_arm", "device", "type", "code"], name="fact_once"
            ),
        )
        indexes = (
            models.Index(
                fields=["release_arm", "type", "code", "first_occurred_at"], name="fact_by_day"
            ),
        )

    def __str__(self) -> str:
        """Return the device and the fact."""
        return f"{self.device} {self.type} {self.code}".strip()


class DailySummary(models.Model):
    """How many installations first reported something on a day, UTC; counted from their facts."""

    release_arm = models.ForeignKey(ReleaseArm, on_delete=models.CASCADE, related_name="days")
    day = models.DateField()
    type = models.CharField(max_length=20)
    code = models.CharField(max_length=20, blank=True)
    installations = models.PositiveIntegerField(default=0)
    is_stale = models.BooleanField(default=True, editable=False)

    class Meta:
        """Once per day and fact."""

        ordering = ("-day", "release_arm", "type", "code")
        verbose_name_plural = "daily summaries"
        constraints = (
            models.UniqueConstraint(
                fields=["release_arm", "day", "type", "code"], name="summary_once_per_day"
            ),
        )
        indexes = (models.Index(fields=["day"], name="summary_stale", condition=Q(is_stale=True)),)

    def __str__(self) -> str:
        """Return what is counted, and when."""
        return f"{self.release_arm} {self.day} {self.type}"


class FeedbackTotal(models.Model):
    """One installation's feedback on a release: answers, and how many of them said correct."""

    release_arm = models.ForeignKey(ReleaseArm, on_delete=models.CASCADE, related_name="feedback")
    device = models.CharField(max_length=128)
    answers = models.PositiveIntegerField(default=0)
    successes = models.PositiveIntegerField(default=0)

    class Meta:
        """Once per installation."""

        constraints = (
            models.UniqueConstraint(fields=["release_arm", "device"], name="feedback_once"),
        )

    def __str__(self) -> str:
        """Return the device and its answers."""
        return f"{self.device}: {self.successes} of {self.answers}"


class LatencyCount(models.Model):
    """One bucket of a latency histogram; see ``histograms`` for its bounds."""

    class Kind(models.TextChoices):
        """What was timed."""

        INFERENCE = "inference"
        BENCHMARK = "benchmark"

    release_arm = models.ForeignKey(ReleaseArm, on_delete=models.CASCADE, related_name="latencies")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    device_class = models.CharField(max_length=40, blank=True)
    sha256 = models.CharField(max_length=64, blank=True)
    bucket = models.SmallIntegerField()
    count = models.PositiveBigIntegerField(default=0)

    class Meta:
        """Once per bucket."""

        ordering = ("release_arm", "kind", "device_class", "sha256", "bucket")
        constraints = (
            models.UniqueConstraint(
                fields=["release_arm", "kind", "device_class", "sha256", "bucket"],
                name="latency_bucket_once",
            ),
        )

    def __str__(self) -> str:
        """Return where the bucket belongs."""
        return f"{self.release_arm} {self.kind} {self.device_class} {self.bucket}"


class Installation(models.Model):
    """What one installation runs by its newest event that says so, and when it was last heard.

    ``label`` is empty where it runs the model embedded in its app.
    """

    model = models.ForeignKey(
        "registry.Model", on_delete=models.CASCADE, related_name="installations"
    )
    device = models.CharField(max_length=128)
    channel = models.CharField(max_length=63, blank=True)
    label = models.CharField(max_length=20, blank=True)
    version_number = models.PositiveIntegerField(null=True, blank=True)
    sha256 = models.CharField(max_length=64, blank=True)
    device_class = models.CharField(max_length=40, blank=True)
    running_at = models.DateTimeField(default=LONG_AGO, help_text="When it said what it runs.")
    # Of two events of one instant, the same one counts in whatever order they come.
    running_event = models.CharField(max_length=32, blank=True, editable=False)
    heard_at = models.DateTimeField(help_text="When the server last heard of it.")

    class Meta:
        """Once per model."""

        ordering = ("-heard_at",)
        constraints = (
            models.UniqueConstraint(fields=["model", "device"], name="installation_once"),
        )
        indexes = (models.Index(fields=["model", "heard_at"], name="installation_heard"),)

    def __str__(self) -> str:
        """Return the device and what it runs."""
        return f"{self.device} {self.label or 'embedded'}"


class FleetDay(models.Model):
    """How many installations ran a release on a day, UTC, among those heard of recently."""

    model = models.ForeignKey("registry.Model", on_delete=models.CASCADE, related_name="fleet_days")
    day = models.DateField()
    channel = models.CharField(max_length=63, blank=True)
    label = models.CharField(max_length=20, blank=True)
    installations = models.PositiveIntegerField()

    class Meta:
        """Once per day and release."""

        ordering = ("-day", "model", "channel", "label")
        constraints = (
            models.UniqueConstraint(
                fields=["model", "day", "channel", "label"], name="fleet_once_per_day"
            ),
        )

    def __str__(self) -> str:
        """Return the release and its installations."""
        return f"{self.model} {self.day} {self.label or 'embedded'}: {self.installations}"


class Drain(models.Model):
    """One row; whoever counts events holds it, so that counting comes one after the other."""

    drained_at = models.DateTimeField(null=True, blank=True)
    summarised_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        """Return when events were last counted."""
        return f"drained {self.drained_at}"

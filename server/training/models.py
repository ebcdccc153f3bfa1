"""Dataset snapshots and training runs."""

from __future__ import annotations

import uuid
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q


class SplitAssignment(models.Model):
    """The split of one contributor's, or one photo's, pictures for a model; never changed."""

    class Split(models.TextChoices):
        """What a photo is used for."""

        TRAIN = "train"
        VALIDATION = "validation"
        TEST = "test"

    model = models.ForeignKey("registry.Model", on_delete=models.CASCADE, related_name="+")
    unit = models.CharField(max_length=200, help_text="contributor:<id> or photo:<id>")
    split = models.CharField(max_length=10, choices=Split.choices)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """A unit has one split."""

        constraints = (
            models.UniqueConstraint(fields=["model", "unit"], name="split_once_per_unit"),
        )

    def __str__(self) -> str:
        """Return the unit and its split."""
        return f"{self.unit}: {self.split}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Refuse any change: what tested once tests for ever."""
        if not self._state.adding:
            message = f"{self.unit} keeps its split."
            raise SplitChanged(message)
        super().save(*args, **kwargs)


class SplitChanged(RuntimeError):
    """A programming error: code tried to change a split."""


class GoldenPhoto(models.Model):
    """A test photo that staff chose to judge versions by; it was never trained on and never is."""

    photo = models.OneToOneField("photos.Photo", on_delete=models.CASCADE, related_name="golden")
    reason = models.CharField(max_length=300, blank=True)
    pinned_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    pinned_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """Newest first."""

        ordering = ("-pinned_at", "-pk")

    def __str__(self) -> str:
        """Return the photo."""
        return f"golden: {self.photo}"


class DatasetSnapshot(models.Model):
    """The frozen list of accepted photos, with their splits, that one run used."""

    model = models.ForeignKey("registry.Model", on_delete=models.CASCADE, related_name="snapshots")
    digest = models.CharField(max_length=64)
    labels = models.JSONField(default=list)
    counts = models.JSONField(default=dict)
    facts = models.JSONField(
        default=dict, blank=True, help_text="Contributors, cameras and period, as they were then."
    )
    split_by = models.CharField(max_length=12, default="contributor")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """Newest first."""

        ordering = ("-id",)

    def __str__(self) -> str:
        """Return what it froze and when."""
        return f"{self.model.slug} {self.created_at:%Y-%m-%d %H:%M}"


class SnapshotEntry(models.Model):
    """One photo of a snapshot."""

    snapshot = models.ForeignKey(DatasetSnapshot, on_delete=models.CASCADE, related_name="entries")
    photo = models.ForeignKey(
        "photos.Photo", null=True, on_delete=models.SET_NULL, related_name="snapshot_entries"
    )
    label = models.CharField(max_length=80)
    split = models.CharField(max_length=10, choices=SplitAssignment.Split.choices)
    is_golden = models.BooleanField(default=False)

    class Meta:
        """A photo stands in a snapshot once."""

        verbose_name_plural = "snapshot entries"
        constraints = (
            models.UniqueConstraint(fields=["snapshot", "photo"], name="photo_once_per_snapshot"),
        )

    def __str__(self) -> str:
        """Return the photo and its split."""
        return f"{self.photo_id} {self.split}"


class TrainingRun(models.Model):
    """One attempt to make a version: inputs, progress, log and how it ended."""

    class Kind(models.TextChoices):
        """Training, compiling an upload, more files of a version, or searching within a budget."""

        TRAIN = "train"
        COMPILE_UPLOAD = "compile_upload"
        COMPILE_VARIANTS = "compile_variants"
        SEARCH = "search"

    class State(models.TextChoices):
        """``queued`` → ``running`` → one of the rest."""

        QUEUED = "queued"
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled"

    ACTIVE = (State.QUEUED, State.RUNNING)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    model = models.ForeignKey("registry.Model", on_delete=models.CASCADE, related_name="runs")
    kind = models.CharField(max_length=20, choices=Kind.choices, default=Kind.TRAIN)
    trigger = models.CharField(max_length=20, default="manual")
    state = models.CharField(max_length=10, choices=State.choices, default=State.QUEUED)
    stage = models.CharField(max_length=30, blank=True)
    step = models.PositiveIntegerField(default=0)
    total_steps = models.PositiveIntegerField(default=0)
    progress = models.JSONField(default=dict)
    outcome = models.TextField(blank=True, help_text="What came of it, in a sentence.")
    error_code = models.CharField(max_length=60, blank=True)
    seed = models.IntegerField(default=1)
    pins = models.JSONField(default=dict)
    snapshot = models.ForeignKey(
        DatasetSnapshot, null=True, blank=True, on_delete=models.SET_NULL, related_name="runs"
    )
    version = models.ForeignKey(
        "registry.ModelVersion",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="runs",
    )
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    job_id = models.UUIDField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        """Newest first; a model has one unfinished run."""

        ordering = ("-created_at",)
        constraints = (
            models.UniqueConstraint(
                fields=["model"],
                condition=Q(state__in=["queued", "running"]),
                name="one_active_run",
            ),
        )

    def __str__(self) -> str:
        """Return the model and the day."""
        return f"{self.model.slug} {self.created_at:%Y-%m-%d %H:%M}"


class BudgetSearch(models.Model):
    """What a run of kind ``search`` looks for, and every candidate that it has judged."""

    run = models.OneToOneField(TrainingRun, on_delete=models.CASCADE, related_name="search")
    budget = models.JSONField()
    candidates = models.JSONField(default=list, help_text="Files first, then who was dropped.")
    chosen = models.PositiveIntegerField(
        null=True, blank=True, help_text="Place of the chosen file among the candidates."
    )
    sentence = models.TextField(blank=True, help_text="Why it was chosen.")

    class Meta:
        """Newest first."""

        ordering = ("-pk",)
        verbose_name_plural = "budget searches"

    def __str__(self) -> str:
        """Return the run."""
        return f"search of {self.run}"


class RunLine(models.Model):
    """One line of a run's log, with the figures known at that moment."""

    run = models.ForeignKey(TrainingRun, on_delete=models.CASCADE, related_name="lines")
    at = models.DateTimeField(auto_now_add=True)
    level = models.CharField(max_length=10, default="info")
    stage = models.CharField(max_length=30)
    message = models.TextField(blank=True)
    step = models.PositiveIntegerField(default=0)
    metrics = models.JSONField(default=dict)

    class Meta:
        """As written."""

        ordering = ("id",)

    def __str__(self) -> str:
        """Return the line."""
        return f"[{self.stage}] {self.message}"


class Night(models.Model):
    """Which day's nightly has been looked at for a model, so that none runs twice."""

    model = models.OneToOneField("registry.Model", on_delete=models.CASCADE, related_name="night")
    last_on = models.DateField()
    summary = models.TextField(blank=True)

    def __str__(self) -> str:
        """Return the model and the day."""
        return f"{self.model.slug} {self.last_on}"

"""Models, their labels, their versions and the compiled variants of those."""

from __future__ import annotations

import uuid
from typing import Any

from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q

SLUG = RegexValidator(
    r"\A[a-z0-9][a-z0-9_-]{0,62}\Z",
    "A model's name in addresses takes small letters, digits, - and _.",
)


class Model(models.Model):
    """A task with a fixed, ordered list of labels, and the policies of its nights."""

    slug = models.CharField(max_length=63, unique=True, validators=[SLUG])
    name = models.CharField(max_length=120)
    description = models.TextField(blank=True)
    training_policy = models.JSONField(default=dict, blank=True)
    delivery_policy = models.JSONField(default=dict, blank=True)
    is_open = models.BooleanField(
        default=False, help_text="Devices may fetch this model without an application key."
    )
    nightly_at = models.CharField(
        max_length=5, blank=True, help_text="HH:MM in UTC; empty takes NIGHTLY_AT of the server."
    )
    nightly_enabled = models.BooleanField(default=True)
    next_number = models.PositiveIntegerField(default=1, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    retired_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        """In the order of their names."""

        ordering = ("slug",)

    def __str__(self) -> str:
        """Return the slug."""
        return self.slug


class Label(models.Model):
    """One class of a model."""

    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="labels")
    name = models.CharField(max_length=80)
    position = models.PositiveSmallIntegerField()

    class Meta:
        """In the model's own order."""

        ordering = ("model", "position")
        constraints = (
            models.UniqueConstraint(fields=["model", "name"], name="label_once_per_model"),
            models.UniqueConstraint(fields=["model", "position"], name="label_position_once"),
        )

    def __str__(self) -> str:
        """Return the label's own name."""
        return self.name


class ModelVersion(models.Model):
    """Trained or uploaded weights with labels, metrics and lineage; immutable once published."""

    class State(models.TextChoices):
        """``draft`` becomes ``published`` or ``failed``; nothing leads back."""

        DRAFT = "draft"
        PUBLISHED = "published"
        FAILED = "failed"

    class Source(models.TextChoices):
        """Where the weights come from."""

        TRAINED = "trained"
        UPLOADED = "uploaded"

    model = models.ForeignKey(Model, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=State.choices, default=State.DRAFT)
    source = models.CharField(max_length=10, choices=Source.choices)
    architecture = models.CharField(max_length=80, blank=True)
    labels = models.JSONField(default=list)
    preprocessing = models.JSONField(default=dict)
    signature = models.JSONField(
        default=dict,
        blank=True,
        help_text="Of uploads: the task, and name, shape and type of every input and output.",
    )
    metrics = models.JSONField(default=dict)
    lineage = models.JSONField(default=dict)
    parent = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.SET_NULL, related_name="children"
    )
    source_sha256 = models.CharField(
        max_length=64, blank=True, help_text="The .keras or uploaded file."
    )
    source_filename = models.CharField(max_length=200, blank=True)
    weights_sha256 = models.CharField(max_length=64, blank=True)
    notes = models.TextField(blank=True)
    attestation = models.TextField(
        blank=True,
        editable=False,
        help_text="Evidence that a worker made exactly this, or a person confirmed it.",
    )
    failure = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    published_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        """Newest first."""

        ordering = ("model", "-number")
        constraints = (
            models.UniqueConstraint(fields=["model", "number"], name="version_number_once"),
            models.CheckConstraint(
                condition=~Q(state="published") | Q(published_at__isnull=False),
                name="published_version_has_date",
            ),
        )

    def __str__(self) -> str:
        """Return ``model/number``."""
        return f"{self.model.slug}/{self.number}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Refuse any change of what is published."""
        if self.pk and not self._state.adding:
            before = type(self).objects.filter(pk=self.pk).values("state").first()
            if before is not None and before["state"] == self.State.PUBLISHED:
                message = f"Version {self} is published and cannot be changed."
                raise PublishedVersionChanged(message)
        super().save(*args, **kwargs)


class PublishedVersionChanged(RuntimeError):
    """A programming error: code tried to change a published version."""


class Variant(models.Model):
    """One compiled file of a version: runtime × precision, with its own measured quality."""

    class Runtime(models.TextChoices):
        """What runs the file."""

        TFLITE = "tflite"
        COREML = "coreml"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="variants")
    runtime = models.CharField(max_length=10, choices=Runtime.choices)
    precision = models.CharField(max_length=20)
    sha256 = models.CharField(max_length=64, db_index=True, blank=True)
    size_bytes = models.PositiveBigIntegerField(default=0)
    media_type = models.CharField(max_length=80, blank=True)
    filename = models.CharField(max_length=200, blank=True)
    metrics = models.JSONField(default=dict)
    requires = models.JSONField(default=dict)
    checks = models.JSONField(default=list)
    selftest = models.JSONField(
        default=dict,
        blank=True,
        help_text="Pictures with the file's own answers, which devices compare before they use it.",
    )
    is_shipped = models.BooleanField(default=False)
    refusal = models.TextField(blank=True, help_text="Why this variant is not shipped.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """One of each kind per version."""

        ordering = ("version", "runtime", "precision")
        constraints = (
            models.UniqueConstraint(
                fields=["version", "runtime", "precision"], name="variant_once_per_version"
            ),
        )

    def __str__(self) -> str:
        """Return ``model/number runtime precision``."""
        return f"{self.version} {self.runtime} {self.precision}"

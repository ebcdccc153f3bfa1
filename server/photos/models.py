"""Volunteers, what they allowed, their photos, and the decisions on those."""

from __future__ import annotations

import uuid
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q

from server.photos.fingerprints import BANDS, split_hash

# Oldest first. Version 2 says that the make and model of the camera are kept.
CONSENT_VERSIONS = ("1", "2")
CONSENT_VERSION = CONSENT_VERSIONS[-1]
CONSENTS_TO_CAMERA = frozenset({"2"})


class Volunteer(models.Model):
    """A person who uploads photos, known by a token and a nickname of their choice."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="volunteer"
    )
    nickname = models.CharField(max_length=40)
    email = models.EmailField(blank=True)
    is_trusted = models.BooleanField(
        default=False,
        help_text="Photos are accepted without review where the model's policy says so.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """Newest first."""

        ordering = ("-created_at",)

    def __str__(self) -> str:
        """Return the nickname."""
        return self.nickname


class Consent(models.Model):
    """One thing a volunteer allowed, in the wording of one version, until withdrawn."""

    class Kind(models.TextChoices):
        """Each is given, and taken back, by itself."""

        TRAIN = "train", "photos may train models"
        SHOW = "show", "photos may be shown to others"
        NAME = "name", "the nickname may be shown to others"

    volunteer = models.ForeignKey(Volunteer, on_delete=models.CASCADE, related_name="consents")
    kind = models.CharField(max_length=8, choices=Kind.choices)
    version = models.CharField(max_length=20)
    given_at = models.DateTimeField(auto_now_add=True)
    withdrawn_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        """At most one of a kind is in force."""

        ordering = ("given_at",)
        constraints = (
            models.UniqueConstraint(
                fields=["volunteer", "kind"],
                condition=Q(withdrawn_at__isnull=True),
                name="one_consent_of_a_kind_in_force",
            ),
        )

    def __str__(self) -> str:
        """Return the kind and whether it holds."""
        return f"{self.kind} ({'withdrawn' if self.withdrawn_at else 'in force'})"


class Photo(models.Model):
    """One upload. Its pixels live in the blob store; what is here can be taken away again.

    A withdrawn photo keeps its row, so that snapshots can tell what they used, and keyed digests
    against being imported again; pixels, fingerprints and person are gone from it.
    """

    class State(models.TextChoices):
        """``pending`` is decided by staff; ``withdrawn`` is final."""

        PENDING = "pending"
        ACCEPTED = "accepted"
        REJECTED = "rejected"
        WITHDRAWN = "withdrawn"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    model = models.ForeignKey("registry.Model", on_delete=models.PROTECT, related_name="photos")
    label = models.ForeignKey("registry.Label", on_delete=models.PROTECT, related_name="photos")
    # Without a volunteer a photo counts as imported, so only an erasure may take theirs away.
    volunteer = models.ForeignKey(
        Volunteer, null=True, blank=True, on_delete=models.PROTECT, related_name="photos"
    )
    contributor = models.CharField(
        max_length=200,
        blank=True,
        help_text="Who took it, for splits by person: photos of one contributor stay together.",
    )
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    blob_sha256 = models.CharField(max_length=64, blank=True, db_index=True)
    width = models.PositiveIntegerField(default=0)
    height = models.PositiveIntegerField(default=0)
    size_bytes = models.PositiveIntegerField(default=0)
    camera = models.CharField(
        max_length=81,
        blank=True,
        help_text="Make and model, where the file said them and the consent covers it.",
    )
    source_digest = models.CharField(
        max_length=64, db_index=True, help_text="Keyed digest of the file as it was sent."
    )
    blob_digest = models.CharField(
        max_length=64, db_index=True, help_text="Keyed digest of the file as it was stored."
    )
    dhash = models.CharField(max_length=16, blank=True)
    band_0 = models.PositiveIntegerField(null=True, editable=False)
    band_1 = models.PositiveIntegerField(null=True, editable=False)
    band_2 = models.PositiveIntegerField(null=True, editable=False)
    band_3 = models.PositiveIntegerField(null=True, editable=False)
    thumb = models.BinaryField(max_length=256, default=bytes)
    resembles = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text="Somebody else's photo that looks the same.",
    )
    quality = models.JSONField(default=dict, blank=True)
    notes = models.JSONField(default=list, blank=True)
    rejection_code = models.CharField(max_length=40, blank=True)
    rejection_reason = models.CharField(max_length=300, blank=True)
    idempotency_key = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    decided_at = models.DateTimeField(null=True, blank=True)
    decided_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    withdrawn_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        """Newest first; the same file once per person and model."""

        ordering = ("-created_at",)
        indexes = (
            models.Index(fields=["model", "state", "label"], name="photo_by_label"),
            *(
                models.Index(fields=["model", f"band_{band}"], name=f"photo_band_{band}")
                for band in range(BANDS)
            ),
        )
        constraints = (
            models.UniqueConstraint(
                fields=["volunteer", "model", "source_digest"],
                condition=Q(volunteer__isnull=False) & ~Q(state="withdrawn"),
                name="photo_once_per_volunteer_and_model",
            ),
            models.UniqueConstraint(
                fields=["volunteer", "idempotency_key"],
                condition=Q(volunteer__isnull=False) & ~Q(idempotency_key=""),
                name="idempotency_key_once_per_volunteer",
            ),
            models.CheckConstraint(
                condition=~Q(state="withdrawn") | Q(blob_sha256="", dhash=""),
                name="withdrawn_photo_has_no_pixels",
            ),
        )

    def __str__(self) -> str:
        """Return the label and the first digits of the id."""
        return f"{self.label.name} {str(self.pk)[:8]}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Keep the searchable parts of the hash in step with it."""
        self.band_0, self.band_1, self.band_2, self.band_3 = (
            split_hash(self.dhash) if self.dhash else (None,) * BANDS
        )
        super().save(*args, **kwargs)


class Review(models.Model):
    """A decision on a photo, by staff or by a rule (no reviewer)."""

    class Decision(models.TextChoices):
        """What was decided."""

        ACCEPT = "accept"
        REJECT = "reject"

    photo = models.ForeignKey(Photo, on_delete=models.CASCADE, related_name="reviews")
    reviewer = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    decision = models.CharField(max_length=8, choices=Decision.choices)
    reason = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """Newest first."""

        ordering = ("-created_at", "-pk")

    def __str__(self) -> str:
        """Return the decision."""
        return f"{self.decision} {self.photo_id}"


class PhotoEmbedding(models.Model):
    """What a worker computed from a photo, once: deleted with the photo.

    Features under one backbone, or, with ``VIEWS_PREFIX``, a picture of its augmented views.
    """

    VIEWS_PREFIX = "views-"

    photo = models.ForeignKey(Photo, on_delete=models.CASCADE, related_name="embeddings")
    key = models.CharField(max_length=200, help_text="Backbone, weights and preprocessing.")
    blob_sha256 = models.CharField(max_length=64, db_index=True)
    size_bytes = models.PositiveIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """Once per backbone."""

        constraints = (
            models.UniqueConstraint(fields=["photo", "key"], name="embedding_once_per_key"),
        )

    def __str__(self) -> str:
        """Return the key."""
        return self.key


class ForgottenBlob(models.Model):
    """A blob of a withdrawn photo that is still to be deleted: kept until the store has done it."""

    sha256 = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        """Return the hash."""
        return self.sha256


class Challenge(models.Model):
    """What volunteers are asked to photograph for a model on one day."""

    model = models.ForeignKey("registry.Model", on_delete=models.CASCADE, related_name="challenges")
    label = models.ForeignKey("registry.Label", on_delete=models.CASCADE, related_name="challenges")
    text = models.CharField(
        max_length=300, help_text="For example: a bottle half hidden on a shelf."
    )
    why = models.CharField(max_length=300, blank=True)
    date = models.DateField()

    class Meta:
        """One per model and day."""

        ordering = ("-date",)
        constraints = (
            models.UniqueConstraint(fields=["model", "date"], name="challenge_once_per_day"),
        )

    def __str__(self) -> str:
        """Return the day and the wish."""
        return f"{self.date}: {self.text}"

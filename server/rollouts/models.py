"""Channels and releases: which version devices should run, and what is signed of it."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from server.registry.models import SLUG


class Channel(models.Model):
    """A named stream of releases of one model."""

    model = models.ForeignKey("registry.Model", on_delete=models.CASCADE, related_name="channels")
    name = models.CharField(max_length=63, validators=[SLUG])
    next_label = models.PositiveIntegerField(default=1, editable=False)
    # Set while the signed policy sends the channel's devices back to the model in their app.
    embedded_at = models.DateTimeField(null=True, blank=True, editable=False)

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
    """A version put on a channel. Labels only grow; a row is only announced and withdrawn.

    ``counter`` grows with every release of the model over all its channels: devices refuse what
    is older than what they have seen. Devices are offered a release once it is ``announced_at``,
    when signed metadata that list it were read back.
    """

    class Kind(models.TextChoices):
        """Why the release was made."""

        UPDATE = "update"
        ROLLBACK = "rollback"

    class State(models.TextChoices):
        """Where a release stands."""

        SIGNING = "signing"
        ANNOUNCED = "announced"
        PASSED_OVER = "passed over"
        KILLED = "killed"

    channel = models.ForeignKey(Channel, on_delete=models.CASCADE, related_name="releases")
    label_number = models.PositiveIntegerField()
    counter = models.PositiveBigIntegerField()
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
    announced_at = models.DateTimeField(null=True, blank=True)
    killed_at = models.DateTimeField(null=True, blank=True)
    killed_reason = models.TextField(blank=True)

    class Meta:
        """Newest first; a label once per channel."""

        ordering = ("channel", "-label_number")
        constraints = (
            models.UniqueConstraint(
                fields=["channel", "label_number"], name="label_once_per_channel"
            ),
            models.UniqueConstraint(fields=["channel", "counter"], name="counter_once_per_channel"),
        )

    def __str__(self) -> str:
        """Return ``model/channel v3``."""
        return f"{self.channel} {self.label}"

    @property
    def label(self) -> str:
        """Return the label as devices know it, such as ``v3``."""
        return f"v{self.label_number}"

    @property
    def state(self) -> State:
        """Return where it stands; one that a newer came before it was announced never will be."""
        if self.killed_at is not None:
            return self.State.KILLED
        if self.announced_at is not None:
            return self.State.ANNOUNCED
        is_newest = self.label_number + 1 == self.channel.next_label
        return self.State.SIGNING if is_newest else self.State.PASSED_OVER


class Recall(models.Model):
    """A version that no device may run any more, on whichever channel it came."""

    version = models.OneToOneField(
        "registry.ModelVersion", on_delete=models.PROTECT, related_name="recall"
    )
    reason = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    def __str__(self) -> str:
        """Return ``recall of model/number``."""
        return f"recall of {self.version}"


class Patch(models.Model):
    """Bytes that turn one variant's file into another's, and whether they are worth offering."""

    class State(models.TextChoices):
        """What came of building it."""

        OFFERED = "offered"
        REFUSED = "refused"

    from_variant = models.ForeignKey(
        "registry.Variant", on_delete=models.CASCADE, related_name="patches_from"
    )
    to_variant = models.ForeignKey(
        "registry.Variant", on_delete=models.CASCADE, related_name="patches_to"
    )
    algorithm = models.CharField(max_length=20)
    state = models.CharField(max_length=10, choices=State.choices)
    sha256 = models.CharField(max_length=64, blank=True)
    size_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    refusal = models.TextField(blank=True, help_text="Why devices are not offered it.")
    created_at = models.DateTimeField(auto_now_add=True)
    announced_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        """One per pair and algorithm."""

        ordering = ("to_variant", "-created_at")
        verbose_name_plural = "patches"
        constraints = (
            models.UniqueConstraint(
                fields=["from_variant", "to_variant", "algorithm"], name="patch_once_per_pair"
            ),
        )

    def __str__(self) -> str:
        """Return which file becomes which."""
        return f"{self.from_variant} → {self.to_variant}"

    @property
    def share(self) -> float | None:
        """Return the patch's size as a fraction of the file it makes; None where none was made."""
        if self.size_bytes is None or not self.to_variant.size_bytes:
            return None
        return self.size_bytes / self.to_variant.size_bytes


class Signing(models.Model):
    """One row per model: what is to be signed of it, and what was.

    ``wanted`` grows with every change that signed metadata have to state, ``signed`` is the
    number they state. Whoever changes releases holds the row, so that a model's changes come one
    after the other. After a release was announced, what it replaced stays listed until
    ``settle_at``, for devices that were told of it a moment before.
    """

    model = models.OneToOneField(
        "registry.Model", on_delete=models.CASCADE, related_name="signing", primary_key=True
    )
    next_counter = models.PositiveBigIntegerField(default=1)
    wanted = models.PositiveBigIntegerField(default=0)
    wanted_at = models.DateTimeField(null=True, blank=True)
    signed = models.PositiveBigIntegerField(default=0)
    signed_at = models.DateTimeField(null=True, blank=True)
    settle_at = models.DateTimeField(null=True, blank=True)
    failure = models.TextField(blank=True)
    failed_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        """Return ``model: signed/wanted``."""
        return f"{self.model.slug}: {self.signed}/{self.wanted}"


class DecisionEpoch(models.Model):
    """One row whose number grows with every change that devices may see.

    Web processes compare it with the number of the decision set they hold.
    """

    number = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        """Return the number."""
        return str(self.number)

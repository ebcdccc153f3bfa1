"""Channels, releases and rollouts: which version devices should run, and what is signed of it."""

from __future__ import annotations

import secrets
import uuid
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from server.domain.rollout_policy import RolloutPolicy
from server.domain.stages import (
    FINAL_STATES,
    OPEN_STATES,
    Progress,
    Verb,
    allowed_verbs,
    coverage_bp,
    deadline_at,
)
from server.registry.models import SLUG


class Channel(models.Model):
    """A named stream of releases of one model."""

    model = models.ForeignKey("registry.Model", on_delete=models.CASCADE, related_name="channels")
    name = models.CharField(max_length=63, validators=[SLUG])
    next_label = models.PositiveIntegerField(default=1, editable=False)
    # Set while the signed policy sends the channel's devices back to the model in their app.
    embedded_at = models.DateTimeField(null=True, blank=True, editable=False)
    # A share of the installations stays on it, so that many small losses can be seen.
    golden = models.ForeignKey(
        "Release", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

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
        WITHDRAWN = "withdrawn"
        KILLED = "killed"

    class Audience(models.TextChoices):
        """Who may be given it: all, the treatment arm of a rollout, or installations by name."""

        EVERYONE = "everyone"
        ROLLOUT = "rollout"
        PINNED = "pinned"

    channel = models.ForeignKey(Channel, on_delete=models.CASCADE, related_name="releases")
    label_number = models.PositiveIntegerField()
    counter = models.PositiveBigIntegerField()
    version = models.ForeignKey(
        "registry.ModelVersion", on_delete=models.PROTECT, related_name="releases"
    )
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.UPDATE)
    audience = models.CharField(max_length=10, choices=Audience.choices, default=Audience.EVERYONE)
    reason = models.TextField(blank=True)
    notes = models.TextField(blank=True)
    is_mandatory = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    announced_at = models.DateTimeField(null=True, blank=True)
    withdrawn_at = models.DateTimeField(
        null=True, blank=True, help_text="Given to nobody any more, and yet not revoked."
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
        if self.withdrawn_at is not None:
            return self.State.WITHDRAWN
        if self.announced_at is not None:
            return self.State.ANNOUNCED
        is_newest = self.label_number + 1 == self.channel.next_label
        is_wanted = is_newest or self.audience != self.Audience.EVERYONE
        return self.State.SIGNING if is_wanted else self.State.PASSED_OVER

    @property
    def is_living(self) -> bool:
        """Say whether it was neither killed nor withdrawn."""
        return self.killed_at is None and self.withdrawn_at is None


class ImmutableRowChanged(RuntimeError):
    """A programming error: code tried to change what is only ever added."""


def _nonce() -> str:
    return secrets.token_hex(8)


class Rollout(models.Model):
    """A candidate on its way to everyone on a channel, compared with the incumbent.

    The nonce, the candidate and the incumbent never change; the policy is frozen at the start.
    ``revision`` grows with every change and every look, and who changes a row says which one it
    has seen. ``stages_entered`` are the times at which its stages began.
    """

    class State(models.TextChoices):
        """Where a rollout stands; the verbs between them are the domain's."""

        DRAFT = "draft", "draft"
        QUEUED = "queued", "queued"
        RUNNING = "running", "running"
        PAUSED = "paused", "paused"
        ROLLED_BACK = "rolled_back", "rolled back"
        PROMOTED = "promoted", "promoted"
        EXPIRED = "expired", "expired"
        SUPERSEDED = "superseded", "superseded"

    channel = models.ForeignKey(Channel, on_delete=models.CASCADE, related_name="rollouts")
    version = models.ForeignKey(
        "registry.ModelVersion", on_delete=models.PROTECT, related_name="rollouts"
    )
    candidate = models.OneToOneField(
        Release, null=True, blank=True, on_delete=models.PROTECT, related_name="rollout"
    )
    incumbent = models.ForeignKey(
        Release, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    nonce = models.CharField(max_length=32, default=_nonce, editable=False)
    policy = models.JSONField(default=dict)
    has_own_stages = models.BooleanField(
        default=False, help_text="Its stages were asked for as they are, whatever the fleet."
    )
    targeting = models.JSONField(default=list, blank=True)
    allow_list = models.JSONField(
        default=list, blank=True, help_text="Installations that get the candidate, not analysed."
    )
    state = models.CharField(max_length=12, default=State.DRAFT, choices=State.choices)
    stage = models.PositiveSmallIntegerField(default=0)
    stages_entered = models.JSONField(default=list)
    revision = models.PositiveIntegerField(default=0)
    reason = models.TextField(blank=True)
    notes = models.TextField(blank=True)
    outcome = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    started_at = models.DateTimeField(null=True, blank=True)
    stage_started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        """One under way and one waiting per channel."""

        ordering = ("-pk",)
        constraints = (
            models.UniqueConstraint(
                fields=["channel"], condition=Q(state__in=OPEN_STATES), name="one_open_rollout"
            ),
            models.UniqueConstraint(
                fields=["channel"], condition=Q(state="queued"), name="one_queued_rollout"
            ),
            models.CheckConstraint(
                condition=~Q(state__in=OPEN_STATES)
                | Q(candidate__isnull=False, started_at__isnull=False),
                name="open_rollout_has_candidate",
            ),
        )

    def __str__(self) -> str:
        """Return ``rollout 7 of model/channel``."""
        return f"rollout {self.pk} of {self.channel}"

    @property
    def key(self) -> str:
        """Return the name by which devices echo it."""
        return str(self.pk)

    @property
    def progress(self) -> Progress:
        """Return where it stands."""
        return Progress(self.state, self.stage, self.started_at, self.stage_started_at)  # type: ignore[arg-type]

    @property
    def rules(self) -> RolloutPolicy:
        """Return its policy."""
        return RolloutPolicy.read(self.policy)

    @property
    def coverage_bp(self) -> int:
        """Return the treatment arm's basis points; control has as many."""
        return coverage_bp(self.progress, self.rules)

    @property
    def deadline_at(self) -> datetime | None:
        """Return when it is decided at the latest."""
        return deadline_at(self.progress, self.rules)

    @property
    def is_open(self) -> bool:
        """Say whether it runs or is paused."""
        return self.state in OPEN_STATES

    @property
    def is_finished(self) -> bool:
        """Say whether its state is final."""
        return self.state in FINAL_STATES

    @property
    def verbs(self) -> tuple[Verb, ...]:
        """Return what may be done with it."""
        return allowed_verbs(self.state)  # type: ignore[arg-type]


class Approval(models.Model):
    """One person's word that a rollout may start."""

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="approvals")
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """Once per person."""

        constraints = (
            models.UniqueConstraint(fields=["rollout", "by"], name="approval_once_per_person"),
        )

    def __str__(self) -> str:
        """Return who approved of what."""
        return f"{self.by} approves {self.rollout}"


class RolloutDecision(models.Model):
    """One look at a rollout, or one verb of a person: what was known, and what was done.

    Rows are only ever added. ``number`` is the rollout's revision that it made.
    """

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="decisions")
    number = models.PositiveIntegerField()
    at = models.DateTimeField()
    verb = models.CharField(
        max_length=12, blank=True, help_text="Empty: the rollout stayed as it was."
    )
    rule = models.CharField(max_length=20, blank=True)
    sentence = models.TextField(blank=True)
    state_before = models.CharField(max_length=12)
    state_after = models.CharField(max_length=12)
    stage_before = models.PositiveSmallIntegerField(default=0)
    stage_after = models.PositiveSmallIntegerField(default=0)
    evidence = models.JSONField(default=dict, help_text="Everything the verdict was made from.")
    verdict = models.JSONField(default=dict)
    policy = models.JSONField(default=dict)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        """Newest first; a revision once."""

        ordering = ("rollout", "-number")
        constraints = (models.UniqueConstraint(fields=["rollout", "number"], name="decision_once"),)

    def __str__(self) -> str:
        """Return what was done."""
        return f"{self.rollout} {self.number}: {self.verb or 'no change'}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to change what was decided."""
        if not self._state.adding:
            message = f"Decision {self} is kept as it is."
            raise ImmutableRowChanged(message)
        super().save(*args, **kwargs)


class Override(models.Model):
    """An installation that gets one release, whatever the others get; it is never analysed."""

    channel = models.ForeignKey(Channel, on_delete=models.CASCADE, related_name="overrides")
    device = models.CharField(max_length=128)
    release = models.ForeignKey(Release, on_delete=models.CASCADE, related_name="overrides")
    rollout = models.ForeignKey(
        Rollout, null=True, blank=True, on_delete=models.CASCADE, related_name="overrides"
    )
    reason = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        """One release per installation."""

        ordering = ("channel", "device")
        constraints = (models.UniqueConstraint(fields=["channel", "device"], name="override_once"),)

    def __str__(self) -> str:
        """Return the device and its release."""
        return f"{self.device} gets {self.release}"


class Webhook(models.Model):
    """An address that is told of every change of a rollout's state, signed with the secret."""

    model = models.ForeignKey(
        "registry.Model", null=True, blank=True, on_delete=models.CASCADE, related_name="webhooks",
        help_text="Empty: every model.",
    )  # fmt: skip
    channel = models.CharField(max_length=63, blank=True, help_text="Empty: every channel.")
    url = models.URLField(max_length=500)
    secret = models.CharField(max_length=200)
    is_enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """By address."""

        ordering = ("url",)

    def __str__(self) -> str:
        """Return the address."""
        return self.url


class WebhookCall(models.Model):
    """One message to one address, until it arrived or was given up."""

    class State(models.TextChoices):
        """Where it stands."""

        WAITING = "waiting"
        DELIVERED = "delivered"
        GIVEN_UP = "given up"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    webhook = models.ForeignKey(Webhook, on_delete=models.CASCADE, related_name="calls")
    payload = models.JSONField()
    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_at = models.DateTimeField()
    failure = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    delivered_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        """Newest first; what waits is found without looking at the rest."""

        ordering = ("-created_at",)
        indexes = (
            models.Index(fields=["next_at"], name="webhook_waiting", condition=Q(state="waiting")),
        )

    def __str__(self) -> str:
        """Return where it goes."""
        return f"{self.webhook} {self.state}"


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
    # The files that the signed policy revokes; a kill is in force on devices once it is here.
    revoked = models.JSONField(default=list, blank=True, editable=False)
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

"""Every write to models, versions and variants."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from server.domain.errors import Conflict, InvalidInput
from server.domain.policy import TrainingPolicy
from server.http import audit
from server.registry.models import SLUG, Label, Model, ModelVersion, Variant

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

    Actor = AbstractBaseUser | AnonymousUser | None

MAX_LABELS = 1001
_CLOCK = re.compile(r"([01]\d|2[0-3]):[0-5]\d").fullmatch


def create_model(
    *,
    slug: str,
    labels: Sequence[str],
    name: str = "",
    description: str = "",
    training_policy: dict[str, Any] | None = None,
    is_open: bool = False,
    actor: Actor = None,
) -> Model:
    """Make a model with its ordered labels; one without any takes uploads only.

    Raises:
        InvalidInput: ``invalid_slug``, ``invalid_labels`` or ``invalid_policy``.
        Conflict: ``model_exists``.

    """
    try:
        SLUG(slug)
    except ValidationError as error:
        raise InvalidInput(str(error.messages[0]), code="invalid_slug") from error
    names = check_labels(labels) if labels else []
    TrainingPolicy.read(training_policy or {})
    try:
        with transaction.atomic():
            model = Model.objects.create(
                slug=slug,
                name=name or slug,
                description=description,
                training_policy=training_policy or {},
                is_open=is_open,
            )
            Label.objects.bulk_create(
                Label(model=model, name=label, position=position)
                for position, label in enumerate(names)
            )
            audit.record(actor=actor, action="model.create", subject=slug, detail={"labels": names})
    except IntegrityError as error:
        message = f"There is a model called {slug!r} already."
        raise Conflict(message, code="model_exists") from error
    return model


def check_labels(labels: Sequence[str]) -> list[str]:
    """Return the labels without surrounding blanks; raises ``InvalidInput``: ``invalid_labels``."""
    names = [label.strip() for label in labels]
    if not 1 <= len(names) <= MAX_LABELS:
        message = f"A model takes 1 to {MAX_LABELS} labels, not {len(names)}."
        raise InvalidInput(message, code="invalid_labels")
    if any(not name or len(name) > 80 or not name.isprintable() for name in names):  # noqa: PLR2004
        message = "A label is 1 to 80 printable characters."
        raise InvalidInput(message, code="invalid_labels")
    if len(set(names)) != len(names):
        message = "Each label may stand in the list once."
        raise InvalidInput(message, code="invalid_labels")
    return names


@transaction.atomic
def set_training_policy(*, model: Model, policy: dict[str, Any], actor: Actor) -> None:
    """Replace the model's training policy by a checked one."""
    TrainingPolicy.read(policy)
    model.training_policy = policy
    model.save(update_fields=["training_policy"])
    audit.record(actor=actor, action="model.set_policy", subject=model, detail=policy)


@transaction.atomic
def change_model(
    *,
    model: Model,
    training_policy: Mapping[str, Any] | None = None,
    is_retired: bool | None = None,
    actor: Actor,
    **values: Any,
) -> Model:
    """Change what is given; a member of the policy that is None takes its default again.

    ``values`` are ``name``, ``description``, ``is_open``, ``nightly_at``, ``nightly_enabled``.

    Raises:
        InvalidInput: ``invalid_policy`` or ``invalid_nightly_at``.
        Conflict: ``model_retired``: a retired model does not come back.

    """
    model = Model.objects.select_for_update().get(pk=model.pk)
    if is_retired is False and model.retired_at is not None:
        message = f"{model.slug} is retired for good; make a new model instead."
        raise Conflict(message, code="model_retired")
    if not _CLOCK(values.get("nightly_at") or "00:00"):
        message = "nightly_at takes a time of day such as 02:30, or nothing for the server's own."
        raise InvalidInput(message, code="invalid_nightly_at")
    if training_policy is not None:
        merged = {**model.training_policy, **training_policy}
        policy = {name: value for name, value in merged.items() if value is not None}
        if policy != model.training_policy:
            set_training_policy(model=model, policy=policy, actor=actor)
    changed = {name: value for name, value in values.items() if getattr(model, name) != value}
    if changed:
        for name, value in changed.items():
            setattr(model, name, value)
        model.save(update_fields=list(changed))
        audit.record(actor=actor, action="model.change", subject=model, detail=changed)
    if is_retired and model.retired_at is None:
        retire_model(model=model, actor=actor)
    return model


@transaction.atomic
def retire_model(*, model: Model, actor: Actor) -> None:
    """Take a model out of service: devices are told 410 and keep what they have."""
    model.retired_at = model.retired_at or timezone.now()
    model.save(update_fields=["retired_at"])
    audit.record(actor=actor, action="model.retire", subject=model)


@transaction.atomic
def draft_version(
    *,
    model: Model,
    source: ModelVersion.Source,
    labels: Sequence[str],
    lineage: dict[str, Any],
    architecture: str = "",
    preprocessing: dict[str, Any] | None = None,
    signature: dict[str, Any] | None = None,
    parent: ModelVersion | None = None,
    source_sha256: str = "",
    source_filename: str = "",
    notes: str = "",
) -> ModelVersion:
    """Reserve the model's next number, which is never given again, for a version in the making."""
    locked = Model.objects.select_for_update().get(pk=model.pk)
    version = ModelVersion.objects.create(
        model=locked,
        number=locked.next_number,
        source=source,
        labels=list(labels),
        lineage=lineage,
        architecture=architecture,
        preprocessing=preprocessing or {},
        signature=signature or {},
        parent=parent,
        source_sha256=source_sha256,
        source_filename=source_filename,
        notes=notes,
    )
    locked.next_number += 1
    locked.save(update_fields=["next_number"])
    return version


@transaction.atomic
def add_variant(*, version: ModelVersion, **values: Any) -> Variant:
    """Record a compiled file of a draft; compiling again replaces the row, unless published."""
    _require_draft(version)
    runtime, precision = values.pop("runtime"), values.pop("precision")
    variant, _ = Variant.objects.update_or_create(
        version=version, runtime=runtime, precision=precision, defaults=values
    )
    return variant


@transaction.atomic
def publish_version(
    *, version: ModelVersion, metrics: dict[str, Any], actor: Actor = None, **values: Any
) -> ModelVersion:
    """Make a draft immutable, with its metrics and whatever fields were still open."""
    _require_draft(version)
    for name, value in values.items():
        setattr(version, name, value)
    version.metrics = metrics
    version.state = ModelVersion.State.PUBLISHED
    version.published_at = timezone.now()
    version.save()
    audit.record(actor=actor, action="version.publish", subject=version)
    return version


@transaction.atomic
def attest_version(*, version: ModelVersion, attestation: str, actor: Actor = None) -> None:
    """Keep a person's attestation; nothing else of a published version ever changes."""
    if version.state != ModelVersion.State.PUBLISHED:
        message = f"Version {version} is {version.state}; only a published version is attested."
        raise Conflict(message, code="version_not_published")
    ModelVersion.objects.filter(pk=version.pk).update(attestation=attestation)
    audit.record(actor=actor, action="version.attest", subject=version)


@transaction.atomic
def fail_version(*, version: ModelVersion, reason: str) -> None:
    """Close a draft that will not be published; its number stays used."""
    _require_draft(version)
    version.state = ModelVersion.State.FAILED
    version.failure = reason
    version.save(update_fields=["state", "failure"])


def _require_draft(version: ModelVersion) -> None:
    state = (
        ModelVersion.objects.select_for_update().values_list("state", flat=True).get(pk=version.pk)
    )
    if state != ModelVersion.State.DRAFT:
        message = f"Version {version} is {state}; only a draft can change."
        raise Conflict(message, code="version_not_draft")

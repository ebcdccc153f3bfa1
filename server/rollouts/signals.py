"""What changes for devices without a release: a model is open, retired or new; a new repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db.models.signals import post_save
from django.dispatch import receiver

from server.http import audit
from server.registry.models import Model
from server.rollouts import actions, releasing
from server.rollouts.models import Signing
from server.trust.signals import refounded

if TYPE_CHECKING:
    from collections.abc import Collection

_SEEN_BY_DEVICES = frozenset({"delivery_policy", "is_open", "retired_at", "slug"})


@receiver(post_save, sender=Model, dispatch_uid="rollouts.touch_decisions")
def touch_decisions(
    sender: object,  # noqa: ARG001
    update_fields: Collection[str] | None = None,
    **_: object,
) -> None:
    """Have the web processes load again when a change may concern devices."""
    if update_fields is None or _SEEN_BY_DEVICES & set(update_fields):
        actions.touch_decisions()


@receiver(post_save, sender=Model, dispatch_uid="rollouts.unlist_retired")
def unlist_retired(
    sender: object,  # noqa: ARG001
    instance: Model,
    update_fields: Collection[str] | None = None,
    **_: object,
) -> None:
    """Have a retired model's role list its policy only, where it ever listed anything."""
    if instance.retired_at is not None and "retired_at" in (update_fields or ()):
        _sign_again(instance)


@receiver(refounded, dispatch_uid="rollouts.follow_new_repository")
def follow_new_repository(sender: object, old_root: str, new_root: str, **_: object) -> None:  # noqa: ARG001
    """Write down that apps need another root, and compare every model with what is signed now."""
    audit.record(
        actor=None,
        action="trust.refound",
        subject="repository",
        detail={"old_root_sha256": old_root, "new_root_sha256": new_root},
    )
    for signing in Signing.objects.select_related("model"):
        _sign_again(signing.model)


def _sign_again(model: Model) -> None:
    if Signing.objects.filter(pk=model.pk).exists():
        releasing.want_signature(model)
        actions.request_publication(model=model)

"""What devices may see of a model changes without a release: open, retired, or new."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db.models.signals import post_save
from django.dispatch import receiver

from server.registry.models import Model
from server.rollouts import actions

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

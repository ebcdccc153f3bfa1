"""Writes of the devices' side: application keys."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING

from django.db import transaction
from django.utils import timezone

from server.delivery.models import ApplicationKey
from server.http import audit
from server.rollouts import actions as rollouts

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

    from server.registry.models import Model

    Actor = AbstractBaseUser | AnonymousUser | None


@transaction.atomic
def create_application_key(
    *, name: str, models: Iterable[Model] = (), actor: Actor = None
) -> tuple[ApplicationKey, str]:
    """Make a key and return it with its text, which is shown this once and stored nowhere."""
    text = f"nfk_{secrets.token_urlsafe(24)}"
    key = ApplicationKey.objects.create(
        name=name, digest=hashlib.sha256(text.encode()).hexdigest(), hint=text[:8]
    )
    key.covers.set(models)
    audit.record(actor=actor, action="application_key.create", subject=key)
    rollouts.touch_decisions()
    return key, text


@transaction.atomic
def revoke_application_key(*, key: ApplicationKey, actor: Actor) -> None:
    """Close a key; web processes refuse it within seconds."""
    key.revoked_at = key.revoked_at or timezone.now()
    key.save(update_fields=["revoked_at"])
    audit.record(actor=actor, action="application_key.revoke", subject=key)
    rollouts.touch_decisions()

"""Writing the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.http.models import AuditEntry

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

SYSTEM = "system"


def record(
    *,
    actor: AbstractBaseUser | AnonymousUser | None,
    action: str,
    subject: object,
    detail: dict[str, Any] | None = None,
) -> AuditEntry:
    """Add one row; ``actor`` is None where no person acted (a job, the schedule)."""
    known = actor if actor is not None and actor.is_authenticated else None
    return AuditEntry.objects.create(
        actor_id=known.pk if known is not None else None,
        actor_name=known.get_username() if known is not None else SYSTEM,
        action=action,
        subject=str(subject)[:200],
        detail=detail or {},
    )

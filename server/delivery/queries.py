"""Reads of application keys."""

from __future__ import annotations

from server.delivery.models import ApplicationKey
from server.domain.errors import NotFound


def get_key(key_id: int) -> ApplicationKey:
    """Return a key.

    Raises:
        NotFound: ``unknown_key``.

    """
    try:
        return ApplicationKey.objects.get(pk=key_id)
    except ApplicationKey.DoesNotExist as error:
        message = "There is no application key of that id."
        raise NotFound(message, code="unknown_key") from error

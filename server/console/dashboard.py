"""The home page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.console.queries import overview

if TYPE_CHECKING:
    from django.http import HttpRequest


def add_overview(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add what the home page says to the admin index's context, for those who may see it."""
    if request.user.has_perm("registry.view_model"):
        context.update(overview())
        context["may_see"] = True
    return context

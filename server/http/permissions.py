"""What a caller may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rest_framework.permissions import BasePermission

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView


class IsStaff(BasePermission):
    """Operators."""

    message = "This needs a staff token or session."

    def has_permission(self, request: Request, view: APIView) -> bool:  # noqa: ARG002
        """Allow active staff."""
        return bool(request.user and request.user.is_authenticated and request.user.is_staff)


class IsVolunteer(BasePermission):
    """People who upload photos."""

    message = "This needs a volunteer's token."

    def has_permission(self, request: Request, view: APIView) -> bool:  # noqa: ARG002
        """Allow users that a volunteer stands behind."""
        return bool(
            request.user and request.user.is_authenticated and hasattr(request.user, "volunteer")
        )

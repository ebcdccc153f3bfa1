"""What a caller may do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rest_framework.permissions import SAFE_METHODS, BasePermission

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView


# What changes something through an app's calls; the admin asks for the same.
NEEDED: Final = {
    "delivery": "delivery.add_applicationkey",
    "photos": "photos.change_volunteer",
    "registry": "registry.change_model",
    "rollouts": "rollouts.add_release",
    "training": "training.add_trainingrun",
}


class IsStaff(BasePermission):
    """Operators: all may look, and who may change something in the admin may do so here."""

    message = "This needs a staff token or session, of somebody who has the right to it."

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Allow active staff; to change something, those who have the app's permission."""
        user = request.user
        if not (user and user.is_authenticated and user.is_staff):
            return False
        if request.method in SAFE_METHODS:
            return True
        app = type(view).__module__.split(".")[1]
        return app not in NEEDED or user.has_perm(NEEDED[app])


class IsVolunteer(BasePermission):
    """People who upload photos."""

    message = "This needs a volunteer's token."

    def has_permission(self, request: Request, view: APIView) -> bool:  # noqa: ARG002
        """Allow users that a volunteer stands behind."""
        return bool(
            request.user and request.user.is_authenticated and hasattr(request.user, "volunteer")
        )

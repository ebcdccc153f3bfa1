"""Who is calling: bearer tokens for volunteers and staff, sessions for staff in a browser.

Devices authenticate by application key, in ``server.delivery``: their calls touch no database.
"""

from __future__ import annotations

from typing import Any

from knox.auth import TokenAuthentication
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request


class BearerAuthentication(TokenAuthentication):
    """``Authorization: Bearer <token>``; only a digest of the token is stored."""

    def authenticate(self, request: Request) -> Any:
        """Return user and token; bytes that are no text are no token."""
        try:
            return super().authenticate(request)
        except UnicodeError as error:
            raise AuthenticationFailed("Invalid token.") from error


class StaffSessionAuthentication(SessionAuthentication):
    """The admin's own session, CSRF-checked."""

"""Who is calling: bearer tokens for volunteers and staff, sessions for staff in a browser.

Devices authenticate by application key, in ``server.delivery``: their calls touch no database.
"""

from __future__ import annotations

from knox.auth import TokenAuthentication
from rest_framework.authentication import SessionAuthentication


class BearerAuthentication(TokenAuthentication):
    """``Authorization: Bearer <token>``; only a digest of the token is stored."""


class StaffSessionAuthentication(SessionAuthentication):
    """The admin's own session, CSRF-checked."""

"""Writes of the operators' own access: tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from django.contrib.auth import authenticate
from django.db import transaction
from knox.models import AuthToken

from server.domain.errors import PermissionDenied, RateLimited, Unauthenticated
from server.http import audit

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.http import HttpRequest

TOKEN_DAYS = 30


def sign_in(
    *, request: HttpRequest, username: str, password: str, days: int = TOKEN_DAYS
) -> tuple[AuthToken, str]:
    """Return a new token for the member of staff that name and password prove, and its text.

    Raises:
        Unauthenticated: ``wrong_credentials``.
        PermissionDenied: ``not_staff``.
        RateLimited: ``locked_out``: too many wrong passwords for this name from this address.

    """
    user = authenticate(request, username=username, password=password)
    if user is None:
        if getattr(request, "axes_locked_out", False):
            # Its middleware would answer with a page; programs get a problem.
            request.axes_locked_out = False  # type: ignore[attr-defined]
            message = "Too many wrong passwords for this name; wait a quarter of an hour."
            raise RateLimited(message, code="locked_out", retry_after_s=900)
        message = "No active member of staff has this name and password."
        raise Unauthenticated(message, code="wrong_credentials")
    if not user.is_staff:
        message = "This account is not one of the staff's."
        raise PermissionDenied(message, code="not_staff")
    return create_staff_token(user=user, days=days)


@transaction.atomic
def create_staff_token(*, user: AbstractBaseUser, days: int = TOKEN_DAYS) -> tuple[AuthToken, str]:
    """Make a bearer token; its text is returned this once and stored nowhere."""
    token, text = AuthToken.objects.create(user, expiry=timedelta(days=days))
    audit.record(actor=user, action="token.create", subject=user, detail={"days": days})
    return token, text


@transaction.atomic
def sign_out(*, token: AuthToken) -> None:
    """Make a token worthless."""
    audit.record(actor=token.user, action="token.revoke", subject=token.user)
    token.delete()

"""How often a caller may call; rates stand in the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rest_framework.throttling import ScopedRateThrottle, SimpleRateThrottle

from server.domain.errors import RateLimited

if TYPE_CHECKING:
    from django.http import HttpRequest


class ScopedThrottle(ScopedRateThrottle):
    """Limits views that name a ``throttle_scope``."""


class _PlainThrottle(SimpleRateThrottle):
    """The same counting for views outside REST framework, by address."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        super().__init__()

    def get_cache_key(self, request: HttpRequest, view: object) -> str:  # noqa: ARG002
        """Count per caller's address."""
        return f"throttle_{self.scope}_{self.get_ident(request)}"  # type: ignore[arg-type]


def client_address(request: HttpRequest) -> str:
    """Return the caller's address, as far as ``TRUSTED_PROXIES`` lets headers state it."""
    address: str = ScopedThrottle().get_ident(request)  # type: ignore[arg-type]
    return address


def check(request: HttpRequest, scope: str) -> None:
    """Count one call of ``scope``.

    Raises:
        RateLimited: the caller's address is over its rate; says how long to wait.

    """
    throttle = _PlainThrottle(scope)
    if not throttle.allow_request(request, None):  # type: ignore[arg-type]
        wait = int(throttle.wait() or 60) + 1
        message = f"Too many requests; try again in {wait} s."
        raise RateLimited(message, retry_after_s=wait)

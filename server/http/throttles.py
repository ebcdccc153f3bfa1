"""How often a caller may call."""

from __future__ import annotations

from rest_framework.throttling import ScopedRateThrottle


class ScopedThrottle(ScopedRateThrottle):
    """Limits views that name a ``throttle_scope``; rates stand in the settings."""

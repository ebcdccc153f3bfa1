"""How often a caller may call; rates stand in the settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

import redis
import structlog
from django.conf import settings
from rest_framework.settings import api_settings
from rest_framework.throttling import ScopedRateThrottle, SimpleRateThrottle

from server.domain.errors import RateLimited

if TYPE_CHECKING:
    from django.http import HttpRequest

# A process tells Redis of this share of a caller's rate at once: so much may be over in each.
_SHARES: Final = 20
_MOST_CALLERS: Final = 100_000
# A Redis that failed is not asked again for so long; counts are then each process's own.
_REST_S: Final = 5.0
_COUNT: Final = """
local count = redis.call('INCRBY', KEYS[1], ARGV[1])
if count == tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return {count, redis.call('PTTL', KEYS[1])}
"""
log = structlog.get_logger(__name__)


class ScopedThrottle(ScopedRateThrottle):
    """Limits views that name a ``throttle_scope``."""


def client_address(request: HttpRequest) -> str:
    """Return the caller's address, as far as ``TRUSTED_PROXIES`` lets headers state it."""
    return address_of(request.META)


def address_of(meta: Mapping[str, Any]) -> str:
    """Return the caller's address by CGI's names, as REST framework's own throttles see it."""
    peer, forwarded = meta.get("REMOTE_ADDR") or "", meta.get("HTTP_X_FORWARDED_FOR")
    proxies = settings.TRUSTED_PROXIES
    if not proxies or forwarded is None:
        return str(peer)
    addresses = forwarded.split(",")
    return str(addresses[-min(proxies, len(addresses))].strip())


@dataclass(slots=True)
class _Window:
    """One caller's calls in a window that began with the first of them; times are monotonic."""

    ends_at: float
    # Of all processes as far as they are told, and of this one since it last told.
    told: int = 0
    untold: int = 0


class CallCounter:
    """Counts calls outside REST framework in this process, and in Redis where there is one.

    Few callers come near their rate, so most calls are counted in memory alone. Redis is told of a
    twentieth of the rate at a time, and answers what all processes have counted.
    """

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()
        self._rests_until = 0.0

    def check(self, address: str) -> None:
        """Count one call.

        Raises:
            RateLimited: the address is over its rate; says how long to wait.

        """
        most, seconds = _rate(api_settings.DEFAULT_THROTTLE_RATES[self.scope])
        now = time.monotonic()
        with self._lock:
            window = self._windows.get(address)
            if window is None or window.ends_at <= now:
                window = self._open(address, now, seconds)
            window.untold += 1
            is_due = window.untold > most // _SHARES and window.told <= most
        if is_due:
            self._tell(address, window, seconds)
        if window.told + window.untold > most:
            wait = int(window.ends_at - now) + 1
            message = f"Too many requests; try again in {wait} s."
            raise RateLimited(message, retry_after_s=wait)

    def _open(self, address: str, now: float, seconds: float) -> _Window:
        if len(self._windows) >= _MOST_CALLERS:
            living = {key: one for key, one in self._windows.items() if one.ends_at > now}
            # Where all of so many are under way, they are counted anew.
            self._windows = living if len(living) < _MOST_CALLERS else {}
        window = self._windows[address] = _Window(now + seconds)
        return window

    def _tell(self, address: str, window: _Window, seconds: float) -> None:
        url, now = settings.BROKER_URL, time.monotonic()
        if not url.startswith(("redis://", "rediss://")) or now < self._rests_until:
            return
        with self._lock:
            mine, window.untold = window.untold, 0
        key = f"nightferry:calls:{self.scope}:{address}"
        try:
            answer = _redis(url).eval(_COUNT, 1, key, mine, int(seconds * 1000))
        except redis.RedisError as error:
            self._rests_until = now + _REST_S
            log.warning("calls_not_told", error=str(error))
            with self._lock:
                window.untold += mine
            return
        count, left_ms = cast("list[int]", answer)
        with self._lock:
            window.told, window.ends_at = count, now + max(left_ms, 0) / 1000


@lru_cache(maxsize=16)
def _rate(text: str) -> tuple[int, float]:
    """Return the calls and the seconds of a rate such as ``20/hour``."""
    most, seconds = SimpleRateThrottle.parse_rate(None, text)  # type: ignore[arg-type]
    if most is None or seconds is None:
        message = f"{text!r} is no rate."
        raise ValueError(message)
    return most, float(seconds)


@lru_cache(maxsize=4)
def _redis(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)


_counters: dict[str, CallCounter] = {}


def check(meta: Mapping[str, Any], scope: str) -> None:
    """Count one call of ``scope``; ``meta`` holds CGI's names.

    Raises:
        RateLimited: the caller's address is over its rate; says how long to wait.

    """
    _counters.setdefault(scope, CallCounter(scope)).check(address_of(meta))


def forget(scope: str) -> None:
    """Count every caller of ``scope`` anew in this process."""
    _counters.pop(scope, None)

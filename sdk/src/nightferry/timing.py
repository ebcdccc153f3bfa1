"""Every interval, limit and piece of chance of the SDK, in one place that tests can replace."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_POLL_INTERVAL_S = 15 * 60
MAX_POLL_INTERVAL_S = 24 * 3600
MAX_RETRY_AFTER_S = 24 * 3600


def _uniform(low: float, high: float) -> float:
    import random

    return random.uniform(low, high)  # noqa: S311 - spreads load, guards nothing


@dataclass(frozen=True)
class Timing:
    """Intervals in seconds, and where time and chance come from.

    Attributes:
        poll_interval_s: between two polls, unless the server sets 15 min to 24 h.
        poll_jitter: fraction by which each interval varies, both ways.
        first_poll_within_s: the first poll falls uniformly into this span.
        backoff_base_s, backoff_cap_s: full-jitter back-off after failed polls.
        request_timeout_s: for answers with a short body, from request to last byte.
        stall_timeout_s: a transfer without a byte for so long counts as broken.
        retry_attempts: tries in a row without a new byte before a download gives up for now.
        retry_base_s, retry_cap_s: full-jitter pause between these tries.
        lock_patience_s: how long to watch another process's download stand still.
        now, sleep, uniform: the clock, the pause, and a number between two at random.

    """

    poll_interval_s: float = 6 * 3600
    poll_jitter: float = 0.2
    first_poll_within_s: float = 300
    backoff_base_s: float = 30
    backoff_cap_s: float = 3600
    request_timeout_s: float = 10
    stall_timeout_s: float = 30
    retry_attempts: int = 5
    retry_base_s: float = 0.5
    retry_cap_s: float = 15
    lock_patience_s: float = 30
    now: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep
    uniform: Callable[[float, float], float] = _uniform

    def first_poll_delay_s(self) -> float:
        """Draw the delay of the first poll: all apps started by one event spread out."""
        return self.uniform(0, self.first_poll_within_s)

    def poll_delay_s(self, interval_s: float | None, jitter: float | None) -> float:
        """Draw the delay until the next poll from the server's wish, clamped, else our own."""
        interval = self.poll_interval_s
        if interval_s is not None:
            interval = min(max(interval_s, MIN_POLL_INTERVAL_S), MAX_POLL_INTERVAL_S)
        share = self.poll_jitter if jitter is None else min(max(jitter, 0.0), 1.0)
        return self.uniform(interval * (1 - share), interval * (1 + share))

    def backoff_s(self, failures: int, retry_after_s: float | None = None) -> float:
        """Draw the delay after ``failures`` failed polls in a row, never under Retry-After.

        Full jitter as in M. Brooker, "Exponential Backoff And Jitter" (2015): uniform between
        nothing and a doubling cap. After Retry-After a tenth is added at random, so that those
        who were sent away together do not come back together.
        """
        ceiling = min(self.backoff_cap_s, self.backoff_base_s * 2.0 ** min(failures - 1, 30))
        delay = self.uniform(0, ceiling)
        if retry_after_s is None:
            return delay
        wished = min(retry_after_s, MAX_RETRY_AFTER_S)
        return max(delay, wished + self.uniform(0, 0.1 * wished))

    def retry_pause_s(self, failures: int) -> float:
        """Draw the pause before the next try of one download."""
        return self.uniform(0, min(self.retry_cap_s, self.retry_base_s * 2.0**failures))

"""Counting calls in several processes: each in memory, all of them in Redis."""

from __future__ import annotations

from typing import Any

import pytest

from server.domain.errors import RateLimited
from server.http.throttles import CallCounter


def calls_until_refused(counters: list[CallCounter], most: int) -> int:
    for number in range(most):
        try:
            counters[number % len(counters)].check("192.0.2.1")
        except RateLimited:
            return number
    return most


@pytest.fixture
def rate(settings: Any) -> int:
    rates = {**settings.REST_FRAMEWORK["DEFAULT_THROTTLE_RATES"], "events": "200/minute"}
    settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "DEFAULT_THROTTLE_RATES": rates}
    return 200


@pytest.mark.services
def test_processes_share_a_rate_within_a_twentieth_each(
    rate: int, settings: Any, redis_server: Any
) -> None:
    settings.BROKER_URL = redis_server.url(7)
    processes = [CallCounter("events") for _ in range(3)]
    assert rate <= calls_until_refused(processes, 1000) <= rate + 3 * (rate // 20 + 1)
    # One that starts now is told with its first twentieth that the rate is used up.
    assert calls_until_refused([CallCounter("events")], 1000) <= rate // 20 + 1


def test_without_redis_or_with_one_that_is_away_each_process_counts_for_itself(
    rate: int, settings: Any
) -> None:
    assert calls_until_refused([CallCounter("events")], 1000) == rate
    settings.BROKER_URL = "redis://127.0.0.1:1/0"
    assert calls_until_refused([CallCounter("events")], 1000) == rate

"""When the SDK looks for updates by itself."""

from __future__ import annotations

import random
import statistics
import threading

import pytest
from nightferry import DownloadType, Model, ModelClient, Timing
from nightferry.testing import FakeServer, Fault
from nightferry.transport import parse_retry_after

from .conftest import ClientFactory
from .support import LABELS, NAME, Clock, quick_timing, wait_until

DAY_S = 24 * 3600


def test_polling_brings_in_updates_and_tells(make_client: ClientFactory, content: bytes) -> None:
    with FakeServer(poll={"jitter_pct": 20}) as eager:
        eager.publish(NAME, content, LABELS)
        timing = quick_timing(first_poll_within_s=0.01, poll_interval_s=0.05)
        client = make_client(server=eager, timing=timing)
        told: list[Model] = []
        client.start_polling(told.append, models=[NAME])
        client.start_polling(told.append, models=[NAME])
        wait_until(lambda: len(told) == 1, "the first update")
        eager.publish(NAME, content[:1000], LABELS)
        wait_until(lambda: len(told) == 2, "the second update")
        client.stop_polling()

        assert [model.label for model in told] == ["v1", "v2"]
        assert {event["type"] for event in eager.events} >= {"activated", "downloaded"}
        asked = eager.count("update")
        assert all(t.name != "nightferry-poll" for t in threading.enumerate())
        assert eager.count("update") == asked


def test_polling_lives_through_failures_and_callbacks_that_raise(
    make_client: ClientFactory, content: bytes
) -> None:
    with FakeServer(poll={"jitter_pct": 20}) as eager:
        eager.publish(NAME, content, LABELS)
        eager.inject(Fault("update", times=3, status=500))
        timing = quick_timing(
            first_poll_within_s=0.01,
            poll_interval_s=0.02,
            backoff_base_s=0.01,
            backoff_cap_s=0.02,
        )
        client = make_client(server=eager, timing=timing)
        told: list[str] = []

        def fail(model: Model) -> None:
            told.append(model.label)
            raise RuntimeError

        client.start_polling(fail, models=[NAME])
        wait_until(lambda: told == ["v1"], "an update after three failures")
        eager.publish(NAME, content[:10], LABELS)
        wait_until(lambda: told == ["v1", "v2"], "an update after a callback that raised")


def test_known_models_are_polled_by_default(make_client: ClientFactory, content: bytes) -> None:
    with FakeServer(poll={}) as eager:
        eager.publish(NAME, content, LABELS)
        client = make_client(
            server=eager, timing=quick_timing(first_poll_within_s=0, poll_interval_s=0.02)
        )
        client.get_model(NAME)
        eager.publish(NAME, content[:10], LABELS)
        client.start_polling()
        wait_until(
            lambda: client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v2", "the update"
        )


def test_starting_to_poll_waits_for_nothing(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    server.inject(Fault("update", times=9, delay_s=5))
    client.start_polling(models=[NAME])
    client.stop_polling()
    assert server.requests == []


# How long it waits


def test_first_polls_spread_over_five_minutes() -> None:
    timing = Timing(uniform=random.Random(1).uniform)
    delays = [timing.first_poll_delay_s() for _ in range(5000)]
    assert 0 <= min(delays) < 5
    assert 295 < max(delays) <= 300
    assert statistics.mean(delays) == pytest.approx(150, abs=5)


@pytest.mark.parametrize(
    ("interval_s", "jitter", "low", "high"),
    [
        (None, None, 6 * 3600 * 0.8, 6 * 3600 * 1.2),
        (3600, None, 2880, 4320),
        (3600, 0.5, 1800, 5400),
        (1, 0.0, 900, 900),
        (10**9, 0.0, DAY_S, DAY_S),
        (3600, 50.0, 0, 7200),
    ],
)
def test_polls_keep_to_the_interval_and_its_limits(
    interval_s: float | None, jitter: float | None, low: float, high: float
) -> None:
    timing = Timing(uniform=random.Random(2).uniform)
    delays = [timing.poll_delay_s(interval_s, jitter) for _ in range(2000)]
    span = high - low
    assert low <= min(delays) <= low + span / 20
    assert high - span / 20 <= max(delays) <= high


def test_back_off_doubles_up_to_an_hour_with_full_jitter() -> None:
    timing = Timing(uniform=random.Random(3).uniform)
    for failures, cap in ((1, 30), (2, 60), (5, 480), (8, 3600), (10_000, 3600)):
        delays = [timing.backoff_s(failures) for _ in range(2000)]
        assert 0 <= min(delays) < cap / 20
        assert cap * 0.95 < max(delays) <= cap


def test_retry_after_is_a_floor_up_to_a_day_and_those_sent_away_come_back_apart() -> None:
    timing = Timing(uniform=random.Random(4).uniform)
    delays = [timing.backoff_s(1, 7200) for _ in range(500)]
    assert min(delays) >= 7200
    assert max(delays) <= 7920
    assert len(set(delays)) > 400
    assert timing.backoff_s(1, 10**9) <= DAY_S * 1.1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", None),
        ("120", 120),
        ("0", 0),
        ("99999999999999999999", DAY_S),
        ("-5", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Sat, 01 Jan 2050 00:00:00 GMT", DAY_S),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value, now=100.0) == seconds


def test_retry_after_outlasts_a_restart(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    clock = Clock(server)
    start = clock.now
    timing = quick_timing(now=clock, first_poll_within_s=0)
    server.publish(NAME, content, LABELS)
    make_client(timing=timing).sync(NAME)
    server.inject(Fault("update", status=503, headers=(("Retry-After", "600"),)))
    make_client(timing=timing).get_model(NAME, DownloadType.LATEST_MODEL)
    asked = server.count("update")
    for moment, silent in ((599, True), (-(10**8), False)):
        clock.now = start + moment
        make_client(timing=timing).get_model(NAME)
        if silent:
            assert server.count("update") == asked
        else:
            wait_until(lambda: server.count("update") > asked, "a clock set back does not silence")

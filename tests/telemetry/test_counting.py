"""What events become: rows that do not depend on order, repetition, batching or store."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.telemetry import actions, buffers
from server.telemetry.models import (
    DailySummary,
    Event,
    FeedbackTotal,
    FirstFact,
    Installation,
    LatencyCount,
    ReleaseArm,
)
from tests.support.services import Redis
from tests.telemetry.conftest import NOW, at, enrolled, event, take

COUNTS = (ReleaseArm, FirstFact, DailySummary, FeedbackTotal, LatencyCount, Installation)


@pytest.fixture(params=["database", pytest.param("redis", marks=pytest.mark.services)])
def store(request: Any, settings: Any) -> Iterator[str]:
    """Have events wait in the database, or in a real Redis that begins empty."""
    if request.param == "redis":
        server: Redis = request.getfixturevalue("redis_server")
        settings.BROKER_URL = server.url(3)
        buffers.redis_buffer()._redis.flushdb()
    yield request.param
    buffers._buffers.clear()


def counted() -> dict[str, Any]:
    """Count what waits, and return every count by what it is of, free of row numbers."""
    actions.drain(now=NOW)
    actions.summarise(now=NOW)
    arm = ("release_arm__channel", "release_arm__label", "release_arm__rollout", "release_arm__arm")
    wanted = {
        FirstFact: (*arm, "device", "type", "code", "first_occurred_at"),
        # A day that a fact has left keeps a row that says none.
        DailySummary: (*arm, "day", "type", "code", "installations"),
        FeedbackTotal: (*arm, "device", "answers", "successes"),
        LatencyCount: (*arm, "kind", "device_class", "sha256", "bucket", "count"),
        Installation: ("device", "channel", "label", "version_number", "running_at",
                       "running_event", "heard_at", "device_class"),
        Event: ("event_id", "is_counted"),
    }  # fmt: skip
    rows = {
        kind.__name__: sorted(kind.objects.order_by().values_list(*names), key=repr)
        for kind, names in wanted.items()
    }
    rows["DailySummary"] = [row for row in rows["DailySummary"] if row[-1]]
    return rows


def forget() -> None:
    for kind in (Event, *COUNTS):
        kind.objects.all().delete()
    if (buffer := buffers.redis_buffer()) is not None:
        buffer._redis.flushdb()


FAILURES = st.sampled_from(["crash", "prediction", "selftest_wrong_top1", "disk_full", "integrity"])
LATENCIES = st.one_of(
    st.fixed_dictionaries({"latency_ms": st.floats(0.1, 9000)}, optional={"limit_ms": st.just(50)}),
    st.dictionaries(st.integers(-24, 71).map(str), st.integers(1, 9), min_size=1, max_size=4).map(
        lambda counts: {"histogram": counts}
    ),
)


@st.composite
def events(draw: Any) -> dict[str, Any]:
    kind = draw(st.sampled_from(Event.Type.values))
    data: dict[str, Any] = {}
    if kind == "feedback":
        data = {"correct": draw(st.booleans())}
    elif kind == "failed":
        data = {"code": draw(FAILURES)}
    elif kind in {"latency", "benchmark"}:
        data = draw(LATENCIES)
    elif kind == "rolled_back":
        data = {"to": draw(st.sampled_from(["", "v1"]))}
    arm = draw(st.sampled_from(["", "treatment", "control"]))
    make = (lambda **values: enrolled(arm, **values)) if arm else event
    return make(
        type=kind,
        data=data,
        event_id=str(uuid.UUID(int=draw(st.integers(0, 2**128 - 1)), version=4)),
        device=draw(st.sampled_from(["d-1", "d-2", "d-3"])),
        # Far behind, late, on the edge of a day, now, and ahead.
        occurred_at=at(draw(st.sampled_from([-9999, -50, -13, -12, -11.5, -1, 0, 2, 99]))),
    )


@given(
    sent=st.lists(events(), max_size=12, unique_by=lambda one: one["event_id"]),
    data=st.data(),
)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_order_repetition_and_batching_counts_the_same(
    sent: list[dict[str, Any]], data: Any, model: Any, store: str
) -> None:
    forget()
    take(sent)
    once = counted()
    assert len(once["Event"]) == len(sent)
    forget()
    again = data.draw(st.permutations(sent + data.draw(st.lists(st.sampled_from(sent)) if sent
                                                       else st.just([]))))  # fmt: skip
    accepted = 0
    while again:
        size = data.draw(st.integers(1, len(again)))
        accepted += take(again[:size]).accepted
        if data.draw(st.booleans()):
            counted()
        again = again[size:]
    assert accepted == len(sent)
    assert counted() == once


def test_an_event_is_a_duplicate_before_and_after_it_is_counted(model: Any, store: str) -> None:
    one = event()
    receipt = take([one, one])
    assert (receipt.accepted, receipt.duplicates) == (1, 1)
    assert take([one]).duplicates == 1
    counted()
    assert take([one]).duplicates == 1
    assert Event.objects.count() == 1


def test_a_clock_that_is_wrong_is_flagged_and_counted_by_the_time_of_receipt(
    model: Any, store: str
) -> None:
    wrong = {"ahead": at(24 * 400), "behind": "1999-01-01T00:00:00Z"}
    for clock, time in wrong.items():
        take([event(occurred_at=time, device=clock)])
        take([event(occurred_at=time, device=clock, type="feedback", data={"correct": True})])
    take([event(occurred_at=at(3), device="nearly")])
    counted()
    assert dict(Event.objects.values_list("device", "clock")) == {
        "ahead": "ahead", "behind": "behind", "nearly": "",
    }  # fmt: skip
    assert set(FirstFact.objects.values_list("first_occurred_at", flat=True)) == {NOW}
    # What could be a repeat of an event that is forgotten is in no sum.
    assert not FeedbackTotal.objects.exists()


def test_pruning_forgets_events_and_no_count(model: Any, settings: Any) -> None:
    settings.TELEMETRY_KEEP_DAYS = 30
    sent = [event(), event(type="feedback", data={"correct": True})]
    take(sent)
    late = NOW + dt.timedelta(days=32, hours=1)
    assert actions.prune(now=late) == 0, "what is not counted is kept"
    before = counted()
    assert actions.prune(now=late - dt.timedelta(days=1)) == 0
    assert actions.prune(now=late) == 2
    # They come once more, as from a phone that lay in a drawer.
    take(sent, now=late)
    after = counted()
    for kind in ("FirstFact", "FeedbackTotal", "DailySummary"):
        assert after[kind] == before[kind]


def test_an_installation_may_not_flood(model: Any, store: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(buffers, "MAX_PER_DAY", 3)
    monkeypatch.setattr(actions, "_quota", buffers.DailyQuota())
    flood = [event() for _ in range(5)]
    receipt = take([event(device="quiet"), *flood])
    assert receipt.accepted == 4
    assert receipt.rejected == [{"index": 4, "code": "too_many"}, {"index": 5, "code": "too_many"}]
    assert take([flood[0]]).duplicates == 1
    tomorrow = NOW + dt.timedelta(days=1)
    assert take([event()], now=tomorrow).accepted == 1

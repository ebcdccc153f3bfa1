"""Counting events: what they say becomes rows, in the transaction that stores them as counted.

An event comes here once, whatever was sent twice or killed half-way: its primary key sees to
that. Facts keep the earliest time, installations the newest; sums grow. So any order and any
batching of the same events gives the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Final

from server.telemetry import failures, histograms
from server.telemetry.models import (
    LONG_AGO,
    DailySummary,
    Event,
    FeedbackTotal,
    FirstFact,
    Installation,
    LatencyCount,
    ReleaseArm,
)
from server.telemetry.upserts import greater, insert, lesser, total

SLOW: Final = "slow"
SILENT: Final = "silent"
_Type = Event.Type

# What becomes a first fact under its own name.
FACTS: Final = frozenset({
    _Type.ASSIGNED, _Type.DOWNLOADED, _Type.ACTIVATED, _Type.FIRST_INFERENCE, _Type.CONFIRMED,
    _Type.FAILED, _Type.ROLLED_BACK,
})  # fmt: skip
# What names the release that the installation runs; the others may name one it was offered.
_RUNNING: Final = frozenset({
    _Type.ACTIVATED, _Type.FIRST_INFERENCE, _Type.CONFIRMED, _Type.FEEDBACK, _Type.LATENCY,
    _Type.HEARTBEAT, _Type.ROLLED_BACK,
})  # fmt: skip

ArmKey = tuple[int, str, str, str, str]
FactKey = tuple[int, str, str, str]


def count_events(events: Sequence[Event]) -> None:
    """Count events that were never counted; the caller holds the drain's row."""
    arms = _release_arms(events)
    placed = [(event, arms[_arm_key(event)]) for event in events]
    store_facts(_facts(placed))
    _store_feedback(placed)
    _store_latencies(placed)
    _store_installations(events)


def _arm_key(event: Event) -> ArmKey:
    enrolment = event.enrolment or {}
    rollout, arm = enrolment.get("rollout", ""), enrolment.get("arm", "")
    return (event.model_id, event.channel, event.label, rollout, arm)


def _release_arms(events: Iterable[Event]) -> dict[ArmKey, int]:
    """Return the ids of the release arms that events belong to; missing ones are made."""
    keys = sorted({_arm_key(event) for event in events})
    found = _known_arms(keys)
    fresh = [_new_arm(key) for key in keys if key not in found]
    if not fresh:
        return found
    insert(fresh, conflict=("model_id", "channel", "label", "rollout", "arm"))
    return _known_arms(keys)


def _known_arms(keys: Sequence[ArmKey]) -> dict[ArmKey, int]:
    rows = ReleaseArm.objects.filter(
        model_id__in={key[0] for key in keys}, label__in={key[2] for key in keys}
    ).values_list("model_id", "channel", "label", "rollout", "arm", "pk")
    wanted = set(keys)
    return {row[:5]: row[5] for row in rows if row[:5] in wanted}


def _new_arm(key: ArmKey) -> ReleaseArm:
    model_id, channel, label, rollout, arm = key
    return ReleaseArm(model_id=model_id, channel=channel, label=label, rollout=rollout, arm=arm)


# First facts


def _facts(placed: Iterable[tuple[Event, int]]) -> Iterator[tuple[FactKey, datetime]]:
    for event, arm in placed:
        if event.type in FACTS:
            code = failures.classify(event.data) if event.type == _Type.FAILED else ""
            yield (arm, event.device, event.type, code), event.effective_at
        if _is_slow(event):
            yield (arm, event.device, SLOW, ""), event.effective_at


def _is_slow(event: Event) -> bool:
    """Say whether an event tells of a latency over the limit that came with it."""
    if event.type == _Type.FAILED:
        return failures.classify(event.data) == failures.LATENCY
    latency, limit = event.data.get("latency_ms"), event.data.get("limit_ms")
    if event.type not in {_Type.LATENCY, _Type.FIRST_INFERENCE}:
        return False
    are_numbers = isinstance(latency, int | float) and isinstance(limit, int | float)
    return are_numbers and latency > limit > 0


def store_facts(facts: Iterable[tuple[FactKey, datetime]]) -> int:
    """Keep each fact's earliest time; return how many rows were made or changed."""
    earliest: dict[FactKey, datetime] = {}
    for key, at in facts:
        if key not in earliest or at < earliest[key]:
            earliest[key] = at
    known = _known_facts(earliest)
    news = {key: at for key, at in sorted(earliest.items()) if key not in known or at < known[key]}
    rows = [
        FirstFact(release_arm_id=arm, device=device, type=kind, code=code, first_occurred_at=at)
        for (arm, device, kind, code), at in news.items()
    ]
    insert(
        rows,
        conflict=("release_arm_id", "device", "type", "code"),
        updates={"first_occurred_at": lesser("first_occurred_at")},
    )
    _mark_stale(news, known)
    return len(rows)


def _known_facts(keys: Iterable[FactKey]) -> dict[FactKey, datetime]:
    wanted = set(keys)
    rows = FirstFact.objects.filter(
        release_arm__in={key[0] for key in wanted}, device__in={key[1] for key in wanted}
    ).values_list("release_arm_id", "device", "type", "code", "first_occurred_at")
    return {row[:4]: row[4] for row in rows if row[:4] in wanted}


def _mark_stale(news: Mapping[FactKey, datetime], known: Mapping[FactKey, datetime]) -> None:
    """Have the days summarised again that facts came to, and those that they left."""
    days: set[tuple[int, date, str, str]] = set()
    for key, at in news.items():
        arm, _, kind, code = key
        days.add((arm, at.date(), kind, code))
        if key in known:
            days.add((arm, known[key].date(), kind, code))
    rows = [
        DailySummary(release_arm_id=arm, day=day, type=kind, code=code)
        for arm, day, kind, code in sorted(days)
    ]
    insert(
        rows,
        conflict=("release_arm_id", "day", "type", "code"),
        updates={"is_stale": "excluded.is_stale"},
    )


# Sums. What is flagged by its clock may be a repeat of an event that is no longer kept, so it is
# never added to one.


def _store_feedback(placed: Iterable[tuple[Event, int]]) -> None:
    answers: Counter[tuple[int, str]] = Counter()
    successes: Counter[tuple[int, str]] = Counter()
    for event, arm in placed:
        if event.type == _Type.FEEDBACK and not event.clock:
            answers[arm, event.device] += 1
            successes[arm, event.device] += event.data.get("correct") is True
    rows = [
        FeedbackTotal(
            release_arm_id=arm,
            device=device,
            answers=count,
            successes=successes[arm, device],
        )
        for (arm, device), count in sorted(answers.items())
    ]
    insert(
        rows,
        conflict=("release_arm_id", "device"),
        updates={name: total(name) for name in ("answers", "successes")},
    )


def _store_latencies(placed: Iterable[tuple[Event, int]]) -> None:
    counts: Counter[tuple[int, str, str, str, int]] = Counter()
    for event, arm in placed:
        kind = _TIMED.get(event.type)
        if kind is None or event.clock:
            continue
        sha256 = event.sha256 if kind == LatencyCount.Kind.BENCHMARK else ""
        for bucket, count in _timed(event).items():
            counts[arm, kind, device_class_of(event), sha256, bucket] += count
    rows = [
        LatencyCount(
            release_arm_id=arm,
            kind=kind,
            device_class=device_class,
            sha256=sha256,
            bucket=bucket,
            count=count,
        )
        for (arm, kind, device_class, sha256, bucket), count in sorted(counts.items())
    ]
    insert(
        rows,
        conflict=("release_arm_id", "kind", "device_class", "sha256", "bucket"),
        updates={"count": total("count")},
    )


# A first inference warms up what later ones find warm: its time is in no histogram.
_TIMED: Final[Mapping[str, str]] = {
    _Type.LATENCY: LatencyCount.Kind.INFERENCE,
    _Type.BENCHMARK: LatencyCount.Kind.BENCHMARK,
}


def _timed(event: Event) -> dict[int, int]:
    try:
        return histograms.read_counts(event.data)
    except ValueError:
        # Stored by an older server, which did not look.
        return {}


# Installations


def _store_installations(events: Iterable[Event]) -> None:
    newest: dict[tuple[int, str], Installation] = {}
    for event in events:
        row = _installation(event)
        key = (event.model_id, event.device)
        newest[key] = _newer(newest[key], row) if key in newest else row
    insert(
        [newest[key] for key in sorted(newest)],
        conflict=("model_id", "device"),
        updates={
            **{name: _if_newer(name) for name in _OF_THE_NEWEST},
            "heard_at": greater("heard_at"),
        },
    )


_OF_THE_NEWEST: Final = (
    "channel", "label", "version_number", "sha256", "device_class", "running_at", "running_event",
)  # fmt: skip


def _if_newer(column: str) -> str:
    return (
        "CASE WHEN (excluded.running_at, excluded.running_event) > (old.running_at,"
        f" old.running_event) THEN excluded.{column} ELSE old.{column} END"
    )


def _installation(event: Event) -> Installation:
    row = Installation(model_id=event.model_id, device=event.device, heard_at=event.received_at)
    if event.type not in _RUNNING:
        return row
    row.channel, row.device_class = event.channel, device_class_of(event)
    row.running_at, row.running_event = event.effective_at, event.event_id.hex
    if event.type == _Type.ROLLED_BACK:
        # It names the release that was left; ``to`` is the one gone back to, empty the embedded.
        back = event.data.get("to")
        row.label = back[:20] if isinstance(back, str) else ""
    else:
        row.label, row.version_number = event.label, event.version_number
        row.sha256 = event.sha256
    return row


def _newer(one: Installation, other: Installation) -> Installation:
    key: Callable[[Installation], tuple[datetime, str]] = lambda row: (  # noqa: E731
        row.running_at or LONG_AGO,
        row.running_event,
    )
    newer = max(one, other, key=key)
    newer.heard_at = max(one.heard_at, other.heard_at)
    return newer


def device_class_of(event: Event) -> str:
    """Return the class of hardware that an event names, beside its data or in it."""
    stated = event.device_class or event.data.get("device_class")
    return stated[:40] if isinstance(stated, str) else ""

"""Taking in what devices report, and counting it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Count, Exists, OuterRef
from django.utils import timezone

from server.domain.errors import InvalidInput
from server.registry.models import Model
from server.telemetry import counting, queries
from server.telemetry.buffers import (
    BufferUnavailable,
    DailyQuota,
    Outcome,
    RedisBuffer,
    redis_buffer,
)
from server.telemetry.intake import Packed, RejectedEvent, is_text, read_event
from server.telemetry.models import (
    DailySummary,
    Drain,
    Event,
    FirstFact,
    FleetDay,
    Installation,
)
from server.telemetry.upserts import insert

MAX_EVENTS: Final = 100
# In one transaction: few enough that nobody waits long for the database.
DRAIN_BATCH: Final = 500
DRAIN_BUDGET_S: Final = 20.0
_SUMMARIES: Final = 500
_PRUNE_BATCH: Final = 2000
# Silence matters while a rollout may be open.
_WATCHED: Final = timedelta(days=90)
log = structlog.get_logger(__name__)


@dataclass
class Receipt:
    """What became of a batch; ``rejected`` holds ``{index, code}`` of what never to send again."""

    accepted: int = 0
    duplicates: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)


def record_events(
    events: object, *, may_report: Callable[[str], bool], now: datetime | None = None
) -> Receipt:
    """Take a batch; an event sent before changes nothing.

    ``may_report`` says whether the caller may speak for the model of that slug. What is accepted
    is kept, in Redis or in the database, when this returns.

    Raises:
        InvalidInput: ``invalid_events`` or ``too_many_events``: nothing was taken.
        Unavailable: ``events_backlog``: nothing was taken.

    """
    if not isinstance(events, Sequence) or isinstance(events, str):
        message = 'The body is {"events": [...]}.'
        raise InvalidInput(message, code="invalid_events")
    if len(events) > MAX_EVENTS:
        message = f"A batch takes up to {MAX_EVENTS} events, not {len(events)}."
        raise InvalidInput(message, code="too_many_events")
    now = now or timezone.now()
    receipt = Receipt()
    check = _ModelCheck(may_report)
    sound: list[tuple[int, Packed]] = []
    for index, event in enumerate(events):
        try:
            sound.append((index, read_event(event, check, now=now)))
        except RejectedEvent as rejection:
            receipt.rejected.append({"index": index, "code": str(rejection)})
    _store(sound, receipt, now)
    receipt.rejected.sort(key=lambda entry: entry["index"])
    return receipt


class _ModelCheck:
    """Says once per batch and model whether the caller may report; the database is seldom asked."""

    def __init__(self, may_report: Callable[[str], bool]) -> None:
        self._may_report = may_report
        self._refusals: dict[str, str] = {}

    def __call__(self, slug: str) -> str:
        if slug not in self._refusals:
            self._refusals[slug] = "" if self._may_report(slug) else self._why_not(slug)
        return self._refusals[slug]

    @staticmethod
    def _why_not(slug: str) -> str:
        is_known = is_text(slug) and Model.objects.filter(slug=slug).exists()
        return "not_allowed" if is_known else "unknown_model"


def _store(sound: Sequence[tuple[int, Packed]], receipt: Receipt, now: datetime) -> None:
    if not sound:
        return
    events = [event for _, event in sound]
    buffer = redis_buffer()
    outcomes: Sequence[Outcome | str]
    try:
        outcomes = buffer.append(events, day=now.date()) if buffer else _store_rows(events, now)
    except BufferUnavailable:
        outcomes = _store_rows(events, now)
    for (index, _), outcome in zip(sound, outcomes, strict=True):
        if outcome == "accepted":
            receipt.accepted += 1
        elif outcome == "duplicate":
            receipt.duplicates += 1
        else:
            receipt.rejected.append({"index": index, "code": outcome})


_quota = DailyQuota()


def _store_rows(events: Sequence[Packed], now: datetime) -> list[str]:
    """Put events into the database, to be counted later; return what became of each."""
    models = _model_ids(events)
    outcomes: list[str] = []
    rows: dict[uuid.UUID, Event] = {}
    for event in events:
        device = event.values["device"]
        if event.model not in models:
            outcomes.append("unknown_model")
        elif event.event_id in rows:
            outcomes.append("duplicate")
        elif not _quota.allows(device, day=now.date()):
            outcomes.append("too_many")
        else:
            rows[event.event_id] = event.row(models[event.model])
            outcomes.append("accepted")
    fresh = _insert_events(list(rows.values()))
    over = {
        event.event_id
        for event, outcome in zip(events, outcomes, strict=True)
        if outcome == "too_many"
    }
    known = set(Event.objects.filter(pk__in=over).values_list("pk", flat=True)) if over else set()
    for place, event in enumerate(events):
        is_repeat = outcomes[place] == "accepted" and event.event_id not in fresh
        if is_repeat or event.event_id in known:
            outcomes[place] = "duplicate"
            _quota.take_back(event.values["device"])
    return outcomes


def _insert_events(rows: Sequence[Event]) -> set[uuid.UUID]:
    """Insert events; return the ids of those that were not there."""
    # In one order, or two that carry the same events wait for each other.
    ordered = sorted(rows, key=lambda row: row.event_id)
    found = insert(ordered, conflict=("event_id",), returning="event_id")
    return {value if isinstance(value, uuid.UUID) else uuid.UUID(value) for value in found}


def _model_ids(events: Sequence[Packed]) -> dict[str, int]:
    slugs = {event.model for event in events}
    return dict(Model.objects.filter(slug__in=slugs).values_list("slug", "pk"))


# Counting


@dataclass
class Drained:
    """What one call counted: ``events`` new ones, ``repeats`` that were there already."""

    events: int = 0
    repeats: int = 0
    is_done: bool = True


def drain(*, now: datetime | None = None, budget_s: float = DRAIN_BUDGET_S) -> Drained:
    """Count what waits, in Redis and in the database, for at most ``budget_s`` seconds.

    Safe to be killed anywhere and to run twice at once: no event is lost or counted twice.
    """
    drained = Drained()
    end = time.monotonic() + budget_s
    buffer = redis_buffer()
    while True:
        moved = _drain_buffer(buffer, drained) if buffer else 0
        counted = _count_rows(drained)
        if not moved and not counted:
            break
        if time.monotonic() > end:
            drained.is_done = False
            break
    Drain.objects.filter(pk=1).update(drained_at=now or timezone.now())
    return drained


def _drain_buffer(buffer: RedisBuffer, drained: Drained) -> int:
    """Move the oldest batches from Redis to the database, counted; return how many events."""
    try:
        waiting = buffer.peek(DRAIN_BATCH)
    except BufferUnavailable:
        return 0
    if not waiting.entries:
        return 0
    models = _model_ids(waiting.events)
    rows = {
        event.event_id: event.row(models[event.model], is_counted=True)
        for event in reversed(waiting.events)
        if event.model in models
    }
    with transaction.atomic():
        _hold_drain()
        fresh = _insert_events(list(rows.values()))
        counting.count_events([row for key, row in rows.items() if key in fresh])
    try:
        buffer.delete(waiting)
    except BufferUnavailable:
        # They are stored; the next call finds them again, and that they are.
        return 0
    unknown = sum(event.model not in models for event in waiting.events)
    if unknown:
        log.warning("events_of_unknown_models", events=unknown)
    drained.events += len(fresh)
    drained.repeats += len(waiting.events) - unknown - len(fresh)
    return len(waiting.entries)


def _count_rows(drained: Drained) -> int:
    """Count the oldest events that the database holds uncounted; return how many."""
    with transaction.atomic():
        _hold_drain()
        rows = list(Event.objects.filter(is_counted=False).order_by("received_at")[:DRAIN_BATCH])
        if rows:
            counting.count_events(rows)
            Event.objects.filter(pk__in=[row.pk for row in rows]).update(is_counted=True)
    drained.events += len(rows)
    return len(rows)


def _hold_drain() -> None:
    """Wait for whoever counts at this moment; needs a transaction."""
    if not Drain.objects.select_for_update().filter(pk=1).exists():
        Drain.objects.get_or_create(pk=1)
        Drain.objects.select_for_update().get(pk=1)


# Upkeep


def summarise(*, now: datetime | None = None, most: int = _SUMMARIES) -> int:
    """Count again the days whose facts have changed; return how many."""
    with transaction.atomic():
        _hold_drain()
        stale = list(DailySummary.objects.filter(is_stale=True).order_by("pk")[:most])
        for summary in stale:
            summary.installations = queries.facts_of_day(summary).count()
            summary.is_stale = False
        DailySummary.objects.bulk_update(stale, ["installations", "is_stale"], batch_size=100)
        Drain.objects.filter(pk=1).update(summarised_at=now or timezone.now())
    return len(stale)


def mark_silent(*, now: datetime | None = None, after: timedelta | None = None) -> int:
    """Note the installations in rollouts that fell silent; return how many did since last time.

    Silent is who has sent nothing for ``after`` (see ``queries.silent_after``). It stays noted
    when they come back: a guardrail counts first events.
    """
    now = now or timezone.now()
    after = after or queries.silent_after()
    heard = Installation.objects.filter(
        model=OuterRef("release_arm__model"), device=OuterRef("device"), heard_at__lt=now - after
    )
    noted = FirstFact.objects.filter(
        release_arm=OuterRef("release_arm"), device=OuterRef("device"), type=counting.SILENT
    )
    quiet = (
        FirstFact.objects.filter(
            Exists(heard),
            ~Exists(noted),
            type=Event.Type.ASSIGNED,
            release_arm__rollout__gt="",
            first_occurred_at__gt=now - _WATCHED,
        )
        .order_by()
        .values_list("release_arm_id", "device")
    )
    count = 0
    while True:
        found = list(quiet[:DRAIN_BATCH])
        if not found:
            return count
        with transaction.atomic():
            _hold_drain()
            count += counting.store_facts(
                ((arm, device, counting.SILENT, ""), now) for arm, device in found
            )


def snapshot_fleet(*, now: datetime | None = None) -> int:
    """Note how many installations run what today; return how many releases were noted."""
    now = now or timezone.now()
    found = (
        Installation.objects.filter(heard_at__gt=now - queries.IN_THE_FIELD)
        .exclude(running_event="")
        .order_by()
        .values_list("model_id", "channel", "label")
        .annotate(Count("pk"))
    )
    rows = [
        FleetDay(model_id=model, day=now.date(), channel=channel, label=label, installations=count)
        for model, channel, label, count in found
    ]
    with transaction.atomic():
        # What nobody runs any more by the end of the day has no row of it.
        FleetDay.objects.filter(day=now.date()).delete()
        insert(
            rows,
            conflict=("model_id", "day", "channel", "label"),
            updates={"installations": "excluded.installations"},
        )
    return len(rows)


def prune(*, now: datetime | None = None) -> int:
    """Delete raw events that are counted and older than they are kept; return how many.

    Two days longer than the setting says: see ``intake.judge_clock`` on why none of them can come
    again and be added to a sum.
    """
    now = now or timezone.now()
    limit = now - timedelta(days=settings.TELEMETRY_KEEP_DAYS + 2)
    old = Event.objects.filter(received_at__lt=limit, is_counted=True)
    count = 0
    oldest = old.order_by("received_at").values_list("pk", flat=True)
    while found := list(oldest[:_PRUNE_BATCH]):
        count += Event.objects.filter(pk__in=found).delete()[0]
    return count

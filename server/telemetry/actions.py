"""Taking in what devices report."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from django.db import transaction

from server.domain.errors import InvalidInput
from server.registry.models import Model
from server.telemetry.models import Event

MAX_EVENTS = 100
MAX_DATA_BYTES = 4096


@dataclass
class Receipt:
    """What became of a batch; ``rejected`` holds ``{index, code}`` of what never to send again."""

    accepted: int = 0
    duplicates: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)


class _Rejected(Exception):
    """One event that will never be taken."""


def record_events(events: object, *, may_report: Callable[[str], bool]) -> Receipt:
    """Store a batch; an event sent before changes nothing.

    ``may_report`` says whether the caller may speak for the model of that slug.

    Raises:
        InvalidInput: ``invalid_events`` or ``too_many_events``: nothing was stored.

    """
    if not isinstance(events, Sequence) or isinstance(events, str):
        message = 'The body is {"events": [...]}.'
        raise InvalidInput(message, code="invalid_events")
    if len(events) > MAX_EVENTS:
        message = f"A batch takes up to {MAX_EVENTS} events, not {len(events)}."
        raise InvalidInput(message, code="too_many_events")
    models = {model.slug: model for model in Model.objects.filter(slug__in=_slugs(events))}
    receipt = Receipt()
    rows: dict[uuid.UUID, Event] = {}
    for index, event in enumerate(events):
        try:
            row = _read(event, models, may_report)
        except _Rejected as rejection:
            receipt.rejected.append({"index": index, "code": str(rejection)})
            continue
        if row.event_id in rows:
            receipt.duplicates += 1
        rows.setdefault(row.event_id, row)
    _store(rows, receipt)
    return receipt


def _store(rows: Mapping[uuid.UUID, Event], receipt: Receipt) -> None:
    with transaction.atomic():
        known = set(Event.objects.filter(event_id__in=rows).values_list("event_id", flat=True))
        fresh = [row for event_id, row in rows.items() if event_id not in known]
        # Two requests may carry the same event at once: the second insert is then ignored.
        Event.objects.bulk_create(fresh, ignore_conflicts=True)
    receipt.accepted += len(fresh)
    receipt.duplicates += len(known)


def _slugs(events: Sequence[object]) -> set[str]:
    slugs = (event.get("model") for event in events if isinstance(event, Mapping))
    return {slug for slug in slugs if isinstance(slug, str) and _is_text(slug)}


def _read(event: object, models: Mapping[str, Model], may_report: Callable[[str], bool]) -> Event:
    if not isinstance(event, Mapping):
        raise _Rejected("not_an_object")
    model = models.get(_text(event, "model", 63))
    if model is None:
        raise _Rejected("unknown_model")
    if not may_report(model.slug):
        raise _Rejected("not_allowed")
    kind = _text(event, "type", 20)
    if kind not in Event.Type.values:
        raise _Rejected("unknown_type")
    device = _text(event, "device", 128)
    if not device:
        raise _Rejected("missing_device")
    data, enrolment = event.get("data") or {}, event.get("enrolment")
    for value in (data, enrolment or {}):
        if not isinstance(value, Mapping) or not _is_storable(value):
            raise _Rejected("invalid_data")
    version = event.get("version")
    if version is not None and (not isinstance(version, int) or not 0 <= version < 2**31):
        raise _Rejected("invalid_version")
    return Event(
        event_id=_event_id(event),
        device=device,
        type=kind,
        model=model,
        channel=_text(event, "channel", 63),
        label=_text(event, "label", 20),
        version_number=version,
        sha256=_text(event, "sha256", 64),
        enrolment=enrolment,
        data=data,
        occurred_at=_time(event),
    )


def _is_storable(value: object) -> bool:
    """Say whether the databases take it: no NaN, no NUL, no half of a surrogate pair."""
    try:
        document = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return len(document) <= MAX_DATA_BYTES and _is_text(document) and "\\u0000" not in document


def _is_text(value: str) -> bool:
    # PostgreSQL cannot store NUL in text, and nothing can store half of a surrogate pair.
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _text(event: Mapping[str, object], name: str, limit: int) -> str:
    value = event.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > limit or not _is_text(value):
        raise _Rejected(f"invalid_{name}")
    return value


def _event_id(event: Mapping[str, object]) -> uuid.UUID:
    try:
        return uuid.UUID(str(event.get("event_id")))
    except ValueError as error:
        raise _Rejected("invalid_event_id") from error


def _time(event: Mapping[str, object]) -> datetime:
    try:
        moment = datetime.fromisoformat(str(event.get("occurred_at")))
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise _Rejected("invalid_occurred_at") from error

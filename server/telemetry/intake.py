"""Reading events: what is sound becomes a ``Packed``, what never will be is rejected by a code."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.conf import settings

from server.telemetry import histograms
from server.telemetry.models import Event

MAX_DATA_BYTES: Final = 4096
# Far below what any reader of JSON gives up at: what is kept once has to be read by all others.
MAX_DATA_DEPTH: Final = 16
MAX_SAMPLE_BP: Final = 10_000
# Clocks are a little off; what lies further in the future never happened then.
MAX_AHEAD: Final = timedelta(days=1)
ARMS: Final = ("treatment", "control")
_TYPES: Final = frozenset(Event.Type.values)


class RejectedEvent(Exception):
    """One event that will never be taken; its text is the code."""


@dataclass(frozen=True, slots=True)
class Packed:
    """An event on its way to the database: checked, with its model still a slug."""

    event_id: uuid.UUID
    model: str
    values: Mapping[str, Any]

    def dump(self) -> str:
        """Return the event as JSON, which ``load`` takes back."""
        times = {name: self.values[name].isoformat() for name in _TIMES}
        return json.dumps(
            {"event_id": self.event_id.hex, "model": self.model, **self.values, **times},
            separators=(",", ":"),
        )

    @classmethod
    def load(cls, document: Mapping[str, Any]) -> Packed:
        """Read what ``dump`` wrote."""
        values = {name: value for name, value in document.items() if name not in _KEYS}
        values |= {name: datetime.fromisoformat(document[name]) for name in _TIMES}
        return cls(uuid.UUID(document["event_id"]), document["model"], values)

    def row(self, model_id: int, *, is_counted: bool = False) -> Event:
        """Return the event's row."""
        return Event(
            event_id=self.event_id, model_id=model_id, is_counted=is_counted, **self.values
        )


_TIMES: Final = ("occurred_at", "received_at")
_KEYS: Final = frozenset({"event_id", "model"})


def read_event(event: object, check_model: Callable[[str], str], *, now: datetime) -> Packed:
    """Return one event, checked.

    ``check_model`` returns the code that refuses the caller a model's slug, or nothing.

    Raises:
        RejectedEvent: with the code that says why.

    """
    if not isinstance(event, Mapping):
        raise RejectedEvent("not_an_object")
    slug = _text(event, "model", 63)
    if refusal := check_model(slug):
        raise RejectedEvent(refusal)
    kind = _text(event, "type", 20)
    if kind not in _TYPES:
        raise RejectedEvent("unknown_type")
    device = _text(event, "device", 128)
    if not device:
        raise RejectedEvent("missing_device")
    data = _data(event, kind)
    occurred_at = _time(event)
    values = {
        "device": device,
        "type": kind,
        "channel": _text(event, "channel", 63),
        "label": _text(event, "label", 20),
        "version_number": _whole(event, "version", 2**31 - 1),
        "sha256": _text(event, "sha256", 64),
        "device_class": _text(event, "device_class", 40),
        "enrolment": _enrolment(event),
        "sample_bp": _whole(event, "sample_bp", MAX_SAMPLE_BP),
        "data": data,
        "occurred_at": occurred_at,
        "clock": judge_clock(occurred_at, received_at=now),
        "received_at": now,
    }
    return Packed(_event_id(event), slug, values)


def judge_clock(occurred_at: datetime, *, received_at: datetime) -> str:
    """Say whether a device's time can be believed; see docs/telemetry.md on what follows.

    What claims to be older than raw events are kept could be a repeat of one that is forgotten.
    """
    if occurred_at > received_at + MAX_AHEAD:
        return Event.Clock.AHEAD.value
    if occurred_at < received_at - timedelta(days=settings.TELEMETRY_KEEP_DAYS):
        return Event.Clock.BEHIND.value
    return Event.Clock.SOUND.value


def slugs_of(events: Sequence[object]) -> set[str]:
    """Return the models that events name, as far as they can be names."""
    slugs = (event.get("model") for event in events if isinstance(event, Mapping))
    return {slug for slug in slugs if isinstance(slug, str) and is_text(slug)}


def is_text(value: str) -> bool:
    """Say whether the databases take a text."""
    # PostgreSQL cannot store NUL in text, and nothing can store half of a surrogate pair.
    if value.isascii():
        return "\0" not in value
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _data(event: Mapping[str, object], kind: str) -> Mapping[str, Any]:
    data = event.get("data") or {}
    if not isinstance(data, Mapping) or not _is_storable(data):
        raise RejectedEvent("invalid_data")
    if kind == Event.Type.FEEDBACK and not isinstance(data.get("correct"), bool):
        raise RejectedEvent("invalid_feedback")
    if kind in _TIMED:
        try:
            timed = histograms.read_counts(data)
        except (ValueError, OverflowError) as error:
            raise RejectedEvent("invalid_latency") from error
        if not timed:
            raise RejectedEvent("invalid_latency")
    return data


# Of a first inference the time is an extra, and the fact counts without.
_TIMED: Final = frozenset({Event.Type.LATENCY, Event.Type.BENCHMARK})


def _is_storable(value: Mapping[str, object]) -> bool:
    if not value:
        return True
    # No NaN, no NUL, no half of a surrogate pair.
    try:
        document = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    if len(document) > MAX_DATA_BYTES or not is_text(document) or "\\u0000" in document:
        return False
    return not _is_deeper(value, MAX_DATA_DEPTH)


def _is_deeper(value: object, most: int) -> bool:
    if isinstance(value, Mapping):
        inner: Iterable[object] = value.values()
    elif isinstance(value, list):
        inner = value
    else:
        return False
    return most == 0 or any(_is_deeper(one, most - 1) for one in inner)


def _enrolment(event: Mapping[str, object]) -> dict[str, str] | None:
    enrolment = event.get("enrolment")
    if enrolment is None:
        return None
    if not isinstance(enrolment, Mapping):
        raise RejectedEvent("invalid_enrolment")
    rollout, arm = _text(enrolment, "rollout", 63), _text(enrolment, "arm", 16)
    if not rollout or arm not in ARMS:
        raise RejectedEvent("invalid_enrolment")
    return {"rollout": rollout, "arm": arm}


def _text(event: Mapping[str, object], name: str, limit: int) -> str:
    value = event.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > limit or not is_text(value):
        raise RejectedEvent(f"invalid_{name}")
    return value


def _whole(event: Mapping[str, object], name: str, most: int) -> int | None:
    value = event.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise RejectedEvent(f"invalid_{name}")
    return value


def _event_id(event: Mapping[str, object]) -> uuid.UUID:
    try:
        return uuid.UUID(str(event.get("event_id")))
    except ValueError as error:
        raise RejectedEvent("invalid_event_id") from error


def _time(event: Mapping[str, object]) -> datetime:
    try:
        moment = datetime.fromisoformat(str(event.get("occurred_at")))
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise RejectedEvent("invalid_occurred_at") from error

"""Messages to other systems: written down with the change they tell of, sent by a job after it."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from server.jobs import actions as jobs
from server.jobs import names
from server.jobs.queries import find_unfinished
from server.rollouts.models import Webhook, WebhookCall

if TYPE_CHECKING:
    import uuid

    from server.rollouts.models import Channel

MOST_ATTEMPTS = 10
FIRST_DELAY = dt.timedelta(seconds=30)
LONGEST_DELAY = dt.timedelta(hours=6)


def tell(channel: Channel, *, event: str, detail: Mapping[str, Any]) -> list[WebhookCall]:
    """Write down a message for every address that wants it, in the caller's transaction."""
    wanted = Webhook.objects.filter(
        Q(model=None) | Q(model=channel.model_id),
        channel__in=("", channel.name),
        is_enabled=True,
    )
    now = timezone.now()
    calls = []
    for webhook in wanted:
        payload = {
            "event": event,
            "at": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "model": channel.model.slug,
            "channel": channel.name,
            **detail,
        }
        call = WebhookCall.objects.create(webhook=webhook, payload=payload, next_at=now)
        _enqueue(call)
        calls.append(call)
    return calls


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """Return HMAC-SHA256 over the timestamp, a dot and the body, in hexadecimal digits."""
    return hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest()


def render(call: WebhookCall) -> bytes:
    """Return the body; the same bytes at each attempt."""
    return json.dumps({"id": str(call.pk), **call.payload}, sort_keys=True).encode()


def send_again(*, now: dt.datetime) -> int:
    """Queue the messages whose time has come; return how many."""
    due = WebhookCall.objects.filter(
        state=WebhookCall.State.WAITING, next_at__lte=now, webhook__is_enabled=True
    )
    return sum(_enqueue(call) for call in due)


@transaction.atomic
def note_delivery(*, call_id: uuid.UUID | str, failure: str = "", now: dt.datetime) -> WebhookCall:
    """Keep what came of an attempt: it arrived, or comes again later, or is given up."""
    call = WebhookCall.objects.select_for_update().get(pk=call_id)
    if call.state != WebhookCall.State.WAITING:
        return call
    call.attempts += 1
    call.failure = failure
    if not failure:
        call.state, call.delivered_at = WebhookCall.State.DELIVERED, now
    elif call.attempts >= MOST_ATTEMPTS:
        call.state = WebhookCall.State.GIVEN_UP
    else:
        call.next_at = now + min(FIRST_DELAY * 2 ** (call.attempts - 1), LONGEST_DELAY)
    call.save()
    return call


def _enqueue(call: WebhookCall) -> bool:
    key = f"webhook:{call.pk}"
    if find_unfinished(key) is not None:
        return False
    jobs.enqueue(name=names.NOTIFY, args={"call_id": str(call.pk)}, unique_key=key)
    return True

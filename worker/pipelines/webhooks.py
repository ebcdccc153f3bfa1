"""Sending webhooks: one POST, signed, to an address that is not of this network."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from django.utils import timezone

from server.rollouts import webhooks
from server.rollouts.models import WebhookCall

if TYPE_CHECKING:
    from datetime import datetime

    from worker.context import JobContext

log = structlog.get_logger(__name__)

TIMEOUT_S = 10
_OK = range(200, 300)


class NotDelivered(Exception):
    """The message did not arrive; the text says why."""


def run(context: JobContext) -> Mapping[str, Any] | None:
    """Send the message that the job names; what fails comes again later, by the message's clock."""
    call = WebhookCall.objects.select_related("webhook").get(pk=context.args["call_id"])
    if call.state != WebhookCall.State.WAITING or not call.webhook.is_enabled:
        return {"outcome": "There is nothing to send."}
    try:
        send(call)
    except NotDelivered as error:
        failure = str(error)
    else:
        failure = ""
    call = webhooks.note_delivery(call_id=call.pk, failure=failure, now=timezone.now())
    return {"outcome": failure or "delivered", "state": call.state}


def send_again(*, now: datetime) -> None:
    """Queue the messages whose time has come; called twice a minute."""
    count = webhooks.send_again(now=now)
    if count:
        log.info("webhooks_due", count=count)


def send(call: WebhookCall) -> None:
    """POST the message once.

    The name is resolved once, each address it has must be allowed, and the connection goes to one
    of these very addresses: a name cannot point elsewhere in between. Redirects are not followed.

    Raises:
        NotDelivered: the address is not allowed, does not answer, or refuses.

    """
    address = urlsplit(call.webhook.url)
    host = address.hostname or ""
    is_secure = address.scheme == "https"
    body, timestamp = webhooks.render(call), int(timezone.now().timestamp())
    signature = webhooks.sign(call.webhook.secret, timestamp, body)
    headers = {
        "Host": address.netloc.rpartition("@")[2],
        "Content-Type": "application/json",
        "User-Agent": "nightferry",
        "X-Nightferry-Event": str(call.payload.get("event", "")),
        "X-Nightferry-Delivery": str(call.pk),
        "X-Nightferry-Timestamp": str(timestamp),
        "X-Nightferry-Signature": f"sha256={signature}",
    }
    path = (address.path or "/") + (f"?{address.query}" if address.query else "")
    try:
        port = address.port or (443 if is_secure else 80)
        connection = _connect(host, port, is_secure=is_secure)
        try:
            connection.request("POST", path, body, headers)
            status = connection.getresponse().status
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotDelivered(f"{host} did not answer: {error or type(error).__name__}") from error
    if status not in _OK:
        raise NotDelivered(f"{host} answered {status}")


def _connect(host: str, port: int, *, is_secure: bool) -> http.client.HTTPConnection:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, where in found:
        _require_public(host, str(where[0]))
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    plain = socket.create_connection((str(found[0][4][0]), port), timeout=TIMEOUT_S)
    try:
        connection.sock = (
            ssl.create_default_context().wrap_socket(plain, server_hostname=host)
            if is_secure
            else plain
        )
    except BaseException:
        plain.close()
        raise
    return connection


def _require_public(host: str, found: str) -> None:
    address = ipaddress.ip_address(found.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    is_public = mapped.is_global and not mapped.is_multicast
    if not is_public and not settings.WEBHOOK_ALLOW_PRIVATE:
        message = f"{host} is {found}, an address of this network; WEBHOOK_ALLOW_PRIVATE allows it"
        raise NotDelivered(message)

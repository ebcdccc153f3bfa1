"""Webhooks: signed, sent again with growing delays, and never to this network unless allowed."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from typing import Any

import pytest
from django.utils import timezone

from server.jobs.models import Job
from server.rollouts import staging, webhooks
from server.rollouts.models import Webhook, WebhookCall
from tests.support.factories import make_model, make_version, release
from worker.context import JobContext
from worker.pipelines import webhooks as worker

pytestmark = pytest.mark.django_db
SECRET = "only-for-tests-1"


class Receiver(HTTPServer):
    """Keeps what is posted; answers with ``status``."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[dict[str, str], bytes]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((dict(self.headers), body))
        self.send_response(self.server.status)
        self.send_header("Location", "http://127.0.0.1/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def rollout(receiver: Receiver):
    model = make_model()
    release(make_version(model))
    Webhook.objects.create(url=f"http://127.0.0.1:{receiver.server_port}/hook", secret=SECRET)
    Webhook.objects.create(url="http://127.0.0.1:1/", secret=SECRET, channel="beta")
    rollout = staging.create_rollout(version=make_version(model))
    return staging.start_rollout(rollout=rollout, reason="let us see")


def work() -> None:
    """Do the jobs that wait, as a worker does."""
    for job in Job.objects.filter(name="rollouts.notify", state="queued"):
        worker.run(JobContext(job))
        Job.objects.filter(pk=job.pk).update(state="succeeded", finished_at=timezone.now())


def test_a_change_of_state_arrives_signed(rollout, receiver, settings):
    settings.WEBHOOK_ALLOW_PRIVATE = True
    work()
    ((headers, body),) = receiver.seen
    signed = f"{headers['X-Nightferry-Timestamp']}.".encode() + body
    digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-Nightferry-Signature"] == f"sha256={digest}"
    told = json.loads(body)
    assert told["event"] == headers["X-Nightferry-Event"] == "rollout.start"
    assert (told["state_before"], told["state"], told["reason"]) == (
        "draft", "running", "let us see",
    )  # fmt: skip
    assert WebhookCall.objects.get().state == "delivered"
    work()
    assert len(receiver.seen) == 1


@pytest.mark.parametrize("status", [500, 302])
def test_what_does_not_arrive_comes_again_later_and_at_last_no_more(
    rollout, receiver, settings, status
):
    settings.WEBHOOK_ALLOW_PRIVATE = True
    receiver.status = status
    now, waits = timezone.now(), []
    for _ in range(webhooks.MOST_ATTEMPTS):
        work()
        call = WebhookCall.objects.get()
        if call.state == "waiting":
            waits.append(call.next_at - timezone.now())
            assert webhooks.send_again(now=now) == 0
        assert webhooks.send_again(now=call.next_at) == (call.state == "waiting")
    assert (call.state, len(receiver.seen)) == ("given up", webhooks.MOST_ATTEMPTS)
    assert str(status) in call.failure
    assert all(low < high for low, high in pairwise(waits[:8]))
    assert waits[-1] > dt.timedelta(hours=1)
    bodies = {body for _, body in receiver.seen}
    assert len(bodies) == 1


HERE = ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "10.1.2.3", "169.254.169.254",
        "0.0.0.0", "2130706433")  # fmt: skip


@pytest.mark.parametrize("host", HERE)
def test_no_address_of_this_network_is_reached(rollout, receiver, host):
    Webhook.objects.update(url=f"http://{host}:{receiver.server_port}/")
    work()
    assert receiver.seen == []
    call = WebhookCall.objects.get()
    assert call.state == "waiting"
    assert "address of this network" in call.failure

from __future__ import annotations

import io
import json
import sys
import uuid

import pytest

from server.delivery.actions import create_application_key
from server.delivery.decision_set import holder
from server.http import throttles
from server.telemetry.models import Event
from tests.support.factories import make_model

pytestmark = pytest.mark.django_db
URL = "/api/v1/events"


def event(**values):
    return {
        "event_id": str(uuid.uuid4()),
        "device": "d-1",
        "type": "activated",
        "model": "recyclables",
        "label": "v1",
        "version": 1,
        "occurred_at": "2026-01-02T03:04:05Z",
        **values,
    }


def send(client, events):
    return client.post(URL, {"events": events}, content_type="application/json")


def test_sending_an_event_twice_changes_nothing(client):
    make_model()
    one = event()
    assert send(client, [one, one]).json() == {"accepted": 1, "duplicates": 1, "rejected": []}
    assert send(client, [one]).json() == {"accepted": 0, "duplicates": 1, "rejected": []}
    assert Event.objects.count() == 1


def test_bad_events_are_named_and_do_not_hold_up_the_good_ones(client):
    make_model()
    make_model("closed", is_open=False)
    bad = [
        (event(event_id="x"), "invalid_event_id"),
        (event(type="danced"), "unknown_type"),
        (event(model="none"), "unknown_model"),
        (event(model="closed"), "not_allowed"),
        (event(device=None), "missing_device"),
        (event(device="a\0b"), "invalid_device"),
        (event(occurred_at="yesterday"), "invalid_occurred_at"),
        (event(version=-1), "invalid_version"),
        (event(data=[1]), "invalid_data"),
        (event(data={"k": "a\0b"}), "invalid_data"),
        (event(data={"k": "\ud800"}), "invalid_data"),
        (event(data={"k": float("nan")}), "invalid_data"),
        (event(data={"k": json.loads("[" * 400 + "]" * 400)}), "invalid_data"),
        (event(device="\ud800"), "invalid_device"),
        (event(model="\ud800"), "invalid_model"),
        (event(occurred_at="0001-01-01T00:00:00+23:00"), "invalid_occurred_at"),
        (event(occurred_at="9999-12-31T23:59:59-23:00"), "invalid_occurred_at"),
        (event(data={"k": "v" * 5000}), "invalid_data"),
        ("no object", "not_an_object"),
    ]
    answer = send(client, [event(), *(one for one, _ in bad), event()])
    assert answer.status_code == 202
    assert answer.json()["accepted"] == 2
    assert [entry["code"] for entry in answer.json()["rejected"]] == [code for _, code in bad]
    assert [entry["index"] for entry in answer.json()["rejected"]] == list(range(1, len(bad) + 1))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("{", "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ("[]", "invalid_events"),
        ('{"events": "all"}', "invalid_events"),
        ('{"events": [' + ",".join(["{}"] * 101) + "]}", "too_many_events"),
    ],
)
def test_a_batch_that_is_none_is_refused_whole(client, body, code):
    answer = client.post(URL, body, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, code)


def send_short(body, **environ):
    """Send a batch as the web server's process takes it: past the framework."""
    from server.wsgi import application

    seen = {}

    def start(status, headers, exc_info=None):
        seen.update(status=int(status.split()[0]), headers=dict(headers))

    answer = application(
        {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": URL,
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "HTTP_HOST": "localhost",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            **environ,
        },
        start,
    )
    document = json.loads(b"".join(answer))
    getattr(answer, "close", lambda: None)()
    return seen["status"], seen["headers"], document


@pytest.mark.django_db(transaction=True)
def test_the_short_way_of_a_batch_says_the_same_as_the_long_one(client):
    make_model()
    _, key = create_application_key(name="app", models=[make_model("closed", is_open=False)])
    holder.refresh()
    one = event()
    bodies = [
        json.dumps({"events": [one, one, event(type="danced"), "no object"]}).encode(),
        json.dumps({"events": [one]}).encode(),
        json.dumps({"events": [event(model="closed")]}).encode(),
        json.dumps({"events": [{}] * 101}).encode(),
        b"{",
        b"[" * 100_000,
        b"\xff",
        b"[]",
        b"",
        b" " * (513 * 1024),
    ]
    for body in bodies:
        Event.objects.all().delete()
        status, headers, short = send_short(body)
        Event.objects.all().delete()
        long = client.post(URL, body, content_type="application/json")
        assert (status, short) == (long.status_code, long.json()), body[:50]
        assert headers["Content-Type"] == long["Content-Type"]
    closed = json.dumps({"events": [event(model="closed")]}).encode()
    assert send_short(closed, HTTP_X_APP_KEY=key)[2]["accepted"] == 1
    # Of no stated length, or not to be posted: the framework's own answers.
    assert send_short(b"{}", CONTENT_LENGTH="")[2]["code"] == "invalid_json"
    assert send_short(b"", REQUEST_METHOD="GET")[0] == 405


@pytest.mark.django_db(transaction=True)
def test_what_breaks_on_the_short_way_is_a_problem_and_in_the_log(monkeypatch, caplog):
    make_model()
    holder.refresh()

    def break_down(*_, **__):
        raise RuntimeError("a secret detail")

    monkeypatch.setattr("server.delivery.reports.record_events", break_down)
    status, headers, answer = send_short(b'{"events": []}')
    assert (status, answer["code"]) == (500, "internal_error")
    assert headers["Content-Type"] == "application/problem+json"
    assert "secret" not in answer["detail"]
    assert "a secret detail" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_an_address_over_its_rate_is_sent_away_on_both_ways(client, settings):
    make_model()
    holder.refresh()
    rates = {**settings.REST_FRAMEWORK["DEFAULT_THROTTLE_RATES"], "events": "3/minute"}
    settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "DEFAULT_THROTTLE_RATES": rates}
    throttles.forget("events")
    body = json.dumps({"events": [event()]}).encode()
    assert [send_short(body)[0] for _ in range(2)] == [202, 202]
    assert client.post(URL, body, content_type="application/json").status_code == 202
    status, headers, answer = send_short(body)
    assert (status, answer["code"]) == (429, "rate_limited")
    assert 0 < int(headers["Retry-After"]) <= 61
    long = client.post(URL, body, content_type="application/json")
    assert (long.status_code, long.json()["code"]) == (429, "rate_limited")
    # Another caller is not held up; nobody is believed about who he is.
    assert send_short(body, REMOTE_ADDR="192.0.2.7")[0] == 202
    assert send_short(body, HTTP_X_FORWARDED_FOR="192.0.2.8")[0] == 429
    throttles.forget("events")

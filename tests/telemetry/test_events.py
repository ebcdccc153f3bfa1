from __future__ import annotations

import uuid

import pytest

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

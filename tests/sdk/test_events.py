"""Facts for the server: none lost, none twice, none where they are not wanted."""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import nightferry
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nightferry import ModelClient
from nightferry.latency import Latencies
from nightferry.testing import FakeServer, Fault

from .conftest import ClientFactory
from .support import LABELS, NAME, Clock, quick_timing

KNOWN = {
    "event_id",
    "device",
    "type",
    "model",
    "channel",
    "label",
    "version",
    "sha256",
    "occurred_at",
    "enrolment",
    "data",
}


def _kinds(server: FakeServer) -> list[str]:
    return [str(event["type"]) for event in server.events]


def _queue(cache_dir: Path) -> Path:
    (path,) = cache_dir.rglob("events.jsonl")
    return path


@pytest.mark.parametrize("is_embedded", [True, False])
def test_what_a_first_release_is_compared_with_is_counted_as_well(
    server: FakeServer,
    make_client: ClientFactory,
    content: bytes,
    tmp_path: Path,
    is_embedded: bool,
) -> None:
    shipped = tmp_path / "shipped.tflite"
    shipped.write_bytes(content)
    enrolment = {"rollout": "7", "arm": "control"}
    server.leave_alone(NAME, enrolment)
    client = make_client(embedded={NAME: shipped} if is_embedded else {})
    client.check_for_update(NAME)
    client.check_for_update(NAME)
    if is_embedded:
        client.report_feedback(NAME, correct=True)
        with pytest.raises(nightferry.PredictionError):
            client.load(NAME)
    client.flush_events()
    told = [event for event in server.events if event["type"] != "heartbeat"]
    known = ["assigned", "activated", "feedback", "failed"] if is_embedded else ["assigned"]
    assert [event["type"] for event in told] == known
    assert all((event["label"], event["enrolment"]) == ("", enrolment) for event in told)


def test_where_a_file_lies_is_not_told(
    server: FakeServer,
    make_client: ClientFactory,
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path / "a-name"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    server.publish(NAME, content, LABELS)
    client = make_client(cache_dir=home / "cache")
    client.sync(NAME)
    current = client.status(NAME).current
    assert current is not None
    client.report_failure(NAME, f"The model file {current.path} cannot be read.")
    client.flush_events()
    assert "a-name" not in json.dumps(server.events)
    (failed,) = [event for event in server.events if event["type"] == "failed"]
    assert str(failed["data"]["reason"]).startswith("The model file ~")


def test_an_update_tells_its_story(server: FakeServer, client: ModelClient, content: bytes) -> None:
    server.publish(NAME, content, LABELS, enrolment={"rollout": 7, "arm": "control"})
    client.sync(NAME)
    client.notify_ready(NAME)
    client.notify_ready(NAME)
    client.report_feedback(NAME, correct=False)
    assert client.flush_events() == 2
    assert client.flush_events() == 0

    assert _kinds(server) == ["assigned", "downloaded", "activated", "confirmed", "feedback"]
    for event in server.events:
        assert event.keys() == KNOWN
        uuid.UUID(str(event["event_id"]))
        uuid.UUID(str(event["device"]))
        assert (event["model"], event["channel"]) == (NAME, "production")
        assert (event["label"], event["version"]) == ("v1", 1)
        assert event["enrolment"] == {"rollout": 7, "arm": "control"}
        assert datetime.fromisoformat(str(event["occurred_at"])).utcoffset() == timedelta(0)
    assert server.events[1]["data"]["received_bytes"] == len(content)
    assert server.events[4]["data"] == {"correct": False}


@pytest.mark.parametrize("fault", [Fault("events", status=500), Fault("events", status=429)])
def test_events_wait_until_the_server_has_them(
    server: FakeServer, client: ModelClient, content: bytes, fault: Fault
) -> None:
    server.publish(NAME, content, LABELS)
    server.inject(fault)
    assert client.sync(NAME).label == "v1", "telemetry never stops an update"
    assert server.events == []
    assert client.flush_events() == 3
    assert len(server.events) == 3


def test_a_lost_answer_counts_nothing_twice(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    server.inject(Fault("events", cut_at=0))
    client.sync(NAME)
    client.flush_events()
    assert server.count("events") == 2
    assert len(server.events) == len({event["event_id"] for event in server.events}) == 3


def test_rejected_events_are_dropped_one_by_one(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    server.reject_events["assigned"] = "unknown_release"
    client.sync(NAME)
    assert _kinds(server) == ["downloaded", "activated"]
    assert client.flush_events() == 0


def test_an_event_that_spoils_its_batch_is_found(
    server: FakeServer, client: ModelClient, content: bytes, cache_dir: Path
) -> None:
    server.publish(NAME, content, LABELS)
    server.inject(Fault("events", times=2, status=413))
    client.sync(NAME)
    assert len(server.events) == 2, "the batch of three, then its first event, were refused"
    assert client.flush_events() == 0
    assert _queue(cache_dir).read_bytes() == b""


def test_batches_hold_a_hundred(server: FakeServer, client: ModelClient, content: bytes) -> None:
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    for _ in range(230):
        client.report_feedback(NAME, correct=True)
    posts = server.count("events")
    assert client.flush_events() == 230
    assert server.count("events") - posts == 3


def test_the_queue_is_bounded_and_keeps_the_newest(
    server: FakeServer, client: ModelClient, content: bytes, cache_dir: Path
) -> None:
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    client.report_feedback(NAME, correct=True)
    path = _queue(cache_dir)
    event = json.loads(path.read_bytes())
    lines = [json.dumps({**event, "event_id": str(uuid.uuid4())}) for _ in range(2500)]
    path.write_text("\n".join(lines))
    client.report_feedback(NAME, correct=False)
    kept = [json.loads(line) for line in path.read_bytes().splitlines() if line]
    assert 1000 < len(kept) <= 2000
    assert kept[-1]["data"] == {"correct": False}


def test_torn_lines_cost_only_themselves(
    server: FakeServer, client: ModelClient, content: bytes, cache_dir: Path
) -> None:
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    client.report_feedback(NAME, correct=True)
    path = _queue(cache_dir)
    path.write_bytes(path.read_bytes() + b'{"event_id": "torn\xff')
    client.report_feedback(NAME, correct=True)
    assert client.flush_events() == 2
    assert _kinds(server).count("feedback") == 2


def test_threads_lose_no_event(server: FakeServer, client: ModelClient, content: bytes) -> None:
    server.publish(NAME, content, LABELS)
    client.sync(NAME)

    def report() -> None:
        for _ in range(10):
            client.report_feedback(NAME, correct=True)
            client.flush_events()

    threads = [threading.Thread(target=report) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.flush_events()
    assert _kinds(server).count("feedback") == 40


def test_events_of_the_last_run_are_sent_by_the_next(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    server.inject(Fault("events", status=503))
    make_client().sync(NAME)
    assert make_client().flush_events() == 3


def test_events_are_refused_without_a_key_and_wait(
    make_client: ClientFactory, content: bytes
) -> None:
    with FakeServer(app_key="secret") as locked:
        locked.publish(NAME, content, LABELS)
        client = make_client(server=locked, app_key="secret")
        client.sync(NAME)
        client.report_feedback(NAME, correct=True)
        locked.inject(Fault("events", status=401))
        with pytest.raises(nightferry.UnauthorizedError):
            client.flush_events()
        assert client.flush_events() == 1


@pytest.mark.parametrize("variable", ["NIGHTFERRY_DISABLE_TELEMETRY", "DO_NOT_TRACK", None])
def test_no_events_where_they_are_not_wanted(
    server: FakeServer,
    make_client: ClientFactory,
    content: bytes,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    server.publish(NAME, content, LABELS)
    client = make_client(telemetry=variable is not None)
    client.sync(NAME)
    client.report_feedback(NAME, correct=True)
    assert client.flush_events() == 0
    assert server.count("events") == 0
    assert list(cache_dir.rglob("events.jsonl")) == []


def test_a_switch_that_says_no_is_no(
    server: FakeServer, make_client: ClientFactory, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    monkeypatch.setenv("NIGHTFERRY_OFFLINE", "false")
    server.publish(NAME, content, LABELS)
    make_client().sync(NAME)
    assert len(server.events) == 3


def test_control_tells_that_it_takes_part_and_what_befalls_it_there(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    client.flush_events()
    told = len(server.events)

    server.enrol(NAME, {"rollout": 7, "arm": "control"})
    client.sync(NAME)
    client.sync(NAME)
    client.report_failure(NAME, "blurred")
    client.flush_events()
    news = server.events[told:]
    assert [event["type"] for event in news] == ["assigned", "activated", "failed", "rolled_back"]
    for event in news:
        assert event["label"] == "v1"
        assert event["enrolment"] == {"rollout": 7, "arm": "control"}


def test_refused_for_its_key_an_event_is_given_up_and_the_others_go_on(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    """The server says never to send it again; a fleet with an old key must not knock for ever."""
    server.publish(NAME, content, LABELS)
    server.reject_events["assigned"] = "not_allowed"
    server.reject_events["activated"] = "not_allowed"
    client.sync(NAME)
    client.report_feedback(NAME, correct=True)
    assert client.flush_events() == 1
    assert _kinds(server) == ["downloaded", "feedback"]
    posts = server.count("events")
    assert client.flush_events() == 0
    assert server.count("events") == posts


def test_samples_come_from_a_share_of_installations_and_facts_from_all(
    server: FakeServer, make_client: ClientFactory, content: bytes, tmp_path: Path
) -> None:
    server.publish(NAME, content, LABELS, telemetry={"sample_bp": 5000})
    clients = [make_client(cache_dir=tmp_path / str(number)) for number in range(40)]
    for client in clients:
        client.sync(NAME)
        client.report_feedback(NAME, correct=True)
        client.report_feedback(NAME, correct=False)
        client.flush_events()
    told = [event for event in server.events if event["type"] == "feedback"]
    by_device = {event["device"]: 0 for event in told}
    for event in told:
        by_device[event["device"]] += 1
        assert event["sample_bp"] == 5000
    assert 6 <= len(by_device) <= 34, "half of 40; outside once in a million"
    assert set(by_device.values()) == {2}, "an installation is in with all it says, or not at all"
    assert _kinds(server).count("assigned") == 40
    assert all("sample_bp" not in event for event in server.events if event["type"] == "assigned")


def test_alive_once_a_day_whatever_the_answer(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    clock = Clock(server)
    client = make_client(timing=quick_timing(now=clock), device_class="kiosk")
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    for _ in range(6):  # three days, two polls on each
        clock.now += 12 * 3600
        client.sync(NAME)
    alive = [event for event in server.events if event["type"] == "heartbeat"]
    days = [str(event["occurred_at"])[:10] for event in alive]
    assert len(days) == len(set(days)) == 3
    assert {event["label"] for event in alive} == {"v1"}
    assert {event["device_class"] for event in server.events} == {"kiosk"}


def test_the_model_in_the_app_is_told_by_an_empty_label(
    server: FakeServer, make_client: ClientFactory, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    client = make_client(embedded={NAME: path})
    client.report_feedback(NAME, correct=True)
    client.flush_events()
    assert [event["label"] for event in server.events] == [""]


@given(st.lists(st.floats(0.001, 1e7), min_size=1, max_size=50))
def test_latencies_are_counted_where_the_server_looks_for_them(latencies: list[float]) -> None:
    from server.telemetry import histograms

    model = cast(
        "nightferry.Model", SimpleNamespace(name=NAME, label="v1", sha256="", enrolment=None)
    )
    timed = Latencies()
    for latency_ms in latencies:
        timed.add(model, latency_ms, 200.0)
    ((_, data),) = timed.take()
    assert timed.take() == []
    counts = histograms.read_counts(data)
    assert counts == Counter(map(histograms.bucket_of, latencies))
    assert data["count"] == len(latencies)
    middle = sorted(latencies)[(len(latencies) - 1) // 2]
    assert histograms.bucket_of(float(str(data["latency_ms"]))) == histograms.bucket_of(middle)

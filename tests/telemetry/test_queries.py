"""What the rollout engine and people read, beside the same worked out from the events."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from server.console.actions import create_staff_token
from server.domain.guardrails import judge_floor
from server.domain.sequences import ArmFeedback
from server.rollouts.models import Recall
from server.telemetry import actions, queries
from server.telemetry.models import FleetDay
from tests.support.factories import make_model, make_version, release
from tests.telemetry.conftest import NOW, at, enrolled, event, take

STAGES = [NOW - dt.timedelta(hours=hours) for hours in (72, 48, 24)]


def send(events: list[dict[str, Any]], *, now: dt.datetime = NOW) -> None:
    for start in range(0, len(events), 100):
        assert take(events[start : start + 100], now=now).rejected == []


def rollout_events(chance: random.Random) -> list[dict[str, Any]]:
    """Return what 60 installations of two arms report over three stages."""
    sent = []
    for number in range(60):
        arm = chance.choice(["treatment", "control"])
        joined = chance.uniform(-71, -1)
        own = {"arm": arm, "device": f"d-{number}"}

        def say(kind: str, after: float = 0.0, own: Any = own, start: float = joined, **data: Any):
            sent.append(enrolled(**own, type=kind, data=data, occurred_at=at(start + after)))

        say("assigned")
        if chance.random() < 0.9:
            say("activated", 0.1)
        if chance.random() < 0.5:
            say("first_inference", 0.2, latency_ms=chance.choice([10, 90]), limit_ms=50)
        for code in chance.sample(["crash", "prediction", "selftest", "disk_full"], 2):
            if chance.random() < 0.3:
                say("failed", chance.uniform(0, 1), code=code)
        for _ in range(chance.randrange(4)):
            say("feedback", 0.5, correct=chance.random() < 0.8)
    chance.shuffle(sent)
    return sent


def expected(sent: list[dict[str, Any]], arm: str, stage: int) -> dict[str, Any]:
    """Work out one stage's facts the slow way."""
    bounds = [*STAGES[1:], NOW]
    ours = [one for one in sent if one["enrolment"]["arm"] == arm]
    joined = {one["device"]: one["occurred_at"] for one in ours if one["type"] == "assigned"}
    members = {
        device
        for device, time in joined.items()
        if dt.datetime.fromisoformat(time) < bounds[stage]
        and (stage == 0 or dt.datetime.fromisoformat(time) >= STAGES[stage])
    }

    def count(kind: str, *codes: str) -> int:
        return len({
            one["device"] for one in ours
            if one["device"] in members and one["type"] == kind
            and (not codes or one["data"].get("code") in codes)
        })  # fmt: skip

    answers: dict[str, list[bool]] = {}
    for one in ours:
        if one["type"] == "feedback" and one["device"] in members:
            answers.setdefault(one["device"], []).append(one["data"]["correct"])
    return {
        "assigned": count("assigned"),
        "activated": count("activated"),
        "first_inference": count("first_inference"),
        "load_failures": count("failed", "selftest"),
        "crashes": count("failed", "crash"),
        "inference_errors": count("failed", "prediction"),
        "run_failures": count("failed", "crash", "prediction"),
        "tried": len({
            one["device"] for one in ours
            if one["device"] in members
            and (one["type"] == "activated" or one["data"].get("code") == "selftest")
        }),
        "slow": len({
            one["device"] for one in ours
            if one["device"] in members and one["data"].get("latency_ms") == 90
        }),
        "feedback": ArmFeedback.collect((sum(said), len(said)) for said in answers.values()),
    }  # fmt: skip


def test_arms_are_counted_by_the_stage_their_installations_joined_in(model: Any) -> None:
    sent = rollout_events(random.Random(11))
    other = {"rollout": "r2", "arm": "control"}
    noise = [{**one, "event_id": event()["event_id"], "enrolment": other} for one in sent[:40]]
    send(sent + noise)
    actions.drain(now=NOW)
    with CaptureQueriesContext(
        connection,
    ) as spent:
        facts = queries.arm_facts("r1", STAGES)
    assert len(spent) == 2
    for arm in ("treatment", "control"):
        for stage in range(3):
            wanted = expected(sent, arm, stage)
            found = {name: getattr(facts[arm][stage], name) for name in wanted}
            assert found == wanted, (arm, stage)
            assert facts[arm][stage].last_event_at == NOW
    events = queries.guardrail_events(facts)
    assert events["crash"][1].treatment_events == facts["treatment"][1].crashes
    assert sum(stage.treatment_at_risk for stage in events["silence"]) == sum(
        stage.assigned for stage in facts["treatment"]
    )
    assert queries.total_feedback(facts["control"]).answers == sum(
        one["type"] == "feedback" and one["enrolment"]["arm"] == "control" for one in sent
    )
    assert queries.in_both_arms("r1") == 0
    take([enrolled("control", device="d-x"), enrolled("treatment", device="d-x")])
    actions.drain(now=NOW)
    assert queries.in_both_arms("r1") == 1


def test_who_could_not_load_what_it_activated_has_tried_once(model: Any) -> None:
    take([
        enrolled(device=f"d-{number}", type=kind, data=data)
        for number in range(20)
        for kind, data in (("activated", {}), ("failed", {"code": "load"}))
        if kind == "activated" or number < 12
    ])  # fmt: skip
    actions.drain(now=NOW)
    (stage,) = queries.arm_facts("r1", STAGES[:1])["treatment"]
    assert (stage.activated, stage.load_failures, stage.tried) == (20, 12, 20)
    assert judge_floor(tried=stage.tried, load_failures=stage.load_failures).is_breached


def test_an_unknown_rollout_has_no_facts(db: Any) -> None:
    facts = queries.arm_facts("never", STAGES[:1])
    assert facts == {"treatment": [queries.StageFacts()], "control": [queries.StageFacts()]}
    with pytest.raises(ValueError, match="in order"):
        queries.arm_facts("never", [STAGES[1], STAGES[0]])


def test_who_falls_silent_stays_noted(model: Any) -> None:
    send([enrolled(device=name, type="assigned", occurred_at=at()) for name in ("gone", "here")])
    send([event(device="bystander")])
    actions.drain(now=NOW)
    later = NOW + queries.silent_after() + dt.timedelta(minutes=1)
    send([enrolled(device="here", type="heartbeat", occurred_at=at(70))], now=later)
    actions.drain(now=later)
    assert actions.mark_silent(now=later) == 1
    assert actions.mark_silent(now=later) == 0
    send([enrolled(device="gone", type="heartbeat", occurred_at=at(80))], now=later)
    actions.drain(now=later)
    facts = queries.arm_facts("r1", [NOW])["treatment"][0]
    assert (facts.assigned, facts.silent, facts.last_event_at) == (2, 1, later)


@pytest.fixture
def field(db: Any) -> Any:
    """Return a model in the field: v1 on three installations, v2, killed since, on one."""
    model = make_model()
    for _ in range(2):
        release(make_version(model))
    recalled = model.versions.get(number=2)
    Recall.objects.create(version=recalled)
    send([event(device=f"d-{number}", type="confirmed") for number in range(3)])
    # What was offered is not what runs; what was left is not either.
    send([event(device="d-0", type="assigned", label="v2", version=2, occurred_at=at())])
    send([event(device="d-1", type="rolled_back", label="v2", version=2, data={"to": "v1"},
                occurred_at=at())])  # fmt: skip
    send([event(device="d-9", type="activated", label="v2", version=2)])
    send([event(device="d-8", type="assigned", label="v2", version=2)])
    actions.drain(now=NOW)
    return model


def test_the_fleet_says_what_runs_where(field: Any) -> None:
    with CaptureQueriesContext(connection) as spent:
        fleet = queries.fleet(field, now=NOW)
    assert len(spent) <= 3
    assert (fleet.installations, fleet.unknown, fleet.silent, fleet.revoked) == (5, 1, 0, 1)
    assert fleet.revoked_share == 0.2
    shares = [(one.label, one.version, one.installations) for one in fleet.versions]
    assert shares == [("v1", 1, 3), ("v2", 2, 1)]
    assert [one.is_revoked for one in fleet.versions] == [False, True]
    assert queries.fleet(field, now=NOW + dt.timedelta(days=5)).silent == 5
    assert queries.fleet(field, now=NOW + dt.timedelta(days=40)).installations == 0
    for _ in range(2):
        actions.snapshot_fleet(now=NOW)
    assert sorted(FleetDay.objects.values_list("label", "installations")) == [
        ("v1", 3), ("v2", 1),
    ]  # fmt: skip


def test_staff_read_fleet_and_telemetry_over_http(
    field: Any, client: Any, django_user_model: Any
) -> None:
    now = dt.datetime.now(dt.UTC)
    timed = {"histogram": {"12": 90, "20": 10}}
    said = [
        event(type="latency", data=timed, device_class="phone-a"),
        event(type="benchmark", data={"latency_ms": 3, "count": 50}, sha256="a" * 64),
        event(type="failed", data={"code": "prediction"}),
        event(type="feedback", data={"correct": True}),
        event(type="feedback", data={"correct": False}),
    ]
    send(said)
    actions.drain(now=now)
    actions.summarise(now=now)
    actions.snapshot_fleet(now=NOW)
    base = "/api/v1/models/recyclables"
    assert client.get(f"{base}/fleet").status_code == 401
    user = django_user_model.objects.create_superuser("boss")
    headers = {"Authorization": f"Bearer {create_staff_token(user=user)[1]}"}
    fleet = client.get(f"{base}/fleet?days=366", headers=headers).json()
    assert (fleet["installations"], fleet["revoked"]) == (5, 1)
    answer = client.get(f"{base}/telemetry?label=v1&days=366", headers=headers).json()
    assert answer["by_type"] == {"confirmed": 3, "failed": 1}
    assert answer["failures"] == {"inference_error": 1}
    assert answer["feedback"] == {"installations": 1, "answers": 2, "successes": 1, "share": 0.5}
    (timed,) = answer["latencies"]
    assert (timed["device_class"], timed["count"]) == ("phone-a", 100)
    # The upper bounds of buckets 12 and 20: at most 19 % above 8 and 32 ms.
    assert [round(timed[name], 1) for name in ("p50_ms", "p95_ms")] == [9.5, 38.1]
    assert answer["benchmarks"][0]["sha256"] == "a" * 64
    (day,) = answer["days"]
    assert day["installations"] == {"confirmed": 3, "failed:inference_error": 1}
    assert client.get(f"{base}/telemetry", headers=headers).json()["status"] == 400
    assert client.get("/api/v1/models/none/fleet", headers=headers).status_code == 404

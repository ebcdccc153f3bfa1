"""Killed anywhere in a change of stage: no stage skipped, no decision lost or taken twice.

Once at every statement and commit in turn; once on a whole server, whose worker and one of two web
processes are killed. And: how soon every web process answers a kill with the incumbent.
"""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from django.utils import timezone

from server.domain.stages import StageFacts
from server.rollouts import staging
from server.rollouts.models import Rollout
from tests.rollouts.test_kills import poll, worker_of
from tests.support.data import REPOSITORY
from tests.support.factories import make_model, make_version, publish, release
from tests.support.server import LiveServer, running_server
from tests.trust.test_kills import rounds
from worker.pipelines import rollouts as worker

POLICY = {"min_hours": 0, "min_installations": 1, "stages_bp": list(range(100, 2100, 100)),
          "needs_feedback": False, "max_data_age_hours": 2000}  # fmt: skip


@pytest.mark.django_db(transaction=True)
def test_at_every_statement_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    release(make_version(model))
    rollout = staging.create_rollout(version=make_version(model), policy=POLICY)
    staging.start_rollout(rollout=rollout)
    publish(model)
    # What devices report is another test's; here each look finds the stage complete.
    gather = staging.evidence_queries.gather

    def complete(rollout: Rollout, *, now: dt.datetime) -> object:
        facts = StageFacts(10, 10)
        return replace(gather(rollout, now=now), stage_facts=facts)

    monkeypatch.setattr(staging.evidence_queries, "gather", complete)
    before, points = 0, 0
    for number in rounds(lambda _: worker.look(now=timezone.now())):
        points = number
        rollout.refresh_from_db()
        assert rollout.stage in {before, before + 1}
        assert_whole(rollout)
        before = rollout.stage
    # Each point before the commit left it all as it was.
    assert points > 8
    assert before >= 1


def assert_whole(rollout: Rollout) -> None:
    """See that every change of stage has its one decision, in order, and nothing else does."""
    moved = rollout.decisions.filter(verb="advance").order_by("number")
    assert [(one.stage_before, one.stage_after) for one in moved] == [
        (stage, stage + 1) for stage in range(rollout.stage)
    ]
    assert all(one.evidence["progress"]["stage"] == one.stage_before for one in moved)
    assert len(rollout.stages_entered) == rollout.stage + 1
    numbers = list(rollout.decisions.order_by("number").values_list("number", flat=True))
    assert numbers == list(range(1, rollout.revision + 1))


PREPARE = """
import django
django.setup()
from tests.support import factories
model = factories.make_model()
factories.make_version(model)
factories.make_version(model)
"""
WEB = """
import os, sys, django
django.setup()
from server.jobs.management.commands.quickstart import _web
argv = _web("127.0.0.1", int(sys.argv[1])).argv
os.execv(argv[0], argv)
"""
REPORT = """
import sys, uuid, django
django.setup()
from django.utils import timezone
from server.delivery.decision_set import load
from server.domain.assignment import Installation, assign
from server.telemetry import actions
state = load().models["recyclables"].channels["production"].state
now, events, counts = timezone.now(), [], {"treatment": 0, "control": 0}
for number in range(int(sys.argv[1]), int(sys.argv[1]) + 4000):
    unit = f"phone-{number}"
    answer = assign(state, Installation(unit))
    if answer.arm is None or counts[answer.arm] == 3:
        continue
    counts[answer.arm] += 1
    for kind in ("assigned", "activated", "first_inference"):
        events.append({"event_id": str(uuid.uuid4()), "device": unit, "type": kind,
            "model": "recyclables", "channel": "production", "label": answer.release,
            "enrolment": {"rollout": answer.rollout, "arm": answer.arm},
            "occurred_at": now.isoformat(), "data": {}})
assert not actions.record_events(events, may_report=lambda _: True).rejected
"""


@pytest.fixture(params=["embedded", pytest.param("at scale", marks=pytest.mark.services)])
def stores(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the settings of SQLite and files, then of PostgreSQL and Redis."""
    if request.param == "embedded":
        return {"DATABASE_URL": "", "BROKER_URL": "filesystem://"}
    return {
        "DATABASE_URL": request.getfixturevalue("postgresql_server").create_database(),
        "BROKER_URL": request.getfixturevalue("redis_server").url(9),
    }


@pytest.mark.timeout(900)
def test_a_worker_and_a_web_process_killed_during_changes_of_stage(
    tmp_path: Path, stores: dict[str, str]
) -> None:
    quick = {"JOB_LEASE_S": "2", "JOB_REAP_S": "1", "JOB_RESEND_S": "2", "ROLLOUT_LOOK_S": "1",
             "DECISION_REFRESH_S": "1", **stores}  # fmt: skip
    with running_server(tmp_path / "server", **quick) as server:
        script(server, PREPARE)
        server.call("POST", "/models/recyclables/channels/production/releases", {"version": 1})
        wait_for(server, lambda: (poll(server) or {}).get("label") == "v1")
        made = server.call(
            "POST", "/rollouts", {"model": "recyclables", "version": 2, "policy": POLICY}
        )
        path = f"/rollouts/{made['id']}"
        server.call("POST", f"{path}/start", {})
        second, other = start_web(server)
        try:
            wait_for(server, lambda: treated(server) is not None)
            unit = treated(server)
            seen = [0]
            for number in range(4):
                script(server, REPORT, str(100_000 * (number + 1)))
                # Somewhere in the look, the drain or the job that follows.
                time.sleep(0.4 * number)
                os.kill(worker_of(server), signal.SIGKILL)
                if number == 2:
                    os.kill(second.pid, signal.SIGKILL)
                    second.wait()
                    second, other = start_web(server)
                stage = seen[-1]
                wait_for(server, lambda stage=stage: server.call("GET", path)["stage"] > stage)
                seen.append(server.call("GET", path)["stage"])
            decisions = server.call("GET", f"{path}/decisions?page_size=200")["results"]
            moved = [one for one in reversed(decisions) if one["verb"] == "advance"]
            assert [one["stage_before"] for one in moved] == list(range(seen[-1]))
            numbers = [one["number"] for one in decisions]
            assert numbers == sorted(set(numbers), reverse=True)

            both = (server, LiveServer(other, server.data, server.env))
            wait_for(server, lambda: all(label_of(one, unit) == "v2" for one in both))
            server.call("POST", "/models/recyclables/kill", {"reason": "answers nonsense"})
            killed_at, answered_at = time.monotonic(), {}
            while len(answered_at) < len(both):
                for one in both:
                    if one.url not in answered_at and label_of(one, unit) in {"v1", "v3"}:
                        answered_at[one.url] = time.monotonic() - killed_at
                assert time.monotonic() - killed_at < 60, server.log()[-3000:]
                time.sleep(0.02)
            print("answered with the incumbent after", sorted(answered_at.values()))
        finally:
            second.kill()
            second.wait()


def script(server: LiveServer, text: str, *arguments: str) -> None:
    env = {**server.env, "DJANGO_SETTINGS_MODULE": "server.settings"}
    subprocess.run([sys.executable, "-c", text, *arguments], cwd=REPOSITORY, env=env, check=True)


def start_web(server: LiveServer) -> tuple[subprocess.Popen[bytes], str]:
    """Start one more web process on the same data; return it with its address."""
    from tests.support.processes import answers_http, free_port

    port = free_port()
    env = {**server.env, "DJANGO_SETTINGS_MODULE": "server.settings"}
    process = subprocess.Popen(
        [sys.executable, "-c", WEB, str(port)], cwd=REPOSITORY, env=env,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(server, lambda: answers_http(port, "/healthz"))
    return process, f"http://127.0.0.1:{port}"


def label_of(server: LiveServer, unit: str) -> str | None:
    answer = server.call("GET", f"/models/recyclables/update?device={unit}&runtime=tflite")
    return (answer or {}).get("label")


def treated(server: LiveServer) -> str | None:
    """Return an installation in treatment, once there is one.

    The first stage takes one in a hundred or fewer: of 400 there was sometimes none.
    """
    for number in range(3000):
        path = f"/models/recyclables/update?device=phone-{number}&runtime=tflite"
        answer = server.call("GET", path)
        if answer and (answer["enrolment"] or {}).get("arm") == "treatment":
            return f"phone-{number}"
    return None


def wait_for(server: LiveServer, is_so: object) -> None:
    deadline = time.monotonic() + 120
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < deadline, server.log()[-5000:]
        time.sleep(0.1)

"""Rollouts through the calls of people and the periodic look, with events as devices send them."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.console.actions import create_staff_token
from server.delivery.decision_set import holder
from server.domain.assignment import Installation, assign
from server.domain.errors import Conflict
from server.domain.rollout_policy import RolloutPolicy
from server.domain.rollout_verdict import Evidence, judge_rollout
from server.domain.stages import TRANSITIONS
from server.registry.models import Model, ModelVersion
from server.rollouts import actions, delivering, queries, staging
from server.rollouts.models import ImmutableRowChanged, Override, Release, Rollout
from server.telemetry import actions as telemetry
from tests.support.factories import make_model, make_version, publish, release
from worker.pipelines import rollouts as worker

pytestmark = pytest.mark.django_db

QUICK = {"min_hours": 0, "min_installations": 5, "needs_feedback": False}


@pytest.fixture
def model() -> Model:
    made = make_model()
    release(make_version(made))
    return made


def begin(version: ModelVersion, **values: Any) -> Rollout:
    """Draft, start, sign: devices are offered the candidate from here on."""
    policy = {**QUICK, "stages_bp": [1000, 5000], **values.pop("policy", {})}
    rollout = staging.create_rollout(version=version, policy=policy, **values)
    staging.start_rollout(rollout=rollout)
    publish(version.model)
    rollout.refresh_from_db()
    return rollout


def poll(client: Client, unit: str, **query: str) -> dict[str, Any]:
    holder.refresh()
    asked = {"device": unit, "runtime": "tflite", **query}
    answer = client.get("/api/v1/models/recyclables/update", asked)
    return answer.json() if answer.content else {}


def units(rollout: Rollout, arm: str, count: int) -> list[str]:
    """Return installations that the pure function puts into the arm now."""
    state = holder.refresh().models["recyclables"].channels["production"].state
    names = (f"unit-{number}" for number in range(200_000))
    found = (name for name in names if assign(state, Installation(name)).arm == arm)
    return [next(found) for _ in range(count)]


def report(rollout: Rollout, arm: str, names: list[str], *kinds: str, **data: Any) -> None:
    """Send what devices of an arm send, and count it."""
    release = rollout.candidate if arm == "treatment" else rollout.incumbent
    label = release.label if release else ""
    events = [
        {
            "event_id": str(uuid.uuid4()), "device": name, "type": kind, "model": "recyclables",
            "channel": "production", "label": label,
            "enrolment": {"rollout": rollout.key, "arm": arm},
            "occurred_at": timezone.now().isoformat(), "data": data,
        }
        for name in names
        for kind in kinds
    ]  # fmt: skip
    for start in range(0, len(events), 100):
        receipt = telemetry.record_events(events[start : start + 100], may_report=lambda _: True)
        assert not receipt.rejected
    telemetry.drain()


def look(now: dt.datetime | None = None) -> None:
    worker.look(now=now or timezone.now())


def healthy(rollout: Rollout, count: int = 6) -> None:
    for arm in ("treatment", "control"):
        report(rollout, arm, units(rollout, arm, count), "assigned", "activated",
               "first_inference")  # fmt: skip


def test_a_good_candidate_grows_stage_by_stage_and_becomes_everybodys(client, model):
    rollout = begin(make_version(model))
    assert (rollout.state, rollout.coverage_bp, rollout.incumbent.label) == ("running", 1000, "v1")
    assert queries.incumbent(model, "production").label == "v1"
    treated, controlled = units(rollout, "treatment", 1)[0], units(rollout, "control", 1)[0]
    assert poll(client, treated)["enrolment"] == {"rollout": rollout.key, "arm": "treatment"}
    assert poll(client, treated)["label"] == "v2"
    assert poll(client, controlled)["enrolment"] == {"rollout": rollout.key, "arm": "control"}
    assert poll(client, controlled)["label"] == "v1"

    look()
    rollout.refresh_from_db()
    assert rollout.stage == 0
    assert "installations with a first inference" in rollout.decisions.first().sentence
    healthy(rollout)
    look()
    rollout.refresh_from_db()
    assert (rollout.stage, rollout.coverage_bp) == (1, 5000)
    # Never two stages on the same evidence: the next one wants installations of its own.
    look()
    rollout.refresh_from_db()
    assert (rollout.state, rollout.stage) == ("running", 1)
    assert poll(client, treated)["label"] == "v2"

    # Far behind those who joined in the stage before, whatever the nonce.
    for arm in ("treatment", "control"):
        report(rollout, arm, units(rollout, arm, 300)[-8:], "assigned", "activated",
               "first_inference")  # fmt: skip
    look()
    rollout.refresh_from_db()
    assert rollout.state == "promoted"
    assert queries.incumbent(model, "production").label == "v2"
    assert poll(client, controlled) | {"enrolment": None} == poll(client, controlled)
    assert poll(client, controlled)["label"] == "v2"
    publish(model)
    verbs = [one.verb for one in rollout.decisions.order_by("number") if one.verb]
    assert verbs == ["start", "advance", "promote"]


def test_a_candidate_that_does_not_load_is_rolled_back_and_the_decision_can_be_taken_again(
    client, model
):
    rollout = begin(make_version(model))
    treated = units(rollout, "treatment", 30)
    report(rollout, "treatment", treated, "assigned")
    report(rollout, "treatment", treated, "failed", failure="load_failure", code="load")
    report(rollout, "control", units(rollout, "control", 30), "assigned", "activated")
    look()
    rollout.refresh_from_db()
    assert rollout.state == "rolled_back"
    decision = rollout.decisions.first()
    assert (decision.verb, decision.rule) == ("roll_back", "guardrail")
    again = judge_rollout(Evidence.load(decision.evidence), RolloutPolicy.read(decision.policy))
    assert json.loads(json.dumps(again.dump())) == decision.verdict
    with pytest.raises(ImmutableRowChanged):
        decision.save()
    # Those that have seen the candidate's counter take the incumbent under a newer label only.
    publish(model)
    answer = poll(client, treated[0])
    assert (answer["label"], answer["version"], answer["enrolment"]) == ("v3", 1, None)
    assert answer["revoked"] == []
    counters = list(Release.objects.order_by("label_number").values_list("counter", flat=True))
    assert counters == [1, 2, 3]


def test_a_kill_ends_the_rollout_at_once_and_what_waits_with_it(client, model):
    rollout = begin(make_version(model))
    waiting = staging.queue_rollout(rollout=staging.create_rollout(version=make_version(model)))
    treated = units(rollout, "treatment", 1)[0]
    candidate = poll(client, treated)["artifact"]["sha256"]
    serving = actions.kill(model=model, reason="answers nonsense")
    # Before anything is signed: the incumbent, and the candidate among the revoked.
    answer = poll(client, treated)
    assert (answer["label"], answer["version"]) == ("v1", 1)
    assert candidate in answer["revoked"]
    assert client.get(f"/api/v1/artifacts/{candidate}").status_code == 410
    publish(model)
    assert (serving.label, poll(client, treated)["label"]) == ("v3", "v3")
    for one in (rollout, waiting):
        one.refresh_from_db()
        assert one.state == "rolled_back"
    with pytest.raises(Conflict) as raised:
        staging.create_rollout(version=rollout.version)
    assert raised.value.code == "version_revoked"
    # Nothing is under way any more: the next kill is one of what everybody runs.
    assert actions.kill(model=model) is None


def test_a_first_release_rolls_out_beside_nothing_and_its_end_sends_devices_home(client):
    model = make_model()
    rollout = begin(make_version(model))
    control, treated = units(rollout, "control", 1)[0], units(rollout, "treatment", 1)[0]
    answer = poll(client, control)
    assert (answer["kind"], answer["label"], answer["artifact"]) == ("none", None, None)
    assert answer["enrolment"] == {"rollout": rollout.key, "arm": "control"}
    assert poll(client, treated)["label"] == "v1"
    assert poll(client, units(rollout, None, 1)[0]) == {}
    staging.roll_back_rollout(rollout=rollout)
    assert poll(client, treated) == {}
    publish(model)
    assert poll(client, treated)["kind"] == "rollback_to_embedded"
    assert not queries.waits_for_person(model, "production")


def test_a_first_release_is_promoted_beside_apps_that_have_no_model(client):
    rollout = begin(make_version(make_model()), policy={"needs_feedback": False})
    report(rollout, "treatment", units(rollout, "treatment", 6), "assigned", "first_inference")
    look()
    rollout.refresh_from_db()
    assert rollout.stage == 0
    for _ in range(2):
        report(rollout, "treatment", units(rollout, "treatment", 40), "assigned", "first_inference")
        report(rollout, "control", units(rollout, "control", 40), "assigned")
        look()
        rollout.refresh_from_db()
    assert rollout.state == "promoted", rollout.decisions.first().sentence
    assert poll(client, "anybody")["label"] == "v1"


def test_one_is_under_way_one_waits_and_the_newest_takes_its_place(model):
    first = begin(make_version(model))
    second = staging.queue_rollout(rollout=staging.create_rollout(version=make_version(model)))
    third = staging.queue_rollout(rollout=staging.create_rollout(version=make_version(model)))
    second.refresh_from_db()
    assert (second.state, third.state) == ("superseded", "queued")
    with pytest.raises(Conflict) as raised:
        actions.release_version(version=make_version(model))
    assert raised.value.code == "rollout_open"
    with pytest.raises(Conflict) as raised:
        staging.start_rollout(rollout=third)
    assert raised.value.code == "rollout_open"
    staging.roll_back_rollout(rollout=first)
    look()
    third.refresh_from_db()
    # v2 was the first candidate, v3 the incumbent again; what never started used no label.
    assert (third.state, third.candidate.label, third.incumbent.label) == ("running", "v4", "v3")


def test_what_is_refused_says_why_with_a_code(model):
    version = make_version(model)
    rollout = begin(version)
    refusals = {
        "coverage_lowered": lambda: staging.change_rollout(
            rollout=rollout, policy={"stages_bp": [100, 500]}
        ),
        "rollout_frozen": lambda: staging.change_rollout(rollout=rollout, policy={"margin": 0.5}),
        "identical_release": lambda: staging.create_rollout(
            version=queries.incumbent(model, "production").version
        ),
        "verb_not_allowed": lambda: staging.resume_rollout(rollout=rollout),
    }
    for code, act in refusals.items():
        with pytest.raises(Conflict) as raised:
            act()
        assert raised.value.code == code
    staging.advance_rollout(rollout=rollout)
    with pytest.raises(Conflict) as raised:
        staging.advance_rollout(rollout=rollout)
    assert raised.value.code == "last_stage"
    staging.roll_back_rollout(rollout=rollout)
    for act in (staging.advance_rollout, staging.change_rollout, staging.start_rollout):
        with pytest.raises(Conflict) as raised:
            act(rollout=rollout)
        assert raised.value.code == "rollout_finished"


def test_approvals_come_from_others_and_let_what_waits_start(model, django_user_model):
    actions.set_delivery_policy(model=model, policy={"approvals": {"production": 1}})
    author, other = (django_user_model.objects.create_user(name) for name in ("author", "other"))
    rollout = staging.create_rollout(version=make_version(model), actor=author)
    with pytest.raises(Conflict) as raised:
        staging.start_rollout(rollout=rollout)
    assert raised.value.code == "approval_missing"
    staging.queue_rollout(rollout=rollout, actor=author)
    with pytest.raises(Conflict) as raised:
        staging.approve_rollout(rollout=rollout, actor=author)
    assert raised.value.code == "own_rollout"
    staging.approve_rollout(rollout=rollout, actor=other)
    rollout.refresh_from_db()
    assert rollout.state == "running"


def test_a_look_that_somebody_was_quicker_than_changes_nothing(model):
    rollout = begin(make_version(model))
    healthy(rollout)
    rollout.refresh_from_db()
    late = staging.judge(rollout=rollout, now=timezone.now())
    assert late.verdict.verb == "advance"
    staging.pause_rollout(rollout=rollout)
    assert staging.record_look(look=late, now=timezone.now()) is None
    rollout.refresh_from_db()
    assert (rollout.state, rollout.stage) == ("paused", 0)


def test_an_outage_skips_no_stage_and_the_deadline_keeps_the_incumbent(model):
    rollout = begin(
        make_version(model),
        policy={"stages_bp": [1000, 2000, 5000], "min_hours": 24, "deadline_days": 5,
                "max_data_age_hours": 2000},
    )  # fmt: skip
    healthy(rollout)
    day = dt.timedelta(days=1)
    stages = []
    for after in (0, 3, 3, 3):
        look(timezone.now() + after * day)
        rollout.refresh_from_db()
        stages.append(rollout.stage)
    assert stages == [0, 1, 1, 1]
    look(timezone.now() + 6 * day)
    rollout.refresh_from_db()
    assert rollout.state == "expired"
    assert queries.incumbent(model, "production").version.number == 1


def test_overrides_the_holdout_and_the_list_are_signed_and_never_analysed(client, model):
    old = queries.incumbent(model, "production").version
    newer = release(make_version(model)).version
    staging.set_override(model=model, channel="production", device="desk-1", version=old)
    staging.set_golden(model=model, channel="production", version=old)
    actions.set_delivery_policy(model=model, policy={"holdout_bp": 10_000})
    publish(model)
    pinned = poll(client, "desk-1")
    assert (pinned["version"], pinned["label"], pinned["enrolment"]) == (1, "v3", None)
    assert poll(client, "anybody")["label"] == "v4"
    actions.set_delivery_policy(model=model, policy={"holdout_bp": 0})
    rollout = begin(make_version(model), allow_list=["desk-2"])
    answer = poll(client, "desk-2")
    assert (answer["label"], answer["enrolment"]) == (rollout.candidate.label, None)
    assert poll(client, "desk-1")["label"] == "v3"
    # Back among the others, it has to be given a label that its counter takes.
    staging.roll_back_rollout(rollout=rollout)
    staging.remove_override(override=Override.objects.get(device="desk-1"))
    publish(model)
    back = poll(client, "desk-1")
    release_now = queries.incumbent(model, "production")
    assert (back["version"], back["label"]) == (newer.number, release_now.label)
    assert release_now.counter == max(Release.objects.values_list("counter", flat=True))


def test_a_recall_of_either_arm_ends_the_rollout(model):
    for is_candidate in (True, False):
        release(make_version(model))
        rollout = begin(make_version(model))
        version = rollout.version if is_candidate else rollout.incumbent.version
        actions.recall_version(version=version)
        rollout.refresh_from_db()
        assert rollout.state == "rolled_back"
        served = queries.incumbent(model, "production")
        assert served.version_id not in {version.pk, rollout.version_id}


def test_every_installation_is_where_the_pure_function_says_whatever_it_echoes(client, model):
    rollout = begin(make_version(model), targeting=[
        {"attribute": "app_version", "operator": "version_at_least", "values": ["2.0"]},
    ])  # fmt: skip
    state = holder.refresh().models["recyclables"].channels["production"].state
    echoes = ["", f"{rollout.key}:treatment", f"{rollout.key}:control", "9:treatment"]
    for number in range(400):
        unit, echo = f"phone-{number}", echoes[number % 4]
        attributes = {"app_version": "2.1"} if number % 3 else {}
        expected = assign(state, Installation(unit, attributes, echo))
        answer = poll(client, unit, enrolled=echo, **attributes)
        assert answer["label"] == expected.release
        arm = {"rollout": expected.rollout, "arm": expected.arm} if expected.arm else None
        assert answer["enrolment"] == arm


def test_staff_are_told_every_rule_that_was_tried(client, model, django_user_model):
    rollout = begin(make_version(model))
    user = django_user_model.objects.create_superuser("boss")
    _, token = create_staff_token(user=user)
    unit = units(rollout, "treatment", 1)[0]
    path = f"/api/v1/models/recyclables/explain?device={unit}&runtime=tflite"
    answer = client.get(path, headers={"Authorization": f"Bearer {token}"}).json()
    rules = [step["rule"] for step in answer["steps"]]
    assert rules[:8] == [
        "kill", "override", "compatibility", "holdout", "running", "enrolled", "targeting", "split",
    ]  # fmt: skip
    assert "the treatment arm" in answer["steps"][7]["reason"]
    assert answer["manifest"]["label"] == rollout.candidate.label


def test_the_way_to_devices_follows_the_policy_and_says_why(model):
    small = delivering.deliver_version(version=make_version(model), reason="gate passed")
    assert small.startswith("Released on production as v2, to everyone at once.")
    assert "0 installations were seen" in small
    actions.set_delivery_policy(model=model, policy={"rollout": "staged"})
    staged = delivering.deliver_version(version=make_version(model), reason="gate passed")
    assert staged.startswith("Rolls out on production in stages (v3, rollout")
    behind = delivering.deliver_version(version=make_version(model), reason="gate passed")
    assert "until the one under way" in behind
    assert [one.state for one in Rollout.objects.order_by("pk")] == ["running", "queued"]


def test_where_approvals_are_asked_for_no_night_releases_to_everybody(client, model):
    actions.set_delivery_policy(
        model=model, policy={"rollout": "direct", "approvals": {"production": 1}}
    )
    done = delivering.deliver_version(version=make_version(model), reason="gate passed")
    assert done.startswith("Waits as rollout")
    assert "asks for approvals" in done
    assert poll(client, "anybody")["label"] == "v1"


VERBS = ("start", "queue", "pause", "resume", "advance", "rollback", "kill")


@pytest.fixture
def staff(client, django_user_model):
    user = django_user_model.objects.create_superuser("boss")
    _, token = create_staff_token(user=user)
    return {"Authorization": f"Bearer {token}"}


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(verbs=st.lists(st.sampled_from(VERBS), min_size=1, max_size=7))
def test_states_change_along_allowed_verbs_only_over_rest(client, model, staff, verbs):
    for rollout in Rollout.objects.filter(state__in=("running", "paused", "queued")):
        staging.kill_rollout(rollout=rollout)
    body = {"model": "recyclables", "version": make_version(model).number,
            "policy": {"stages_bp": [100, 5000]}}  # fmt: skip
    made = client.post("/api/v1/rollouts", body, content_type="application/json", headers=staff)
    assert client.get("/api/v1/rollouts?state=drafted", headers=staff).json()["code"] == (
        "invalid_state"
    )
    assert made.status_code == 201, made.content
    rollout, stage = made.json(), 0
    for verb in verbs:
        path = f"/api/v1/rollouts/{rollout['id']}/{verb}"
        answer = client.post(path, {}, content_type="application/json", headers=staff)
        name = {"rollback": "roll_back"}.get(verb, verb)
        target = TRANSITIONS[rollout["state"]].get(name)
        is_last = verb == "advance" and stage == 1
        if target is None or is_last:
            assert answer.status_code == 409
            assert answer.json()["code"] in {"verb_not_allowed", "rollout_finished", "last_stage"}
            continue
        assert answer.status_code == 200, answer.content
        stage += verb == "advance"
        # What is queued starts at once where nothing else is under way.
        expected = "running" if verb == "queue" else target
        assert (answer.json()["state"], answer.json()["stage"]) == (expected, stage)
        rollout = answer.json()
    numbers = [
        one["number"]
        for one in client.get(f"/api/v1/rollouts/{rollout['id']}/decisions", headers=staff).json()[
            "results"
        ]
    ]
    assert numbers == sorted(set(numbers), reverse=True)


def test_the_command_starts_steers_and_shows(model, capsys):
    version = make_version(model)
    call_command("rollout", "recyclables")
    assert "There is no rollout yet." in capsys.readouterr().out
    call_command("rollout", "recyclables", "start", str(version.number), "--reason", "try it")
    shown = capsys.readouterr().out
    assert "(v2), running" in shown
    assert "0 installations were seen in the last 7 days" in shown
    call_command("rollout", "recyclables", "pause")
    call_command("rollout", "recyclables", "rollback")
    assert "rolled back" in capsys.readouterr().out
    call_command("rollout", "recyclables", "kill")
    assert queries.incumbent(model, "production") is None

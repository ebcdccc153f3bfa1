"""Models, their policies, versions and releases over REST."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.console.actions import create_staff_token
from server.delivery.decision_set import holder
from server.http.models import AuditEntry
from server.registry import actions
from server.registry.models import ModelVersion, PublishedVersionChanged
from server.rollouts import actions as rollouts
from server.training import actions as training
from tests.support.factories import make_model, make_version, release


class Operator:
    """Calls as staff and returns status and body."""

    def __init__(self, client: Any, token: str) -> None:
        self.client = client
        self.headers = {"Authorization": f"Bearer {token}"}

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        answer = self.client.generic(
            method,
            f"/api/v1{path}",
            data="" if body is None else json.dumps(body),
            content_type="application/json",
            headers=self.headers,
        )
        return answer.status_code, answer.json() if answer.content else None


@pytest.fixture
def call(db: Any, client: Any, django_user_model: Any) -> Operator:
    user = django_user_model.objects.create_superuser("boss")
    return Operator(client, create_staff_token(user=user)[1])


def test_a_model_keeps_its_labels_in_order_and_fills_its_policy_in(call: Operator) -> None:
    body = {"slug": "birds", "labels": ["wren", "robin"], "training_policy": {"margin": 0.05}}
    status, model = call("POST", "/models", body)
    assert status == 201
    assert model["labels"] == ["wren", "robin"]
    assert (model["training_policy"]["margin"], model["training_policy"]["seed"]) == (0.05, 1)
    assert call("POST", "/models", body)[1]["code"] == "model_exists"
    assert call("GET", "/models")[1]["results"] == [model]


def test_a_model_without_labels_is_for_uploads_and_never_trains(call: Operator) -> None:
    status, model = call("POST", "/models", {"slug": "boxes", "labels": []})
    assert (status, model["labels"]) == (201, [])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"slug": "Birds", "labels": ["a", "b"]}, "invalid_slug"),
        ({"slug": "birds", "labels": ["a", "a"]}, "invalid_labels"),
        ({"slug": "birds", "labels": ["a", " "]}, "invalid_input"),
        ({"slug": "birds"}, "invalid_input"),
        ({"slug": "birds", "labels": "a,b"}, "invalid_input"),
        ({"slug": 7, "labels": ["a", "b"]}, "invalid_input"),
        ({"slug": "birds", "labels": ["a", "b"], "is_open": "yes"}, "invalid_input"),
        ({"slug": "birds", "labels": ["a", "b"], "lables": []}, "invalid_input"),
        ({"slug": "birds", "labels": ["a", "b"], "training_policy": {"x": 1}}, "invalid_policy"),
        ({"slug": "birds", "labels": ["a"], "training_policy": {"seed": 2**40}}, "invalid_policy"),
        ({"slug": "birds", "labels": ["a"], "training_policy": {"margin": "1"}}, "invalid_policy"),
        (
            {"slug": "birds", "labels": ["a"], "training_policy": {"architecture": "\0"}},
            "invalid_input",
        ),
        ([], "invalid_input"),
        (None, "invalid_input"),
    ],
)
def test_what_is_no_model_is_refused_by_name(call: Operator, body: Any, code: str) -> None:
    status, problem = call("POST", "/models", body)
    assert (status, problem["code"]) == (400, code)
    assert problem["detail"]


def test_changing_a_model_changes_what_is_given_and_devices_hear_of_it(call: Operator) -> None:
    model = make_model("birds", is_open=False, training_policy={"seed": 3})
    epoch = holder.refresh().epoch
    status, changed = call(
        "PATCH", "/models/birds", {"training_policy": {"margin": 0.1}, "is_open": True}
    )
    assert status == 200
    assert (changed["training_policy"]["margin"], changed["training_policy"]["seed"]) == (0.1, 3)
    assert holder.refresh().epoch > epoch
    assert holder.current().models["birds"].is_open
    call("PATCH", "/models/birds", {"training_policy": {"seed": None}})
    model.refresh_from_db()
    assert model.training_policy == {"margin": 0.1}
    late = call("PATCH", "/models/birds", {"nightly_at": "25:00"})
    assert late[1]["code"] == "invalid_nightly_at"
    assert call("PATCH", "/models/birds", {"labels": ["x"]})[0] == 400
    assert AuditEntry.objects.filter(action="model.change", actor_name="boss").exists()


def test_a_retired_model_is_gone_for_devices_and_does_not_come_back(
    call: Operator, client: Any
) -> None:
    version = make_version(make_model("birds"))
    rollouts.release_version(version=version)
    assert call("PATCH", "/models/birds", {"is_retired": True})[1]["is_retired"]
    holder.refresh()
    poll = client.get("/api/v1/models/birds/update?device=d&runtime=tflite")
    assert (poll.status_code, poll.json()["code"]) == (410, "model_retired")
    assert call("PATCH", "/models/birds", {"is_retired": False})[1]["code"] == "model_retired"
    assert call("POST", "/models/birds/train")[1]["code"] == "model_retired"


def test_numbers_are_given_once_and_a_published_version_never_changes(call: Operator) -> None:
    model = make_model("birds")
    failed = actions.draft_version(
        model=model, source=ModelVersion.Source.TRAINED, labels=["a"], lineage={}
    )
    actions.fail_version(version=failed, reason="not good")
    version = make_version(model)
    assert (failed.number, version.number) == (1, 2)
    version.notes = "better than it is"
    with pytest.raises(PublishedVersionChanged):
        version.save()
    status, detail = call("GET", "/models/birds/versions/2")
    assert status == 200
    assert {variant["precision"] for variant in detail["variants"]} == {"float16", "int8"}
    assert call("GET", "/models/birds/versions/9")[1]["code"] == "unknown_version"
    listed = call("GET", "/models/birds/versions")[1]["results"]
    assert [row["number"] for row in listed] == [2, 1]


def test_a_run_is_followed_by_the_lines_since_the_last(call: Operator) -> None:
    model = make_model("birds")
    status, run = call("POST", "/models/birds/train")
    assert (status, run["state"]) == (202, "queued")
    assert call("POST", "/models/birds/train")[1]["run"] == run["id"]
    row = training.start_run(run_id=run["id"])
    training.write_line(run=row, stage="snapshot", message="20 photos.")
    training.report_progress(run=row, stage="training", step=1, total=4, metrics={"loss": 0.5})
    path = run["url"].removeprefix("/api/v1")
    seen = call("GET", path)[1]
    assert (seen["state"], seen["stage"], seen["step"], seen["total_steps"]) == (
        "running", "training", 1, 4,
    )  # fmt: skip
    assert [line["message"] for line in seen["lines"]] == ["20 photos."]
    assert [point["metrics"] for point in seen["curve"]] == [{"loss": 0.5}]
    last = seen["curve"][-1]["id"]
    training.report_progress(run=row, stage="training", step=2, total=4, metrics={"loss": 0.4})
    newer = call("GET", f"{path}?after={last}")[1]
    assert newer["lines"] == []
    assert [point["step"] for point in newer["curve"]] == [2]
    assert call("GET", f"{path}?after=x")[0] == 400
    assert call("GET", f"/runs?model={model.slug}&state=running")[1]["count"] == 1
    assert call("GET", "/runs?state=nonsense")[0] == 400
    training.succeed_run(run=row, outcome="Done.")
    assert call("POST", f"{path}/cancel")[1]["code"] == "run_finished"


def test_releases_rollback_and_kill_over_rest(call: Operator) -> None:
    model = make_model("birds")
    for _ in range(2):
        make_version(model)
    path = "/models/birds/channels/production"
    assert call("GET", f"{path}/releases")[1]["code"] == "unknown_channel"
    assert call("POST", f"{path}/releases", {"version": 1})[1]["label"] == "v1"
    assert call("POST", f"{path}/releases", {"version": 2})[1]["label"] == "v2"
    assert call("POST", f"{path}/releases", {"version": 2})[1]["code"] == "identical_release"
    assert call("POST", f"{path}/releases", {"version": 3})[1]["code"] == "unknown_version"
    assert call("POST", f"{path}/releases", {"version": "2"})[0] == 400
    assert call("POST", "/models/birds/channels/Beta/releases", {"version": 2})[1]["code"] == (
        "invalid_channel"
    )
    back = call("POST", f"{path}/rollback", {"reason": "worse on wrens"})[1]
    assert (back["label"], back["version"], back["kind"]) == ("v3", 1, "rollback")
    assert call("POST", f"{path}/rollback", {"to": 2})[1]["code"] == "not_an_earlier_version"
    serving = call("GET", "/models/birds/channels")[1]
    assert [(row["name"], row["serves"]["label"]) for row in serving] == [("production", "v3")]
    assert call("POST", "/models/birds/kill", {})[1] == {"now_serving": None}
    assert call("POST", "/models/birds/kill", {})[1]["code"] == "nothing_released"
    labels = [row["label"] for row in call("GET", f"{path}/releases")[1]["results"]]
    assert labels == ["v3", "v2", "v1"]


def test_keys_open_their_models_until_revoked(call: Operator, client: Any) -> None:
    for slug in ("birds", "cats"):
        release(make_version(make_model(slug, is_open=False)))
    status, key = call("POST", "/keys", {"name": "Birds app", "models": ["birds"]})
    assert status == 201
    assert call("POST", "/keys", {"name": "x", "models": ["dogs"]})[1]["code"] == "unknown_model"
    assert "key" not in call("GET", "/keys")[1]["results"][0]

    def poll(slug: str) -> int:
        holder.refresh()
        path = f"/api/v1/models/{slug}/update?device=d&runtime=tflite"
        return client.get(path, headers={"X-App-Key": key["key"]}).status_code

    assert (poll("birds"), poll("cats")) == (200, 401)
    assert call("DELETE", f"/keys/{key['id']}")[0] == 204
    assert poll("birds") == 401
    assert call("DELETE", "/keys/999999")[1]["code"] == "unknown_key"

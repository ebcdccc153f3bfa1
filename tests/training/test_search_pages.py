"""A budget search in the console and over HTTP: asked for, shown, and a finalist taken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.urls import reverse

from server.domain.budgets import Candidate
from server.registry.queries import training_policy
from server.training import actions, searches
from server.training.models import TrainingRun
from tests.support.factories import make_model

pytestmark = pytest.mark.django_db
FILE = Candidate(
    network="mobilenet_v2_0.35_160", depth="block_13_expand_relu", precision="float16",
    parameters=180_000, multiply_adds=25_000_000, size_bytes=400_000, correct=150, count=200,
    latency_ms=1.25, test_correct=40, test_count=50, round=3,
)  # fmt: skip
DROPPED = Candidate(
    network="mobilenet_v2_1.0_224", depth="features", parameters=2_300_000,
    multiply_adds=300_000_000, size_bytes=2_300_000, correct=90, count=100, latency_ms=12.0,
    round=1, dropped="2 others did better in round 1",
)  # fmt: skip


@pytest.fixture
def run() -> TrainingRun:
    """Return a search that has ended with a file and one that was dropped."""
    model = make_model(labels=("glass", "metal"), training_policy={"variants": ["coreml:float16"]})
    queued = searches.request_search(model=model, budget={"max_size_bytes": 500_000})
    run = actions.start_run(run_id=queued.pk)
    searches.record_result(
        search=searches.get_search(run),
        candidates=[FILE.to_json(), DROPPED.to_json()],
        chosen=0,
        sentence="It is the only one that keeps to the budget.",
    )
    actions.succeed_run(run=run, outcome="It is the only one that keeps to the budget.")
    run.refresh_from_db()
    return run


def test_the_page_shows_plot_reasons_and_every_candidate(admin_client: Any, run: Any) -> None:
    page = admin_client.get(reverse("admin:training_trainingrun_change", args=[run.pk]))
    text = page.content.decode()
    assert "It is the only one that keeps to the budget." in text
    assert text.count('class="nf-bubble nf-bubble-2"') == 2  # the point and its mark
    assert "75.0 % (68.6–80.5, n = 200)" in text
    assert "80.0 % (67.0–88.8, n = 50)" in text
    assert "round 1: 2 others did better in round 1" in text
    assert "1.25 ms" in text
    assert "about 12.00 ms" in text
    assert text.count("Use this") == 1


def test_a_button_makes_a_finalist_the_policy(admin_client: Any, run: Any) -> None:
    page = reverse("admin:training_trainingrun_adopt", args=[run.pk, 0])
    assert "architecture becomes mobilenet_v2_0.35_160" in admin_client.get(page).content.decode()
    admin_client.post(page)
    run.model.refresh_from_db()
    policy = training_policy(run.model)
    assert (policy.architecture, policy.depth) == (FILE.network, FILE.depth)
    assert policy.variants == ("tflite:float16", "coreml:float16")
    dropped = reverse("admin:training_trainingrun_adopt", args=[run.pk, 1])
    assert admin_client.post(dropped).status_code == 404


def test_the_form_asks_for_a_budget_and_queues_the_search(admin_client: Any, run: Any) -> None:
    page = reverse("admin:training_trainingrun_search")
    refused = admin_client.post(page, {"model": run.model_id})
    assert refused.status_code == 409
    assert "give at least one of" in refused.content.decode()
    sent = {"model": run.model_id, "min_accuracy": "0.8", "networks": "mobilenet_v2_0.35_96"}
    assert admin_client.post(page, sent).status_code == 302
    queued = run.model.runs.get(state="queued")
    assert searches.get_search(queued).budget == {
        "min_accuracy": 0.8, "networks": ["mobilenet_v2_0.35_96"], "finalists": 3,
    }  # fmt: skip
    live = admin_client.get(reverse("admin:training_trainingrun_live", args=[queued.pk]))
    assert "at least 80.0 % of photos right" in live.content.decode().replace("80.0%", "80.0 %")


def test_over_http_a_search_is_asked_for_followed_and_taken(admin_client: Any, run: Any) -> None:
    def post(path: str, body: dict[str, Any]) -> Any:
        return admin_client.post(f"/api/v1/{path}", json.dumps(body), "application/json")

    asked = post(f"models/{run.model.slug}/searches", {"max_latency_ms": 2.5})
    assert asked.status_code == 202
    assert asked.json()["kind"] == "search"
    assert asked["Location"] == asked.json()["url"]
    nothing = post(f"models/{run.model.slug}/searches", {})
    assert (nothing.status_code, nothing.json()["code"]) == (400, "invalid_budget")
    found = admin_client.get(f"/api/v1/runs/{run.pk}/search").json()
    assert found["chosen"] == 0
    assert [one["dropped"] for one in found["candidates"]] == ["", DROPPED.dropped]
    assert post(f"runs/{run.pk}/search/adopt", {"candidate": 1}).json()["code"] == "not_a_finalist"
    assert post(f"runs/{run.pk}/search/adopt", {"candidate": 0}).status_code == 200

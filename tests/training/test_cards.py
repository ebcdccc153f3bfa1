"""The model card: as page and JSON, with counts, intervals, and weaknesses in sentences."""

from __future__ import annotations

import json

import numpy as np
import pytest
from django.urls import reverse

from server.domain.intervals import wilson
from server.photos.models import Photo
from server.registry import actions as registry
from server.registry.models import ModelVersion
from server.training import actions, golden
from server.training.cards import model_card
from tests.support.factories import LINEAGE, PREPROCESSING, make_model, make_version, release
from tests.training.test_snapshots import add_photos
from worker.ml import evaluation
from worker.pipelines import gating
from worker.pipelines.photos import split_sets
from worker.pipelines.variants import Reference

pytestmark = pytest.mark.django_db
LABELS = ("glass", "metal", "paper")


def reference_of(test, right):
    """Return answers to the test photos of which those in ``right`` are right."""
    said = np.where(right, test.targets, (test.targets + 1) % len(LABELS))
    probabilities = np.eye(len(LABELS), dtype=np.float32)[said] * 0.8 + 0.1
    return Reference(None, [], test.targets, probabilities, [], None)


@pytest.fixture
def version():
    """Return a version measured on real snapshots, wrong on every photo of metal but one."""
    model = make_model(labels=(*LABELS, "wood"))
    for person in range(8):
        for label in LABELS:
            add_photos(model, label, 2, contributor=f"p{person}")
    add_photos(model, "wood", 2)
    Photo.objects.filter(contributor__in=["p0", "p1", "p2", "p3"]).update(camera="Acme Nine")
    Photo.objects.filter(contributor__in=["p4", "p5", "p6"]).update(camera="Bolt 2")
    run = actions.start_run(run_id=actions.request_run(model=model).pk)
    snapshot = actions.freeze_snapshot(run=run)
    test = split_sets(snapshot)["test"]
    right = np.array([entry.label != "metal" for entry in test.entries])
    metrics = gating.measure(reference_of(test, right), test, snapshot)
    draft = registry.draft_version(
        model=model,
        source=ModelVersion.Source.TRAINED,
        labels=snapshot.labels,
        lineage={**LINEAGE, "choice": {"sentence": "Frozen features won by 2 points."}},
        architecture="mobilenet_v2_0.35_224",
        preprocessing=PREPROCESSING,
    )
    registry.add_variant(
        version=draft,
        runtime="tflite",
        precision="int8",
        is_shipped=False,
        refusal="loses 9 points",
        metrics={**evaluation.share_of(right), "latency_ms": {"p50": 1.0}},
    )
    run.version = draft
    run.save()
    published = registry.publish_version(version=draft, metrics=metrics)
    actions.succeed_run(run=run, outcome="Version 1 is good.")
    return published


def test_every_figure_of_the_card_has_its_count_and_interval(version):
    card = model_card(version)
    json.dumps(card, default=str)
    overall = card["metrics"]["overall"]
    rows = card["metrics"]["per_label"]
    cameras = card["metrics"]["per_camera"]
    for found in (overall, *cameras, card["variants"][0]["figures"]):
        expected = wilson(found["correct"], found["count"])
        assert found["interval"] == [expected.lower, expected.upper]
    for row in rows:
        assert row["recall_interval"] == list(vars(wilson(row["found"], row["shown"])).values())
        assert row["precision_interval"] == list(vars(wilson(row["found"], row["said"])).values())
    assert sum(row["shown"] for row in rows) == overall["count"]
    assert sum(row["count"] for row in cameras) <= overall["count"]


def test_the_card_tells_of_the_data_and_of_how_it_was_split(version):
    data = model_card(version)["data"]
    assert sum(data["photos"].values()) == 48
    assert sum(data["contributors"].values()) == 8
    assert "By contributor" in data["split_rule"]
    by_label = {row["label"]: row for row in data["labels"]}
    assert (by_label["glass"]["accepted"], by_label["glass"]["maturity"]) == (16, "prototype")
    assert (by_label["wood"]["accepted"], by_label["wood"]["maturity"]) == (2, "untrained")
    assert sum(sum(split.values()) for split in data["cameras"].values()) == 42
    assert data["received"]


def test_the_card_says_where_the_version_is_weak(version):
    card = model_card(version)
    told = "\n".join(card["weaknesses"])
    assert "metal" in told
    assert "0.0%" in told
    assert "prototype" in told
    assert "wood 2" in told
    assert "Most often mistaken: metal for paper" in told
    assert "tflite int8 is not shipped: loses 9 points" in told
    assert any("whatever the photo shows" in sentence for sentence in card["limits"])
    assert card["training"]["choice"] == "Frozen features won by 2 points."
    assert card["details"]["maturity"] == "prototype"
    assert card["provenance"]["seed"] == LINEAGE["seed"]


def test_a_photo_withdrawn_later_changes_no_card(version):
    before = model_card(version)
    from server.photos.actions import withdraw_photo

    for photo in Photo.objects.filter(state="accepted")[:5]:
        withdraw_photo(photo=photo, actor=None)
    assert model_card(version) == before


def test_golden_photos_are_measured_and_judged_on_beside_the_rest(version):
    model = version.model
    tests = Photo.objects.filter(snapshot_entries__split="test", model=model).distinct()
    glass = list(tests.filter(label__name="glass").values_list("pk", flat=True))
    golden.pin_golden(model=model, photo_ids=glass, actor=None)
    registry.change_model(model=model, training_policy={"gate_on": "golden"}, actor=None)
    run = actions.start_run(run_id=actions.request_run(model=model).pk)
    snapshot = actions.freeze_snapshot(run=run)
    test = split_sets(snapshot)["test"]
    right = np.array([entry.label != "metal" for entry in test.entries])
    reference = reference_of(test, right)
    metrics = gating.measure(reference, test, snapshot)
    assert metrics["golden"]["count"] == len(glass)
    assert metrics["golden"]["accuracy"] == 1.0
    assert metrics["accuracy"] < 1.0
    policy = registry_policy(model)
    judged = gating.judge(model, snapshot.labels, reference, test, policy, None)
    assert (judged.judged_on, judged.verdict.test_photos) == ("golden", len(glass))
    golden.unpin_golden(model=model, photo_ids=glass, actor=None)
    fresh = split_sets(snapshot)["test"]
    for entry in fresh.entries:
        entry.is_golden = False
    judged = gating.judge(model, snapshot.labels, reference, fresh, policy, None)
    assert judged.judged_on == "test"
    assert "golden photos" in judged.hold, "a person has to release"


def registry_policy(model):
    from server.registry.queries import get_model, training_policy

    return training_policy(get_model(model.slug))


def test_page_and_json_show_the_same_card(version, admin_client):
    answer = admin_client.get(f"/api/v1/models/{version.model.slug}/versions/1/card")
    assert answer.status_code == 200
    card = answer.json()
    page = admin_client.get(reverse("admin:training_trainingrun_card", args=[version.pk]))
    assert page.status_code == 200
    text = page.content.decode().replace("&#x27;", "'").replace("&amp;", "&")
    for sentence in card["weaknesses"] + card["limits"]:
        assert sentence in text, sentence
    assert f"n = {card['metrics']['overall']['count']}" in text
    version_page = reverse("admin:registry_modelversion_change", args=[version.pk])
    shown = admin_client.get(version_page).content.decode()
    assert reverse("admin:training_trainingrun_card", args=[version.pk]) in shown
    assert "prototype" in shown
    listed = admin_client.get("/api/v1/models").json()["results"][0]
    assert listed["photos"] == {"glass": 16, "metal": 16, "paper": 16, "wood": 2}
    assert listed["maturity"] == "untrained"
    row = admin_client.get(f"/api/v1/models/{version.model.slug}/versions").json()["results"][0]
    assert row["figures"]["count"] == card["metrics"]["overall"]["count"]
    assert row["maturity"] == "prototype"
    missing = admin_client.get(f"/api/v1/models/{version.model.slug}/versions/9/card")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_version")


def test_a_version_of_which_little_is_known_has_a_card_too(admin_client):
    made = make_version(make_model("birds"))
    release(made)
    card = model_card(made)
    assert card["data"] is None
    assert card["metrics"]["overall"]["count"] == 40
    assert any("uploaded" in sentence for sentence in card["weaknesses"])
    assert card["provenance"]["attested_by"] == "worker"
    assert card["provenance"]["releases"] == ["production v1"]
    page = admin_client.get(reverse("admin:training_trainingrun_card", args=[made.pk]))
    assert b"Nothing is known here" in page.content

"""A budget search on real photos: features cached, finalists measured, one made the policy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from server.domain.errors import DomainError
from server.jobs import actions as jobs
from server.photos.models import PhotoEmbedding
from server.registry.queries import training_policy
from server.training import searches
from tests.support.data import data_folder
from tests.support.factories import make_model
from tests.worker.pipelines.pictures import bring, fit, like_imagenet
from worker.context import JobContext
from worker.pipelines import searching

pytestmark = [pytest.mark.django_db, pytest.mark.ml]

SMALL = "mobilenet_v2_0.35_96"
LARGER = "mobilenet_v2_0.35_128"


@pytest.fixture(autouse=True)
def _weights(settings: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings.NIGHTFERRY_WEIGHTS = data_folder("weights")
    settings.NIGHTFERRY_DATA = tmp_path_factory.getbasetemp() / "embedders-of-searches"


@pytest.fixture
def model() -> Any:
    made = make_model(
        labels=("glass", "paper"),
        training_policy={"max_contributor_share": 1.0, "variants": ["tflite:float32"]},
    )
    bring(made, like_imagenet, 24, people=12)
    return made


def search(model: Any, **budget: Any) -> Any:
    run = searches.request_search(model=model, budget=budget)
    job = jobs.claim(job_id=run.job_id, owner="test")
    try:
        searching.run(JobContext(job))
    finally:
        run.refresh_from_db()
    return run


def test_a_search_chooses_within_the_budget_and_a_finalist_becomes_the_policy(model: Any) -> None:
    run = search(model, max_size_bytes=700_000, networks=[SMALL, LARGER], finalists=2)
    found = searches.get_search(run)
    assert run.state == "succeeded", run.outcome
    chosen = found.candidates[found.chosen]
    assert chosen["size_bytes"] <= 700_000
    assert chosen["test_count"] > 0
    assert found.sentence.startswith(f"{chosen['network']} at {chosen['depth']}")
    files = [one for one in found.candidates if one["precision"]]
    assert len(files) == 6
    assert {one["precision"] for one in files} == {"float32", "float16", "int8"}
    dropped = [one for one in found.candidates if not one["precision"]]
    # Two networks at six depths each: who is no finalist says why.
    assert len(dropped) == 10
    assert all(one["dropped"] for one in dropped)
    embedded = PhotoEmbedding.objects.count()

    # The next search finds every feature.
    again = search(model, min_accuracy=0.5, networks=[SMALL, LARGER], finalists=1)
    assert PhotoEmbedding.objects.count() == embedded
    assert again.state == "succeeded", again.outcome

    searches.adopt_candidate(search=found, place=found.chosen, actor=None)
    model.refresh_from_db()
    policy = training_policy(model)
    assert policy.architecture == chosen["network"]
    assert policy.depth == chosen["depth"]
    assert policy.variants == (f"tflite:{chosen['precision']}",)
    trained, _ = fit(model)
    assert trained.model.count_params() == chosen["parameters"]
    with pytest.raises(DomainError, match="was dropped"):
        searches.adopt_candidate(search=found, place=len(found.candidates) - 1, actor=None)


def test_a_budget_that_nothing_keeps_to_names_the_nearest(model: Any) -> None:
    with pytest.raises(DomainError, match="The nearest is") as caught:
        search(model, max_size_bytes=1000, networks=[SMALL])
    assert caught.value.code == "budget_not_met"
    assert SimpleNamespace(**searches.get_search(model.runs.get()).candidates[0]).dropped

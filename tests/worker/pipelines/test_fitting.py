"""Each cell of the practitioners' table, on photos that were made to fall into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server import blobs
from server.photos import actions as photos
from server.rollouts import actions as rollouts
from server.training.models import SnapshotEntry
from tests.support.data import data_folder
from tests.support.factories import make_model, make_version
from tests.worker.pipelines.pictures import bring, fit, like_imagenet, unlike_imagenet
from worker.ml import embeddings
from worker.ml import training as ml_training
from worker.pipelines import choices

pytestmark = [pytest.mark.django_db, pytest.mark.ml, pytest.mark.timeout(900)]

POLICY = {
    "architecture": "mobilenet_v2_0.35_224",
    "max_contributor_share": 1.0,
    "validation_share": 0.3,
    "refuse_blurred": False,
}
MANY = {"fine_tune_min_photos_per_label": 10}
THINGS, MOSAICS = ("glass", "paper"), ("cold", "warm")
Make = Callable[[str, int], Sequence[bytes]]


@pytest.fixture(autouse=True)
def _weights(settings: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings.NIGHTFERRY_WEIGHTS = data_folder("weights")
    # Shared by the tests: the network is exported once.
    settings.NIGHTFERRY_DATA = Path(tmp_path_factory.getbasetemp()) / "embedders-of-tests"


def model_with(make: Make, labels: Sequence[str], count: int, **policy: Any) -> Any:
    model = make_model(labels=labels, training_policy={**POLICY, **policy})
    bring(model, make, count)
    return model


def test_few_photos_of_things_get_a_classifier_on_the_top_features() -> None:
    trained, lines = fit(model_with(like_imagenet, THINGS, 25))
    tuning = trained.facts["choice"]
    assert (tuning["strategy"], tuning["depth"]) == ("linear", "features")
    assert tuning["sentence"] in lines
    assert "A linear classifier on the top features is right on" in tuning["sentence"]
    assert {trial["depth"] for trial in tuning["trials"]} > {"features", "block_3_expand_relu"}


def test_few_photos_unlike_imagenet_get_a_network_that_is_cut_lower() -> None:
    trained, lines = fit(model_with(unlike_imagenet, MOSAICS, 40))
    tuning = trained.facts["choice"]
    assert tuning["strategy"] == "lower"
    assert tuning["depth"] in {"block_3_expand_relu", "block_6_expand_relu"}
    assert "the network is cut there" in tuning["sentence"]
    assert tuning["sentence"] in lines
    # The network that ships ends there: a twentieth of the whole.
    assert trained.model.count_params() < 20_000
    names = {layer.name for layer in trained.model.layers}
    assert "block_10_expand" not in names


def test_many_photos_of_things_try_fine_tuning() -> None:
    trained, _ = fit(model_with(like_imagenet, ("metal", "plastic"), 32, **MANY))
    choice = trained.facts["choice"]
    assert "Fine-tuning what lies above block_6_expand_relu is right on" in choice["sentence"]
    check_kept_if_it_won(choice, "fine_tune")
    assert (choice["strategy"] == "fine_tune") == bool(choice["backbone"])


def test_a_night_after_fine_tuning_trains_the_last_layer_alone() -> None:
    model = model_with(like_imagenet, THINGS, 25, strategy="fine_tune")
    first, _ = fit(model)
    publish(model, first)
    bring(model, lambda label, count: like_imagenet(label, 25 + count)[25:], 2)
    second, lines = fit(model)
    assert second.facts["choice"]["strategy"] == "fine_tune"
    assert second.facts["choice"]["sentence"].startswith("As measured on ")
    assert second.facts["choice"]["backbone"] == first.facts["choice"]["backbone"]
    assert not any("fine_tuning" in line for line in lines)
    tuned, refitted = (embeddings.below_head(one.model) for one in (first, second))
    for before, after in zip(tuned.get_weights(), refitted.get_weights(), strict=True):
        assert np.array_equal(before, after)
    last = [one.model.get_layer("probabilities").get_weights()[0] for one in (first, second)]
    assert not np.array_equal(*last)

    # Until there are a fifth more photos, or the policy changes.
    known, count = first.facts["choice"]["circumstances"], first.facts["choice"]["photo_count"]
    assert choices.measured_before(model, known, count + 1) is not None
    assert choices.measured_before(model, known, round(count * 1.2) + 1) is None
    assert choices.measured_before(model, {**known, "views": 5}, count + 1) is None
    # What learnt from a photo that was withdrawn since is not built upon.
    taught = SnapshotEntry.objects.filter(snapshot=first.facts["choice"]["snapshot"])
    gone = taught.exclude(split="test").select_related("photo").first()
    photos.withdraw_photo(photo=gone.photo, actor=None)
    assert choices.measured_before(model, known, count - 1) is None


def publish(model: Any, trained: Any) -> None:
    """Make a version of what was trained the incumbent, as a run does."""
    version = make_version(model)
    source = blobs.store().put_bytes(ml_training.save_keras(trained.model))
    type(version).objects.filter(pk=version.pk).update(
        lineage=trained.facts, source_sha256=source.sha256
    )
    rollouts.release_version(version=version)


def test_many_photos_unlike_imagenet_try_a_network_from_scratch() -> None:
    trained, _ = fit(model_with(unlike_imagenet, MOSAICS, 100, **MANY))
    choice = trained.facts["choice"]
    assert "Training a network from scratch is right on" in choice["sentence"]
    assert "where the network is cut" in choice["sentence"]
    check_kept_if_it_won(choice, "scratch")


def check_kept_if_it_won(choice: dict[str, Any], tried: str) -> None:
    """Hold the choice against its two last trials: what there was, and what the table names."""
    present, challenger = choice["trials"][-2:]
    assert challenger["strategy"] == tried
    gain = challenger["accuracy"] - present["accuracy"]
    assert f"{abs(gain) * 100:.1f} points" in choice["sentence"]
    if choice["strategy"] == tried:
        assert gain > choice["circumstances"]["fine_tune_min_gain"]
        assert "it is kept" in choice["sentence"]
    else:
        assert "it is not kept" in choice["sentence"]

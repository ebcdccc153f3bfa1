"""A model of any signature is run by the names of its inputs and outputs."""

from __future__ import annotations

from pathlib import Path

import nightferry
import numpy as np
import pytest
from nightferry import ModelClient
from nightferry.preprocessing import Preprocessing, load_image
from nightferry.testing import DEFAULT_PREPROCESSING, FakeServer

from tests.support.data import data_folder

from .support import NAME


@pytest.fixture
def weights() -> Path:
    return data_folder("weights")


@pytest.fixture
def unlabelled(server: FakeServer, client: ModelClient, weights: Path) -> ModelClient:
    """Publish a real quantised network as if it were no classifier."""
    content = (weights / "tf2_mobilenet_v2_1.0_224_ptq.tflite").read_bytes()
    server.publish(NAME, content, [])
    client.get_model(NAME)
    return client


def test_arrays_go_in_and_come_out_by_name(unlabelled: ModelClient, weights: Path) -> None:
    predictor = unlabelled.load(NAME, num_threads=1)
    assert predictor.inputs == {"input": {"shape": (1, 224, 224, 3), "dtype": "uint8"}}
    assert predictor.outputs == {"Identity": {"shape": (1, 1001), "dtype": "uint8"}}
    photo = predictor.prepare(weights / "check_photos" / "parrot.jpg")
    answer = predictor.run({"input": photo})["Identity"]
    assert (answer.shape, answer.dtype) == ((1, 1001), np.float32)
    labels = (weights / "imagenet_labels.txt").read_text().splitlines()
    assert labels[int(answer.argmax())] == "macaw"
    # Integers are taken as they are: the same steps of the scale give the same answer.
    scale, zero_point = 0.007843137718737125, 127
    steps = np.clip(np.round(photo / np.float32(scale)) + zero_point, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(predictor.run({"input": steps})["Identity"], answer)


def test_prepare_is_the_manifest_s_preprocessing(unlabelled: ModelClient, weights: Path) -> None:
    path = weights / "check_photos" / "parrot.jpg"
    wanted = Preprocessing.from_manifest(DEFAULT_PREPROCESSING).apply(load_image(path))
    np.testing.assert_array_equal(unlabelled.load(NAME).prepare(path), wanted)


def test_what_is_no_classifier_predicts_nothing(
    unlabelled: ModelClient, server: FakeServer, weights: Path
) -> None:
    photo = weights / "check_photos" / "parrot.jpg"
    with pytest.raises(nightferry.NotAClassifierError, match="no labels") as refused:
        unlabelled.load(NAME).predict(photo)
    assert (refused.value.code, refused.value.retryable) == ("not_a_classifier", False)
    labels = (weights / "imagenet_labels.txt").read_text().splitlines()
    server.amend(NAME, label="v9", labels=labels, signature={"task": "other"})
    unlabelled.sync(NAME)
    model = unlabelled.get_model(NAME)
    assert (model.label, model.is_classifier) == ("v9", False)
    with pytest.raises(nightferry.NotAClassifierError, match="Use run"):
        unlabelled.load(NAME).predict(photo)


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ({}, "takes input; what was given is nothing"),
        ({"image": np.zeros((1, 224, 224, 3), np.uint8)}, "what was given is image"),
        ({"input": np.zeros((224, 224, 3), np.uint8)}, "has the shape"),
        ({"input": np.zeros((1, 96, 96, 3), np.uint8)}, r"takes \[1, 224, 224, 3\]"),
        ({"input": np.zeros((1, 224, 224, 3), np.complex64)}, "is of complex64"),
    ],
)
def test_what_does_not_fit_is_told(
    unlabelled: ModelClient, inputs: dict[str, object], word: str
) -> None:
    with pytest.raises(nightferry.PredictionError, match=word):
        unlabelled.load(NAME).run(inputs)


def test_a_run_counts_like_a_prediction(unlabelled: ModelClient, server: FakeServer) -> None:
    predictor = unlabelled.load(NAME, num_threads=1)
    for _ in range(10):
        predictor.run({"input": np.zeros((1, 224, 224, 3), np.uint8)})
    assert unlabelled.status(NAME).phase == "confirmed"
    unlabelled.flush_events()
    kinds = [event["type"] for event in server.events]
    assert kinds.count("first_inference") == kinds.count("latency") == 1

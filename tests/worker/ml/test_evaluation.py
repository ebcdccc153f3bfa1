"""Numbers about networks carry their count and their uncertainty, or are not given."""

from __future__ import annotations

import json

import numpy as np
import pytest

from worker.ml import evaluation
from worker.ml.errors import ModelUnusable


def test_wilson_interval_by_published_examples() -> None:
    # Newcombe 1998 (Statistics in Medicine 17), table I, method 3.
    for successes, count, lower, upper in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        interval = evaluation.wilson_interval(successes, count)
        assert interval == pytest.approx([lower, upper], abs=5e-5)


def test_measures_of_a_known_confusion() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]], dtype=np.float32)
    result = evaluation.measure(probabilities, [0, 0, 1, 1], ["cat", "dog"])
    json.dumps(result)
    assert result["accuracy"] == 0.5
    assert result["count"] == 4
    assert result["confusion"] == [[1, 1], [1, 1]]
    cat = result["per_label"]["cat"]
    assert (cat["precision"], cat["recall"]) == (0.5, 0.5)
    assert (cat["count"], cat["said"], cat["correct"]) == (2, 2, 1)
    assert cat["recall_interval"] == evaluation.wilson_interval(1, 2)
    assert result["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.3]).mean())


def test_no_photos_give_no_accuracy() -> None:
    result = evaluation.measure(np.empty((0, 2), np.float32), [], ["cat", "dog"])
    assert result["accuracy"] is None
    assert result["interval"] == [0.0, 1.0]


def test_a_label_that_was_never_named_has_no_precision() -> None:
    probabilities = np.array([[0.9, 0.1]], dtype=np.float32)
    result = evaluation.measure(probabilities, [0], ["cat", "dog"])
    dog = result["per_label"]["dog"]
    assert (dog["precision"], dog["recall"], dog["count"], dog["said"]) == (None, None, 0, 0)
    assert dog["recall_interval"] == [0.0, 1.0]


def test_answers_that_are_not_finite_are_no_answers() -> None:
    images = [np.zeros((4, 4, 3), np.uint8)]

    def model(
        batch: object, *, training: bool
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        del batch, training
        return np.full((1, 2), np.nan, dtype=np.float32)

    with pytest.raises(ModelUnusable) as caught:
        evaluation.predict_keras(model, images)
    assert caught.value.code == "outputs_not_finite"


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(ModelUnusable, match="cannot load"):
        evaluation.predict_tflite(b"TFL3" * 100, [np.zeros((4, 4, 3), np.uint8)])

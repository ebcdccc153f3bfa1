"""On handwritten digits the convolutional network beats the perceptron, as it is known to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from server.photos.datasets import read_dataset
from tests.support.data import data_folder
from worker.ml import evaluation, training
from worker.ml.architectures import find_architecture

TRAINED, HELD, TESTED, EPOCHS = 900, 100, 1000, 4


@pytest.mark.ml
def test_convolutions_beat_the_perceptron_on_a_thousand_digits() -> None:
    dataset = read_dataset(data_folder("mnist"))
    assert dataset is not None
    chosen = np.random.default_rng(0).permutation(len(dataset.tiles))
    tiles = [dataset.tiles[index] for index in chosen[: TRAINED + HELD + TESTED]]
    images = [
        np.frombuffer(tile.rows, dtype=np.uint8).reshape(28, 28, 1).repeat(3, axis=2)
        for tile in tiles
    ]
    truth = np.array([dataset.labels.index(tile.label) for tile in tiles])

    def accuracy(name: str) -> float:
        epochs: list[Any] = []
        model = training.train_from_scratch(
            images[:TRAINED],
            truth[:TRAINED],
            validation=(images[TRAINED : TRAINED + HELD], truth[TRAINED : TRAINED + HELD]),
            label_count=10,
            architecture=find_architecture(name),
            seed=1,
            progress=lambda *_: epochs.append(None),
            should_stop=lambda: len(epochs) >= EPOCHS,
        )
        answers = evaluation.predict_keras(model, images[TRAINED + HELD :])
        return float((answers.argmax(axis=1) == truth[TRAINED + HELD :]).mean())

    perceptron, convolutions = accuracy("mnist_mlp"), accuracy("mnist_cnn")
    assert convolutions > perceptron > 0.7
    assert convolutions > 0.88

"""Heads and small networks learn from real photos, repeatably, and say when they cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.worker.ml.conftest import BACKBONE, LABELS, SMALL_SIDE, Photos
from worker.ml import evaluation, training
from worker.ml.architectures import find_architecture
from worker.ml.embeddings import Embedder
from worker.ml.errors import TrainingImpossible
from worker.ml.weights import find_weights


@pytest.mark.ml
def test_a_head_on_frozen_features_learns_and_becomes_a_network(
    load_photos: Callable[[int, int], Photos], weights_folder: Path, tmp_path: Path
) -> None:
    photos = load_photos(20, 224)
    architecture = find_architecture(BACKBONE)
    weights = find_weights(BACKBONE, weights_folder, allow_download=False)
    features = Embedder(architecture, weights, tmp_path).embed(photos.images)
    assert features.shape == (120, architecture.feature_size)
    # A guard: a network that sees no difference would agree with everything below.
    assert features.std(axis=0).mean() > 0.05

    seen: list[tuple[str, dict[str, float]]] = []
    train, held, test = slice(0, 72), slice(72, 96), slice(96, 120)
    head = training.train_head(
        features[train],
        photos.indexes[train],
        validation=(features[held], photos.indexes[held]),
        label_count=len(LABELS),
        seed=1,
        progress=lambda stage, _step, _total, metrics: seen.append((stage, metrics)),
    )
    right = head.probabilities(features[test]).argmax(axis=1) == photos.indexes[test]
    assert right.mean() > 0.5
    assert {stage for stage, _ in seen} == {"regularisation", "head"}
    assert seen[-1][1]["loss"] < 1.8
    assert seen[-1][1]["accuracy"] > 0.7

    model = training.assemble(architecture, weights, head, LABELS)
    whole = evaluation.predict_keras(model, photos.images[test])
    assert whole == pytest.approx(head.probabilities(features[test]), abs=1e-4)
    loaded = training.load_keras(training.save_keras(model))
    assert training.weights_digest(loaded) == training.weights_digest(model)


def _clusters(seed: int, counts: list[int]) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = np.random.default_rng(0).normal(size=(len(counts), 12))
    return (centres[labels] + generator.normal(size=(len(labels), 12))).astype(np.float32), labels


def test_validation_photos_choose_the_regularisation(silent: Callable[..., Any]) -> None:
    features, labels = _clusters(1, [30, 30, 30])
    held = _clusters(2, [200, 200, 200])
    head = training.train_head(
        features, labels, validation=held, label_count=3, seed=0, progress=silent
    )
    tried = [entry for entry in head.history if "validation_loss" in entry]
    best = min(tried, key=lambda entry: entry["validation_loss"])
    assert len(tried) == len(training.REGULARISATIONS)
    assert head.history[-1]["l2"] == best["l2"]


def test_a_rare_label_is_not_forgotten(silent: Callable[..., Any]) -> None:
    features, labels = _clusters(1, [300, 12])
    test, truth = _clusters(3, [200, 200])
    head = training.train_head(features, labels, label_count=2, seed=0, progress=silent)
    called = head.probabilities(test).argmax(axis=1)
    recalls = [(called[truth == label] == label).mean() for label in (0, 1)]
    assert min(recalls) > 0.7


def test_few_photos_and_many_lead_to_the_same_kind_of_answer(silent: Callable[..., Any]) -> None:
    """Fewer photos than features are solved in another basis: the solution may not differ."""
    features, labels = _clusters(1, [4, 4])
    wide = np.hstack([features, features[:, ::-1], np.zeros((8, 40), np.float32)])
    narrow = training.train_head(wide, labels, label_count=2, seed=0, progress=silent)
    twice = training.train_head(
        np.tile(wide, (9, 1)), np.tile(labels, 9), label_count=2, seed=0, progress=silent
    )
    assert narrow.probabilities(wide) == pytest.approx(twice.probabilities(wide), abs=1e-3)


@pytest.mark.parametrize(
    ("labels", "label_count", "code"),
    [([0, 0, 2, 2], 3, "label_without_photos"), ([0, 0, 0, 0], 1, "too_few_labels")],
)
def test_what_cannot_be_trained_is_said(
    labels: list[int], label_count: int, code: str, silent: Callable[..., Any]
) -> None:
    features = np.eye(4, dtype=np.float32)
    with pytest.raises(TrainingImpossible) as caught:
        training.train_head(
            features, np.array(labels), label_count=label_count, seed=0, progress=silent
        )
    assert caught.value.code == code


def test_a_progress_that_raises_ends_the_training() -> None:
    class Cancelled(Exception):
        pass

    def cancel(*_: object) -> None:
        raise Cancelled

    features, labels = _clusters(1, [10, 10])
    with pytest.raises(Cancelled):
        training.train_head(features, labels, label_count=2, seed=0, progress=cancel)


@pytest.mark.ml
def test_a_small_network_learns_from_nothing_and_again_the_same() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat(digits.images[..., None] * 15, 3, axis=3).astype(np.uint8)
    images = images.repeat(4, axis=1).repeat(4, axis=2)
    architecture = find_architecture("small_cnn").at(SMALL_SIDE)
    epochs: list[dict[str, float]] = []

    def train() -> Any:
        epochs.clear()
        return training.train_from_scratch(
            list(images[:250]),
            digits.target[:250],
            validation=(list(images[400:450]), digits.target[400:450]),
            label_count=10,
            architecture=architecture,
            seed=7,
            progress=lambda _stage, _step, _total, metrics: epochs.append(metrics),
            should_stop=lambda: len(epochs) >= 8,
        )

    model = train()
    right = evaluation.predict_keras(model, list(images[500:700])).argmax(axis=1)
    assert (right == digits.target[500:700]).mean() > 0.4
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert "validation_accuracy" in epochs[-1]
    assert training.weights_digest(train()) == training.weights_digest(model)

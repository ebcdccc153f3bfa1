"""What pruning, clustering and filter pruning leave, and that training on holds to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.worker.ml.conftest import SMALL_SIDE, Photos
from worker.ml import evaluation
from worker.ml.architectures import find_architecture
from worker.ml.compression import RECIPES, Recipe, TrainingPhotos, compress, compress_once
from worker.ml.compression.folding import fold_batch_norms
from worker.ml.compression.kernels import compressible, to_linear
from worker.ml.errors import CompilationFailed
from worker.ml.preprocessing import default_preprocessing
from worker.ml.training import weights_digest

if TYPE_CHECKING:
    import keras

pytestmark = pytest.mark.ml
SIZE = default_preprocessing(SMALL_SIDE)


@pytest.fixture
def shown(small_model: keras.Model, small_photos: Photos) -> TrainingPhotos:
    answers = evaluation.predict_keras(small_model, small_photos.images)
    return TrainingPhotos(small_photos.images, small_photos.indexes, answers, SIZE)


def tuned(model: keras.Model, recipe: Recipe, shown: TrainingPhotos) -> keras.Model:
    return compress(model, recipe, shown, epochs=2, seed=4, progress=lambda *_: None)


def kernels_of(model: keras.Model) -> list[Any]:
    found = [np.asarray(layer.kernel) for layer in compressible(model)]
    assert found
    return found


def test_folding_changes_no_answer(small_photos: Photos) -> None:
    """Of the network that most models are made of, with depthwise layers and short cuts."""
    network = find_architecture("mobilenet_v2_0.35_224").build(SMALL_SIDE * 2)
    generator = np.random.default_rng(2)
    weights = [
        generator.uniform(0.5, 1.5, one.shape) if one.ndim == 1 else one
        for one in network.get_weights()
    ]
    network.set_weights(weights)
    photos = np.stack([np.kron(one, np.ones((2, 2, 1))) for one in small_photos.images[:4]])
    before = np.asarray(network(photos))
    folded = fold_batch_norms(network)
    assert not [one for one in folded.layers if type(one).__name__ == "BatchNormalization"]
    error = np.abs(np.asarray(folded(photos)) - before).max()
    assert error < 1e-3 * before.std()


@pytest.mark.parametrize("kind", ["pruned50", "pruned75"])
def test_noughts_stay_nought_while_the_network_is_trained_on(
    small_model: keras.Model, shown: TrainingPhotos, kind: str
) -> None:
    recipe = RECIPES["coreml", kind]
    for kernel in kernels_of(tuned(small_model, recipe, shown)):
        assert (kernel == 0).mean() == pytest.approx(recipe.sparsity, abs=1e-3)


@pytest.mark.parametrize("kind", ["palette4", "palette2", "palette1", "joint"])
def test_a_palette_stays_one(small_model: keras.Model, shown: TrainingPhotos, kind: str) -> None:
    recipe = RECIPES["coreml", kind]
    for kernel in kernels_of(tuned(small_model, recipe, shown)):
        values = np.unique(kernel[kernel != 0])
        assert len(values) <= recipe.palette
        # As the file stores them.
        assert (values == values.astype(np.float16).astype(np.float32)).all()
        if recipe.sparsity:
            assert (kernel == 0).mean() >= recipe.sparsity - 1e-3


def test_filter_pruning_makes_a_smaller_network_that_answers_alike(
    small_model: keras.Model, shown: TrainingPhotos
) -> None:
    made = compress_once(small_model, RECIPES["tflite", "filter_pruned50"], shown.images, SIZE)
    assert made.count_params() < 0.7 * small_model.count_params()
    answers = evaluation.predict_keras(made, shown.images)
    spread = shown.answers.std(axis=0).max()
    assert spread > 0.01
    assert np.sqrt(((answers - shown.answers) ** 2).mean()) < spread


def test_what_stays_makes_up_for_what_goes(small_model: keras.Model, shown: TrainingPhotos) -> None:
    recipe = RECIPES["coreml", "pruned50"]

    def error(images: Any) -> float:
        made = compress_once(small_model, recipe, images, SIZE)
        answers = evaluation.predict_keras(made, shown.images)
        return float(np.sqrt(((answers - shown.answers) ** 2).mean()))

    # Without photos the smallest weights go and nothing else changes.
    assert error(shown.images) < 0.7 * error([])


def test_the_same_photos_and_seed_give_the_same_weights(
    small_model: keras.Model, shown: TrainingPhotos
) -> None:
    first, second = (
        weights_digest(tuned(small_model, RECIPES["coreml", "palette4"], shown)) for _ in range(2)
    )
    assert first == second


def test_whole_steps_are_found_again() -> None:
    """Whoever looks for the largest weight of a column finds the scale: storing loses nothing."""
    drawn = np.random.default_rng(5).standard_t(4, (3, 3, 20, 30)) / 40
    kernel = drawn.astype(np.float32)
    stepped = to_linear(kernel, 8)
    columns = stepped.reshape(-1, 30).astype(np.float16).astype(np.float64)
    scales = (np.abs(columns).max(axis=0) / 127).astype(np.float16).astype(np.float64)
    steps = np.round(columns / scales)
    assert np.abs(steps * scales - columns).max() <= 2**-10 * np.abs(columns).max()
    assert np.sqrt(((stepped - kernel) ** 2).mean()) < 0.02 * kernel.std()


def test_a_network_inside_a_network_is_refused_by_name(small_model: keras.Model) -> None:
    import keras

    outer = keras.Sequential([keras.Input((SMALL_SIDE, SMALL_SIDE, 3)), small_model])
    with pytest.raises(CompilationFailed) as refused:
        compress_once(outer, RECIPES["coreml", "palette4"], [], SIZE)
    assert refused.value.code == "network_nested"
    assert small_model.name in refused.value.sentence


def test_cancelling_ends_it(small_model: keras.Model, shown: TrainingPhotos) -> None:
    def cancel(*_: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        compress(small_model, RECIPES["coreml", "joint"], shown, epochs=2, seed=4, progress=cancel)

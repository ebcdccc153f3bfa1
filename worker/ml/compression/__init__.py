"""Smaller networks of the same answers: pruning, filter pruning, weight sharing, integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from worker.ml.compression import filters, folding, kernels, tuning
from worker.ml.compression.photos import TrainingPhotos
from worker.ml.compression.recipes import RECIPES, Recipe
from worker.ml.errors import CompilationFailed
from worker.ml.preprocessing import Pixels, Preprocessing, to_input

if TYPE_CHECKING:
    import keras

__all__ = ["RECIPES", "Recipe", "TrainingPhotos", "compress", "compress_once"]

_FILTER_PHOTOS: Final = 64


def compress(
    model: keras.Model,
    recipe: Recipe,
    photos: TrainingPhotos,
    *,
    epochs: int,
    seed: int,
    progress: Callable[[str, int, int, dict[str, float]], None],
) -> keras.Model:
    """Return the network compressed by the recipe and trained on for ``epochs``.

    The same photos, seed and epochs give the same weights. Without epochs or photos it is what
    :func:`compress_once` gives.

    Raises :class:`~worker.ml.errors.CompilationFailed` where the network cannot be taken apart,
    :class:`~worker.ml.errors.TrainingImpossible` where training fails.
    """
    smaller = _take_apart(model, recipe, photos.images, photos.preprocessing)
    if not (recipe.is_tuned and epochs and len(photos.images)):
        kernels.compress_once(smaller, recipe)
        return smaller
    tuning.tune(smaller, recipe, photos, epochs=epochs, seed=seed, progress=progress)
    return smaller


def compress_once(
    model: keras.Model,
    recipe: Recipe,
    images: Sequence[Pixels],
    preprocessing: Preprocessing,
) -> keras.Model:
    """Return the network compressed by the recipe, not trained on.

    ``images`` say which filters matter; only filter pruning asks them.
    """
    smaller = _take_apart(model, recipe, images, preprocessing)
    kernels.compress_once(smaller, recipe)
    return smaller


def _take_apart(
    model: keras.Model,
    recipe: Recipe,
    images: Sequence[Pixels],
    preprocessing: Preprocessing,
) -> keras.Model:
    folded = folding.fold_batch_norms(model)
    if not recipe.filters:
        return folded
    if not len(images):
        message = "filter pruning needs photos that show which channels matter, and got none"
        raise CompilationFailed(message, code="calibration_missing")
    step = max(1, len(images) // _FILTER_PHOTOS)
    return filters.prune_filters(
        folded, recipe.filters, to_input(list(images)[::step][:_FILTER_PHOTOS], preprocessing)
    )

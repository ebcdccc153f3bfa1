"""Smaller networks of the same answers: pruning, filter pruning, weight sharing, integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from worker.ml.compression import compensation, filters, folding, kernels, tuning
from worker.ml.compression.photos import TrainingPhotos
from worker.ml.compression.recipes import RECIPES, Recipe
from worker.ml.errors import CompilationFailed
from worker.ml.preprocessing import Pixels, Preprocessing, to_input

if TYPE_CHECKING:
    import keras

__all__ = ["RECIPES", "Recipe", "TrainingPhotos", "compress", "compress_once"]

_PROBED_PHOTOS: Final = 32


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
    smaller = compress_once(model, recipe, photos.images, photos.preprocessing)
    if recipe.is_tuned and epochs and len(photos.images):
        tuning.tune(smaller, recipe, photos, epochs=epochs, seed=seed, progress=progress)
    return smaller


def compress_once(
    model: keras.Model,
    recipe: Recipe,
    images: Sequence[Pixels],
    preprocessing: Preprocessing,
) -> keras.Model:
    """Return the network compressed by the recipe, not trained on.

    ``images`` show what reaches each layer: weights that stay make up for those that go. Without
    any, the smallest weights go and nothing else changes; filter pruning then fails.
    """
    folded = folding.fold_batch_norms(model)
    step = max(1, len(images) // _PROBED_PHOTOS)
    photos = to_input(list(images)[::step][:_PROBED_PHOTOS], preprocessing) if len(images) else None
    if recipe.filters:
        if photos is None:
            message = "filter pruning needs photos that show which channels matter, and got none"
            raise CompilationFailed(message, code="calibration_missing")
        return filters.prune_filters(folded, recipe.filters, photos)
    if photos is None or recipe.linear_bits:
        kernels.compress_once(folded, recipe)
    else:
        compensation.compress_kernels(folded, recipe, photos)
    return folded

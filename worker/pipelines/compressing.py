"""Networks pruned or clustered for some of the kinds, trained on a version's own photos."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from worker.ml import evaluation
from worker.ml.compression import RECIPES, Recipe, TrainingPhotos, compress
from worker.pipelines import photos

if TYPE_CHECKING:
    from server.blobs import BlobStore
    from worker.ml.preprocessing import Preprocessing
    from worker.pipelines.reporting import Reporter

MOST_PHOTOS = 2000
"""Training photos that a network is trained on after compression, at most."""


class Compressor:
    """Makes each compressed network once, whichever kinds share it; photos are read when needed.

    ``load`` returns the training photos.
    """

    def __init__(
        self,
        model: Any,
        load: Callable[[], TrainingPhotos],
        *,
        epochs: int,
        seed: int,
        reporter: Reporter,
    ) -> None:
        """Compress ``model``, a Keras network, and train on for ``epochs``."""
        self._model = model
        self._load = load
        self._epochs = epochs
        self._seed = seed
        self._reporter = reporter
        self._photos: TrainingPhotos | None = None
        self._made: dict[Recipe, Any] = {}

    def network_for(self, runtime: str, precision: str) -> Any | None:
        """Return the network that the kind is compiled from; None where it is the model itself.

        Raises:
            MLError: the network cannot be compressed.

        """
        recipe = RECIPES.get((runtime, precision))
        if recipe is None or not recipe.is_tuned:
            return None
        if recipe not in self._made:
            self._made[recipe] = self._make(recipe, f"{runtime} {precision}")
        return self._made[recipe]

    def _make(self, recipe: Recipe, kind: str) -> Any:
        if self._photos is None:
            self._photos = self._load()
        count = len(self._photos.images)
        how = (
            f"training on for {self._epochs} epochs of {count} photos"
            if count and self._epochs
            else "no training after it"
        )
        self._reporter.say("compiling", f"{kind}: weights are taken away, {how}.")
        return compress(
            self._model,
            recipe,
            self._photos,
            epochs=self._epochs,
            seed=self._seed,
            progress=self._reporter.progress,
        )


def training_photos(
    model: Any, train: photos.PhotoSet, preprocessing: Preprocessing, store: BlobStore
) -> TrainingPhotos:
    """Return training photos, those of the earliest snapshots first, with the network's answers."""
    place = {entry.pk: index for index, entry in enumerate(train.entries)}
    chosen = photos.calibration_photos(train, MOST_PHOTOS)
    images = photos.load_images(chosen, preprocessing, store)
    targets = train.targets[[place[entry.pk] for entry in chosen]]
    answers = np.zeros((0, int(model.output_shape[-1])), dtype=np.float32)
    if images:
        answers = evaluation.predict_keras(model, images, preprocessing)
    return TrainingPhotos(images, np.asarray(targets, dtype=np.int64), answers, preprocessing)

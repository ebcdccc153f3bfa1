"""Training on after weights were taken away: masks, palettes and widths hold meanwhile.

The network learns the labels and, as much, the answers of the network it was made from
(distillation, Hinton et al. 2015, arXiv:1503.02531): it is to replace that one on devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.compression import kernels
from worker.ml.compression.compensation import palette_in
from worker.ml.determinism import pin_tensorflow
from worker.ml.errors import TrainingImpossible

if TYPE_CHECKING:
    import keras

    from worker.ml.compression.photos import TrainingPhotos
    from worker.ml.compression.recipes import Recipe

Progress = Callable[[str, int, int, dict[str, float]], None]

_BATCH: Final = 16
_LEARNING_RATE: Final = 3e-4
_HELD_OUT: Final = 5
_SHARE_OF_LABELS: Final = 0.25
_LEAST_RATE: Final = 0.05


def tune(
    model: keras.Model,
    recipe: Recipe,
    photos: TrainingPhotos,
    *,
    epochs: int,
    seed: int,
    progress: Progress,
) -> None:
    """Train a network on that was pruned or clustered by the recipe, in place.

    Noughts stay nought. A palette's values move as one: a value's gradient is the sum of those of
    its weights (Han et al. 2016, arXiv:1510.00149). A fifth of the photos is held out, and what
    stays is the epoch that does best on them, or the network as it came: with few photos
    training on may well make it worse. ``progress`` may raise.
    """
    tf = pin_tensorflow(seed)
    order = np.random.default_rng(seed).permutation(len(photos.images))
    held, shown = order[::_HELD_OUT], np.delete(order, np.s_[::_HELD_OUT])
    steps = math.ceil(len(shown) / _BATCH)
    trainer = _Trainer(tf, model, recipe, epochs * steps)
    generator = np.random.default_rng(seed)
    least, best = trainer.loss(photos, held), model.get_weights()
    for epoch in range(epochs):
        loss = 0.0
        for batch in np.array_split(generator.permutation(shown), steps):
            loss += trainer.step(photos, batch)
        if not math.isfinite(loss):
            message = "training on after compression did not come to a finite loss"
            raise TrainingImpossible(message)
        trainer.settle()
        found = trainer.loss(photos, held)
        if found < least:
            least, best = found, model.get_weights()
        figures = {"loss": loss / steps, "validation_loss": found}
        progress("compressing", epoch + 1, epochs, figures)
    model.set_weights(best)


class _Palette:
    """The values of one kernel as a variable of their own, and where each weight takes its."""

    def __init__(self, layer: Any, size: int) -> None:
        import keras

        self.layer = layer
        values, self.indexes = palette_in(layer, size)
        self.values = keras.Variable(values, name=f"{layer.name}_palette")
        self.size = size


class _Trainer:
    """One optimiser over everything that may move."""

    def __init__(self, tf: Any, model: keras.Model, recipe: Recipe, total_steps: int) -> None:
        import keras

        self._tf, self._model, self._total_steps = tf, model, max(1, total_steps)
        self._done = 0
        held = kernels.compressible(model)
        self._palettes = [_Palette(layer, recipe.palette) for layer in held if recipe.palette]
        self._masks = [
            (layer, tf.constant(np.asarray(layer.kernel) != 0, dtype=tf.float32))
            for layer in held
            if recipe.sparsity and not recipe.palette
        ]
        self._indexes = [tf.constant(palette.indexes.reshape(-1)) for palette in self._palettes]
        replaced = {id(palette.layer.kernel) for palette in self._palettes}
        self._free = [one for one in model.trainable_variables if id(one) not in replaced]
        self._optimiser = keras.optimizers.Adam(_LEARNING_RATE)
        self._optimiser.build([*self._free, *(palette.values for palette in self._palettes)])
        self._step = tf.function(self._calculate)

    def step(self, photos: TrainingPhotos, batch: npt.NDArray[np.intp]) -> float:
        """Take one step on these photos; return the loss before it."""
        tf = self._tf
        share = self._done / self._total_steps
        rate = _LEARNING_RATE * max(_LEAST_RATE, (1 + math.cos(math.pi * share)) / 2)
        self._optimiser.learning_rate.assign(rate)
        self._done += 1
        return float(
            self._step(
                tf.constant(photos.batch(batch)),
                tf.constant(photos.wanted(batch, _SHARE_OF_LABELS)),
            )
        )

    def loss(self, photos: TrainingPhotos, places: npt.NDArray[np.intp]) -> float:
        """Return the loss on these photos."""
        losses = []
        for start in range(0, len(places), _BATCH):
            batch = places[start : start + _BATCH]
            answers = np.asarray(self._model(photos.batch(batch), training=False))
            wanted = photos.wanted(batch, _SHARE_OF_LABELS)
            losses.append(-(wanted * np.log(np.clip(answers, 1e-7, 1.0))).sum(axis=1))
        return float(np.concatenate(losses).mean())

    def settle(self) -> None:
        """Leave values in the kernels that float16 has, so that what is stored is this network."""
        for palette in self._palettes:
            values = np.asarray(palette.values)
            palette.layer.kernel.assign(kernels.from_palette(values, palette.indexes))

    def _calculate(self, images: Any, wanted: Any) -> Any:
        tf = self._tf
        with tf.GradientTape() as tape:
            answers = tf.clip_by_value(self._model(images, training=False), 1e-7, 1.0)
            loss = -tf.reduce_mean(tf.reduce_sum(wanted * tf.math.log(answers), axis=1))
        clustered = [palette.layer.kernel for palette in self._palettes]
        gradients = tape.gradient(loss, [one.value for one in (*self._free, *clustered)])
        own = gradients[len(self._free) :]
        summed = [
            self._sum(gradient, index, palette.size)
            for gradient, index, palette in zip(own, self._indexes, self._palettes, strict=True)
        ]
        self._optimiser.apply([*gradients[: len(self._free)], *summed])
        self._enforce()
        return loss

    def _sum(self, gradient: Any, index: Any, size: int) -> Any:
        """Return each value's gradient; weights that are nought count for none."""
        tf = self._tf
        places = tf.where(index < 0, size, index)
        return tf.math.unsorted_segment_sum(tf.reshape(gradient, [-1]), places, size + 1)[:size]

    def _enforce(self) -> None:
        tf = self._tf
        for layer, mask in self._masks:
            layer.kernel.assign(layer.kernel.value * mask)
        for palette, index in zip(self._palettes, self._indexes, strict=True):
            padded = tf.concat([palette.values.value, [0.0]], axis=0)
            weights = tf.gather(padded, tf.where(index < 0, palette.size, index))
            palette.layer.kernel.assign(tf.reshape(weights, palette.layer.kernel.shape))

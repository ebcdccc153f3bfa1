"""Training on after weights were taken away: masks, palettes and widths hold meanwhile.

The network learns the labels and, as much, the answers of the network it was made from
(distillation, Hinton et al. 2015, arXiv:1503.02531): it is to replace that one on devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.compression import kernels
from worker.ml.determinism import pin_tensorflow
from worker.ml.errors import TrainingImpossible

if TYPE_CHECKING:
    import keras

    from worker.ml.compression.photos import TrainingPhotos
    from worker.ml.compression.recipes import Recipe

Progress = Callable[[str, int, int, dict[str, float]], None]

_BATCH: Final = 32
_LEARNING_RATE: Final = 3e-4
_SHARE_OF_LABELS: Final = 0.5
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
    """Prune or cluster the folded network's kernels in steps and train the rest, in place.

    The sparsity rises from epoch to epoch (Zhu and Gupta 2017, arXiv:1710.01878); a palette is
    chosen before the last of them and then trained itself: a value's gradient is the sum of
    those of its weights (Han et al. 2016, arXiv:1510.00149). ``progress`` may raise.
    """
    tf = pin_tensorflow(seed)
    held = {layer.name: _Held(layer) for layer in kernels.compressible(model)}
    steps = math.ceil(len(photos.images) / _BATCH)
    trainer = _Trainer(tf, model, epochs * steps)
    generator = np.random.default_rng(seed)
    # Weights go before the palette is chosen: a nought is none of its values.
    clustered_from = epochs - max(1, epochs // 2) if recipe.sparsity else 0
    pruned_until = max(1, clustered_from) if recipe.palette else epochs
    for epoch in range(epochs):
        if recipe.sparsity and epoch < pruned_until:
            _raise_sparsity(held, recipe.sparsity * _ramp(epoch, pruned_until))
        if recipe.palette and epoch == clustered_from:
            trainer.cluster(held, recipe.palette)
        trainer.mask(held)
        loss = 0.0
        for batch in np.array_split(generator.permutation(len(photos.images)), steps):
            loss += trainer.step(photos, batch)
        if not math.isfinite(loss):
            message = "training on after compression did not come to a finite loss"
            raise TrainingImpossible(message)
        progress("compressing", epoch + 1, epochs, {"loss": loss / steps})
    trainer.settle()


def _ramp(epoch: int, epochs: int) -> float:
    return 1.0 - (1.0 - (epoch + 1) / epochs) ** 3


@dataclass
class _Held:
    """One kernel, and what holds of it."""

    layer: Any
    mask: npt.NDArray[np.bool_] | None = None


def _raise_sparsity(held: dict[str, _Held], sparsity: float) -> None:
    for one in held.values():
        one.mask = kernels.mask_of(np.asarray(one.layer.kernel), sparsity)


class _Palette:
    """The values of one kernel as a variable of their own, and where each weight takes its."""

    def __init__(self, layer: Any, size: int, mask: npt.NDArray[np.bool_] | None) -> None:
        import keras

        self.layer = layer
        values, self.indexes = kernels.palette_of(np.asarray(layer.kernel), size, mask)
        self.values = keras.Variable(values, name=f"{layer.name}_palette")
        self.size = size


class _Trainer:
    """One optimiser over everything that may move."""

    def __init__(self, tf: Any, model: keras.Model, total_steps: int) -> None:
        self._tf, self._model, self._total_steps = tf, model, max(1, total_steps)
        self.palettes: list[_Palette] = []
        self._masks: dict[str, Any] = {}
        self._done = 0
        self._prepare()

    def cluster(self, held: dict[str, _Held], size: int) -> None:
        """Let the palettes move in place of their kernels from now on."""
        self.palettes = [_Palette(one.layer, size, one.mask) for one in held.values()]
        self._prepare()

    def mask(self, held: dict[str, _Held]) -> None:
        """Hold these kernels' noughts from now on."""
        self._masks = {
            name: self._tf.Variable(one.mask.astype(np.float32), trainable=False)
            for name, one in held.items()
            if one.mask is not None
        }
        self._step = self._tf.function(self._calculate)
        self._enforce()

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

    def settle(self) -> None:
        """Leave values in the kernels that float16 has, so that what is stored is this network."""
        for palette in self.palettes:
            values = np.asarray(palette.values)
            palette.layer.kernel.assign(kernels.from_palette(values, palette.indexes))

    def _prepare(self) -> None:
        import keras

        replaced = {id(palette.layer.kernel) for palette in self.palettes}
        self._free = [one for one in self._model.trainable_variables if id(one) not in replaced]
        self._indexes = [
            self._tf.constant(palette.indexes.reshape(-1)) for palette in self.palettes
        ]
        self._optimiser = keras.optimizers.Adam(_LEARNING_RATE)
        self._optimiser.build([*self._free, *(palette.values for palette in self.palettes)])
        self._step = self._tf.function(self._calculate)

    def _calculate(self, images: Any, wanted: Any) -> Any:
        tf = self._tf
        kernels_of = [palette.layer.kernel for palette in self.palettes]
        with tf.GradientTape() as tape:
            answers = tf.clip_by_value(self._model(images, training=False), 1e-7, 1.0)
            loss = -tf.reduce_mean(tf.reduce_sum(wanted * tf.math.log(answers), axis=1))
        watched = [one.value for one in (*self._free, *kernels_of)]
        gradients = tape.gradient(loss, watched)
        own = gradients[len(self._free) :]
        summed = [
            tf.math.unsorted_segment_sum(
                tf.reshape(gradient, [-1]), tf.where(index < 0, palette.size, index),
                palette.size + 1,
            )[: palette.size]
            for gradient, index, palette in zip(own, self._indexes, self.palettes, strict=True)
        ]  # fmt: skip
        self._optimiser.apply([*gradients[: len(self._free)], *summed])
        self._enforce()
        return loss

    def _enforce(self) -> None:
        tf = self._tf
        for layer in self._model.layers:
            if layer.name in self._masks:
                layer.kernel.assign(layer.kernel.value * self._masks[layer.name])
        for palette, index in zip(self.palettes, self._indexes, strict=True):
            padded = tf.concat([palette.values.value, [0.0]], axis=0)
            places = tf.where(index < 0, palette.size, index)
            palette.layer.kernel.assign(
                tf.reshape(tf.gather(padded, places), palette.layer.kernel.shape)
            )

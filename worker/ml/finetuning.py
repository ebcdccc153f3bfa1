"""Training the last blocks of a pretrained network further, on photos varied as they come.

What lies below the blocks stays frozen, and so is run by LiteRT, at a quarter of Keras's time and
without its memory; batch normalisation stays frozen everywhere, since few photos would spoil its
statistics. The schedule is fixed by the number of photos: nothing is chosen on held-out photos,
so that what these say about the result is not flattered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.augmentation import NONE, Augmentation, augment
from worker.ml.determinism import pin_tensorflow
from worker.ml.embeddings import LiteNetwork, load_backbone
from worker.ml.errors import TrainingImpossible
from worker.ml.training import OUTPUT_NAME, Head, Indexes, Progress

if TYPE_CHECKING:
    import keras

    from worker.ml.architectures import Architecture
    from worker.ml.preprocessing import Pixels
    from worker.ml.weights import Weights

BATCH: Final = 32
LEARNING_RATE: Final = 1e-3
MOST_GRADIENT: Final = 1.0
"""Without this bound on its norm, one bad step in the warm-up can ruin a narrow network."""
LABEL_SMOOTHING: Final = 0.1
DROPOUT: Final = 0.2
_WARM_UP_SHARE: Final = 0.1
# Few photos are shown more often; a visit costs some 15 ms of CPU.
_PHOTO_VISITS: Final = 6_000
_LEAST_EPOCHS: Final = 3
_MOST_EPOCHS: Final = 20


class FineTuner:
    """The last blocks of one network, from the layer ``above`` on."""

    def __init__(
        self, architecture: Architecture, weights: Weights, cache_folder: Path, *, above: str
    ) -> None:
        """Describe it; the frozen part is exported to ``cache_folder`` on first use.

        ``above`` is one of the architecture's ``depths``: what follows that layer is trained.
        """
        self._architecture = architecture
        self._weights = weights
        self._above = above
        name = f"{architecture.name}-{architecture.input_size}-{weights.sha256[:16]}-below-{above}"
        self._trunk = LiteNetwork(cache_folder / f"{name}.tflite", self._build_trunk)

    def fit(
        self,
        images: Sequence[Pixels] | npt.NDArray[np.uint8],
        labels: Indexes,
        head: Head,
        *,
        augmentation: Augmentation,
        seed: int,
        progress: Progress,
        epochs: int | None = None,
    ) -> keras.Model:
        """Return the whole network, float32 RGB photos 0..255 in, a probability per label out.

        ``images`` are uint8 (photos, side, side, 3), which may be a file mapped into memory;
        ``head``, of the top's features, is where the last layer begins. Every epoch sees each
        photo once, in a new view. The same arguments give the same weights.

        Raises :class:`TrainingImpossible` where the loss does not stay finite.
        """
        pin_tensorflow(seed)
        backbone = load_backbone(self._architecture, self._weights)
        pin_tensorflow(seed)
        epochs = epochs_for(len(labels)) if epochs is None else epochs
        model, tail = self._assemble(backbone, head)
        _compile(tail, steps=epochs * math.ceil(len(labels) / BATCH))
        generator = np.random.default_rng(seed)
        targets = np.eye(head.kernel.shape[1], dtype=np.float32)[labels]
        # Labels weigh the same however many photos they have, as in the head.
        counts = np.bincount(labels, minlength=head.kernel.shape[1])
        weights = (len(labels) / (len(counts) * np.maximum(counts, 1)))[labels].astype(np.float32)
        for epoch in range(epochs):
            order = generator.permutation(len(labels))
            losses = []
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                inputs = self._activations(images, rows, augmentation, generator)
                losses.append(tail.train_on_batch(inputs, targets[rows], weights[rows]))
                done = min(start + BATCH, len(order)) + epoch * len(order)
                progress("fine_tuning", done, epochs * len(order), {})
            loss = float(np.mean(losses))
            if not math.isfinite(loss):
                message = "fine-tuning did not come to a finite loss"
                raise TrainingImpossible(message)
            total = epochs * len(order)
            progress("fine_tuning", (epoch + 1) * len(order), total, {"loss": loss})
        return model

    def trained_parameters(self, label_count: int) -> int:
        """Return how many numbers fine-tuning changes, those of the last layer included."""
        backbone = load_backbone(self._architecture, self._weights)
        tail = self._tail(backbone)
        changed: int = sum(
            math.prod(weight.shape)
            for layer in tail.layers
            if not _is_normalisation(layer)
            for weight in layer.weights
        )
        return changed + (self._architecture.feature_size + 1) * label_count

    def _activations(
        self,
        images: Sequence[Pixels] | npt.NDArray[np.uint8],
        rows: npt.NDArray[np.int64],
        augmentation: Augmentation,
        generator: np.random.Generator,
    ) -> npt.NDArray[np.float32]:
        found = []
        for row in rows:
            pixels = np.asarray(images[row])
            if augmentation.name != NONE.name:
                pixels = augment(pixels, augmentation, generator)
            found.append(self._trunk(pixels[None].astype(np.float32)))
        return np.stack(found)

    def _build_trunk(self) -> tuple[keras.Model, list[int]]:
        import keras

        backbone = load_backbone(self._architecture, self._weights)
        output = backbone.get_layer(self._above).output
        return keras.Model(backbone.input, output, name="trunk"), [int(output.shape[-1])]

    def _tail(self, backbone: keras.Model) -> keras.Model:
        import keras

        return keras.Model(backbone.get_layer(self._above).output, backbone.output, name="tail")

    def _assemble(self, backbone: keras.Model, head: Head) -> tuple[keras.Model, keras.Model]:
        """Return the whole network and the part of it that is trained; they share their layers."""
        import keras

        tail = self._tail(backbone)
        for layer in tail.layers:
            layer.trainable = not _is_normalisation(layer)
        label_count = len(head.bias)
        last = keras.layers.Dense(label_count, activation="softmax", name=OUTPUT_NAME)
        dropped = keras.layers.Dropout(DROPOUT, name="dropout")(tail.output)
        trained = keras.Model(tail.input, last(dropped), name="trained")
        model = keras.Model(backbone.input, last(backbone.output), name=backbone.name)
        last.set_weights([head.kernel, head.bias])
        return model, trained


def epochs_for(photo_count: int) -> int:
    """Return how often each photo is shown: bounded in all, so that time is."""
    return min(_MOST_EPOCHS, max(_LEAST_EPOCHS, _PHOTO_VISITS // max(photo_count, 1)))


def _is_normalisation(layer: Any) -> bool:
    import keras

    return isinstance(layer, keras.layers.BatchNormalization)


def _compile(model: keras.Model, *, steps: int) -> None:
    """Adam, warmed up and let down by a cosine; smoothed labels hold back few photos' certainty."""
    import keras

    warm_up = max(1, round(steps * _WARM_UP_SHARE))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=LEARNING_RATE, warmup_steps=warm_up
    )
    model.compile(
        optimizer=keras.optimizers.Adam(rate, clipnorm=MOST_GRADIENT),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=LABEL_SMOOTHING),
    )

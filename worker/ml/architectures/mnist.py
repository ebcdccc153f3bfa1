"""Two classic networks for handwritten digits of 28 x 28 pixels.

A perceptron 784-512-512-10 and a network of two 3x3 convolutions and a pooling, as Keras's own
examples of 2015 have them (mnist_mlp and mnist_cnn). Digits are grey: the mean of red, green and
blue goes in, so that they take the same pixels as every other network here.
"""

from __future__ import annotations

from typing import Any, Final

from worker.ml.architectures.base import Architecture
from worker.ml.architectures.blocks import ScratchNetwork

_SIDE: Final = 28
_CLASSES: Final = 10


def _grey(photo: Any) -> Any:
    from keras import ops

    return ops.mean(photo, axis=-1, keepdims=True)


def _connect_perceptron(photo: Any) -> Any:
    from keras import layers

    x = layers.Flatten(name="flatten")(_grey(photo))
    x = layers.Dense(512, activation="relu", name="dense1")(x)
    x = layers.Dropout(0.2, name="dropout1")(x)
    return layers.Dense(512, activation="relu", name="features")(x)


def _connect_convolutions(photo: Any) -> Any:
    from keras import layers

    x = layers.Conv2D(32, 3, activation="relu", name="conv1")(_grey(photo))
    x = layers.Conv2D(64, 3, activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Dropout(0.25, name="dropout1")(x)
    x = layers.Flatten(name="flatten")(x)
    return layers.Dense(128, activation="relu", name="features")(x)


_PERCEPTRON: Final = ScratchNetwork(
    name="mnist_mlp",
    connect=_connect_perceptron,
    classes=_CLASSES,
    published_px=_SIDE,
    scaling=(1 / 255, 0.0),
)
_CONVOLUTIONS: Final = ScratchNetwork(
    name="mnist_cnn",
    connect=_connect_convolutions,
    classes=_CLASSES,
    published_px=_SIDE,
    scaling=(1 / 255, 0.0),
)

ARCHITECTURES: Final = (
    Architecture(
        name="mnist_mlp",
        input_size=_SIDE,
        feature_size=512,
        pretrained=False,
        build=_PERCEPTRON.build,
        build_published=_PERCEPTRON.build_published,
        parameters=669_706,
        multiply_adds=668_672,
        published="Keras's example mnist_mlp, 784-512-512-10.",
        weights_source=_PERCEPTRON.weights_source,
        load=_PERCEPTRON.load,
    ),
    Architecture(
        name="mnist_cnn",
        input_size=_SIDE,
        feature_size=128,
        pretrained=False,
        build=_CONVOLUTIONS.build,
        build_published=_CONVOLUTIONS.build_published,
        parameters=1_199_882,
        multiply_adds=11_992_448,
        published="Keras's example mnist_cnn, with ten digits.",
        weights_source=_CONVOLUTIONS.weights_source,
        load=_CONVOLUTIONS.load,
        depths=("conv1", "conv2"),
    ),
)

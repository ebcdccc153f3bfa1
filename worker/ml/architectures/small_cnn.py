"""A small convolutional network to train from nothing, where no pretrained weights are to be had.

Blocks of 3x3 convolution, batch normalisation and pooling, the plain pattern of Simonyan and
Zisserman 2014 (arXiv:1409.1556); as global average pooling ends it, any input size will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from worker.ml.architectures.base import Architecture

if TYPE_CHECKING:
    import keras

_INPUT_SIZE: Final = 48
_FILTERS: Final = (16, 32, 64)
_SMALLEST_MAP_PX: Final = 4


def _build(input_size: int) -> keras.Model:
    import keras
    from keras import layers

    photo = keras.Input((input_size, input_size, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(photo)
    side = input_size
    for index, filters in enumerate(_FILTERS):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv_{index}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm_{index}")(x)
        x = layers.ReLU(name=f"relu_{index}")(x)
        if side // 2 >= _SMALLEST_MAP_PX:
            x = layers.MaxPooling2D(name=f"pool_{index}")(x)
            side //= 2
    features = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(photo, features, name=f"small_cnn_{input_size}")


def _build_published() -> keras.Model:
    import keras

    network = _build(_INPUT_SIZE)
    answer = keras.layers.Dense(10, activation="softmax", name="top")(network.output)
    return keras.Model(network.input, answer, name="small_cnn_top")


ARCHITECTURES: Final = (
    Architecture(
        name="small_cnn",
        input_size=_INPUT_SIZE,
        feature_size=_FILTERS[-1],
        pretrained=False,
        build=_build,
        build_published=_build_published,
        parameters=24_570,
        multiply_adds=6_304_384,
        published="Described here, counted with ten labels.",
        weights_source="Trained from nothing on the photos at hand.",
        resizable=True,
    ),
)

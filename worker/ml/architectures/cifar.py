"""Two pairs of 3x3 convolutions for pictures of 32 x 32 pixels, as Keras's example cifar10_cnn."""

from __future__ import annotations

from typing import Any, Final

from worker.ml.architectures.base import Architecture
from worker.ml.architectures.blocks import ScratchNetwork

_SIDE: Final = 32


def _connect(photo: Any) -> Any:
    from keras import layers

    x = photo
    for pair, filters in enumerate((32, 64), start=1):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{pair}_1")(x)
        x = layers.Conv2D(filters, 3, activation="relu", name=f"conv{pair}_2")(x)
        x = layers.MaxPooling2D(2, name=f"pool{pair}")(x)
        x = layers.Dropout(0.25, name=f"dropout{pair}")(x)
    x = layers.Flatten(name="flatten")(x)
    return layers.Dense(512, activation="relu", name="features")(x)


_NETWORK: Final = ScratchNetwork(
    name="cifar_cnn", connect=_connect, classes=10, published_px=_SIDE, scaling=(1 / 255, 0.0)
)

ARCHITECTURES: Final = (
    Architecture(
        name="cifar_cnn",
        input_size=_SIDE,
        feature_size=512,
        pretrained=False,
        build=_NETWORK.build,
        build_published=_NETWORK.build_published,
        parameters=1_250_858,
        multiply_adds=20_741_120,
        published="Keras's example cifar10_cnn, with ten classes.",
        weights_source=_NETWORK.weights_source,
        load=_NETWORK.load,
        depths=("conv1_2", "conv2_2"),
    ),
)

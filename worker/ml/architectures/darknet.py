"""The Darknet reference network (Redmon 2013-2016, darknet.cfg of his Darknet)."""

from __future__ import annotations

from typing import Any, Final

from worker.ml.architectures.base import Architecture
from worker.ml.architectures.blocks import ScratchNetwork, conv_norm

_FILTERS: Final = (16, 32, 64, 128, 256, 512, 1024)
_CLASSES: Final = 1000


def _connect(photo: Any) -> Any:
    from keras import layers

    x = photo
    for number, filters in enumerate(_FILTERS, start=1):
        if number > 1:
            x = layers.MaxPooling2D(2, padding="same", name=f"pool{number - 1}")(x)
        x = conv_norm(x, filters, 3, f"conv{number}", activation="leaky_relu")
    return x


def _top(activations: Any) -> Any:
    from keras import layers

    x = layers.Conv2D(_CLASSES, 1, name="conv8")(activations)
    x = layers.LeakyReLU(0.1, name="conv8_relu")(x)
    return layers.Softmax(name="predictions")(layers.GlobalAveragePooling2D(name="average")(x))


# Darknet only divides by 255.
_NETWORK: Final = ScratchNetwork(
    name="darknet_reference", connect=_connect, scaling=(1 / 255, 0.0), top=_top
)

ARCHITECTURES: Final = (
    Architecture(
        name="darknet_reference",
        input_size=224,
        feature_size=_FILTERS[-1],
        pretrained=False,
        build=_NETWORK.build,
        build_published=_NETWORK.build_published,
        parameters=7_323_480,
        multiply_adds=402_571_264,
        published=(
            "Redmon, Darknet reference network, with a convolution to 1000 ImageNet classes before"
            " the average."
        ),
        weights_source=_NETWORK.weights_source,
        load=_NETWORK.load,
        resizable=True,
        smallest_px=32,
        depths=("conv4_relu", "conv5_relu", "conv6_relu"),
    ),
)

"""SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360, as its authors revised it)."""

from __future__ import annotations

from typing import Any, Final

from worker.ml.architectures.base import Architecture
from worker.ml.architectures.blocks import ScratchNetwork

# Squeezed and widened channels of each fire module; a pooling stands before the 2nd, 4th, 6th.
_STAGES: Final = (((16, 64), (16, 64)), ((32, 128), (32, 128)), ((48, 192),) * 2 + ((64, 256),) * 2)
_CLASSES: Final = 1000


def _connect(photo: Any) -> Any:
    from keras import layers

    x = layers.Conv2D(
        64, 3, strides=2, activation="relu", kernel_initializer="he_uniform", name="conv1"
    )(photo)
    number = 1
    for stage, modules in enumerate(_STAGES, start=1):
        x = layers.MaxPooling2D(3, strides=2, name=f"pool{stage}")(x)
        for squeezed, widened in modules:
            number += 1
            x = _fire(x, squeezed, widened, f"fire{number}")
    return x


def _fire(x: Any, squeezed: int, widened: int, name: str) -> Any:
    from keras import layers

    x = _conv(x, squeezed, 1, f"{name}_squeeze")
    sides = [_conv(x, widened, kernel_px, f"{name}_expand{kernel_px}") for kernel_px in (1, 3)]
    return layers.Concatenate(name=f"{name}_concat")(sides)


def _conv(x: Any, filters: int, kernel_px: int, name: str) -> Any:
    from keras import layers

    return layers.Conv2D(
        filters,
        kernel_px,
        padding="same",
        activation="relu",
        kernel_initializer="he_uniform",
        name=name,
    )(x)


def _top(activations: Any) -> Any:
    from keras import layers

    x = layers.Dropout(0.5, name="dropout")(activations)
    x = layers.Conv2D(_CLASSES, 1, activation="relu", name="conv10")(x)
    return layers.Softmax(name="predictions")(layers.GlobalAveragePooling2D(name="average")(x))


_NETWORK: Final = ScratchNetwork(name="squeezenet_1.1", connect=_connect, top=_top)

ARCHITECTURES: Final = (
    Architecture(
        name="squeezenet_1.1",
        input_size=224,
        feature_size=512,
        pretrained=False,
        build=_NETWORK.build,
        build_published=_NETWORK.build_published,
        parameters=1_235_496,
        multiply_adds=349_151_936,
        published=(
            "Iandola et al. 2016, arXiv:1602.07360, version 1.1, with a convolution to 1000"
            " ImageNet classes before the average."
        ),
        weights_source=_NETWORK.weights_source,
        load=_NETWORK.load,
        resizable=True,
        smallest_px=33,
        depths=("fire3_concat", "fire5_concat", "fire7_concat"),
    ),
)

"""EfficientNet-EdgeTPU-S: EfficientNet's search with whole convolutions early on.

Written from the description that its authors published with it in August 2019 (Gupta and Tan,
"EfficientNet-EdgeTPU", and the list of blocks in their builder): no squeezing, ReLU, and in the
first three stages one 3x3 convolution where others widen and then filter each channel.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from worker.ml.architectures.base import Architecture
from worker.ml.architectures.blocks import ScratchNetwork, conv_norm, inverted_residual


class _Stage(NamedTuple):
    repeats: int
    kernel_px: int
    strides: int
    expansion: int
    filters: int
    whole: bool
    """Whether a whole convolution widens, in place of filters for each channel."""


_STAGES: Final = (
    _Stage(1, 3, 1, 4, 24, whole=True),
    _Stage(2, 3, 2, 8, 32, whole=True),
    _Stage(4, 3, 2, 8, 48, whole=True),
    _Stage(5, 5, 2, 8, 96, whole=False),
    _Stage(4, 5, 1, 8, 144, whole=False),
    _Stage(2, 5, 2, 8, 192, whole=False),
)
_STEM: Final = 32
_FEATURES: Final = 1280


def _connect(photo: Any) -> Any:
    x = conv_norm(photo, _STEM, 3, "stem", strides=2, activation="relu")
    # The builder widens the first block by the width of what comes out of it, not of the stem.
    width = _STAGES[0].filters
    for number, stage in enumerate(_STAGES, start=1):
        for block in range(1, stage.repeats + 1):
            strides = stage.strides if block == 1 else 1
            name = f"stage{number}_block{block}"
            x = _block(x, stage, width, strides, name)
            width = stage.filters
    return conv_norm(x, _FEATURES, 1, "head", activation="relu")


def _block(x: Any, stage: _Stage, width: int, strides: int, name: str) -> Any:
    from keras import layers

    if not stage.whole:
        return inverted_residual(
            x,
            stage.filters,
            name,
            kernel_px=stage.kernel_px,
            expansion=stage.expansion,
            strides=strides,
        )
    inner = conv_norm(x, width * stage.expansion, 3, f"{name}_widen", activation="relu")
    inner = conv_norm(inner, stage.filters, 1, f"{name}_out", strides=strides)
    if strides == 1 and x.shape[-1] == stage.filters:
        return layers.Add(name=f"{name}_add")([x, inner])
    return inner


_NETWORK: Final = ScratchNetwork(
    name="efficientnet_edgetpu_s", connect=_connect, scaling=(1 / 128, -127 / 128)
)

ARCHITECTURES: Final = (
    Architecture(
        name="efficientnet_edgetpu_s",
        input_size=224,
        feature_size=_FEATURES,
        pretrained=False,
        build=_NETWORK.build,
        build_published=_NETWORK.build_published,
        parameters=5_489_832,
        multiply_adds=2_352_307_840,
        published="Gupta and Tan 2019, EfficientNet-EdgeTPU, with 1000 ImageNet classes.",
        weights_source=_NETWORK.weights_source,
        load=_NETWORK.load,
        resizable=True,
        smallest_px=32,
        depths=("stage2_block2_add", "stage3_block4_add", "stage5_block4_add"),
    ),
)

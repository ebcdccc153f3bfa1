"""ShuffleNet, three groups, width 1 (Zhang et al. 2017, arXiv:1707.01083)."""

from __future__ import annotations

from typing import Any, Final

from worker.ml.architectures.base import Architecture
from worker.ml.architectures.blocks import (
    ScratchNetwork,
    conv_norm,
    depthwise_norm,
)

_GROUPS: Final = 3
_STAGES: Final = ((240, 4), (480, 8), (960, 4))
_STEM: Final = 24
_BOTTLENECK: Final = 4


def _connect(photo: Any) -> Any:
    from keras import layers

    x = conv_norm(photo, _STEM, 3, "stem", strides=2, activation="relu")
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="pool")(x)
    for stage, (filters, repeats) in enumerate(_STAGES, start=2):
        for unit in range(1, repeats + 1):
            # Few channels come out of the stem: dividing them into groups is not worth it.
            groups = 1 if stage == 2 and unit == 1 else _GROUPS  # noqa: PLR2004 - the first stage
            x = _unit(x, filters, 2 if unit == 1 else 1, groups, f"stage{stage}_unit{unit}")
    return x


def _unit(x: Any, filters: int, strides: int, groups: int, name: str) -> Any:
    from keras import layers

    # Where the picture shrinks, what came in is set beside the new channels, not added.
    new = filters - x.shape[-1] if strides > 1 else filters
    inner = filters // _BOTTLENECK
    y = conv_norm(x, inner, 1, f"{name}_narrow", groups=groups, activation="relu")
    y = _shuffle(y, name)
    y = depthwise_norm(y, 3, f"{name}_depthwise", strides=strides)
    y = conv_norm(y, new, 1, f"{name}_widen", groups=_GROUPS)
    if strides > 1:
        x = layers.AveragePooling2D(3, strides=2, padding="same", name=f"{name}_pool")(x)
        y = layers.Concatenate(name=f"{name}_concat")([x, y])
    else:
        y = layers.Add(name=f"{name}_add")([x, y])
    return layers.ReLU(name=f"{name}_out")(y)


def _shuffle(x: Any, name: str) -> Any:
    """Deal channels out, so that each group of the next layer sees something of every group."""
    from keras import layers

    _, height, width, channels = x.shape
    x = layers.Reshape((height, width, _GROUPS, channels // _GROUPS), name=f"{name}_split")(x)
    x = layers.Permute((1, 2, 4, 3), name=f"{name}_deal")(x)
    return layers.Reshape((height, width, channels), name=f"{name}_shuffle")(x)


_NETWORK: Final = ScratchNetwork(name="shufflenet_g3", connect=_connect)

ARCHITECTURES: Final = (
    Architecture(
        name="shufflenet_g3",
        input_size=224,
        feature_size=960,
        pretrained=False,
        build=_NETWORK.build,
        build_published=_NETWORK.build_published,
        parameters=1_890_208,
        multiply_adds=137_460_672,
        published="Zhang et al. 2017, arXiv:1707.01083, 1x with g = 3, with 1000 ImageNet classes.",
        weights_source=_NETWORK.weights_source,
        load=_NETWORK.load,
        resizable=True,
        smallest_px=32,
        depths=("stage2_unit4_out", "stage3_unit4_out", "stage3_unit8_out"),
    ),
)

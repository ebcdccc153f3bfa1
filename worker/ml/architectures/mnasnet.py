"""MnasNet-A1 (Tan et al. 2018, arXiv:1807.11626, figure 7)."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from worker.ml.architectures.base import Architecture
from worker.ml.architectures.blocks import (
    ScratchNetwork,
    conv_norm,
    depthwise_norm,
    inverted_residual,
)


class _Stage(NamedTuple):
    repeats: int
    kernel_px: int
    strides: int
    expansion: int
    filters: int
    squeeze_share: float = 0.0


_STAGES: Final = (
    _Stage(2, 3, 2, 6, 24),
    _Stage(3, 5, 2, 3, 40, 0.25),
    _Stage(4, 3, 2, 6, 80),
    _Stage(2, 3, 1, 6, 112, 0.25),
    _Stage(3, 5, 2, 6, 160, 0.25),
    _Stage(1, 3, 1, 6, 320),
)
_FEATURES: Final = 1280


def _connect(photo: Any) -> Any:
    x = conv_norm(photo, 32, 3, "stem", strides=2, activation="relu")
    x = depthwise_norm(x, 3, "separable_depthwise", activation="relu")
    x = conv_norm(x, 16, 1, "separable")
    for number, stage in enumerate(_STAGES, start=1):
        for block in range(1, stage.repeats + 1):
            x = inverted_residual(
                x,
                stage.filters,
                f"stage{number}_block{block}",
                kernel_px=stage.kernel_px,
                expansion=stage.expansion,
                strides=stage.strides if block == 1 else 1,
                squeeze_share=stage.squeeze_share,
            )
    return conv_norm(x, _FEATURES, 1, "head", activation="relu")


_NETWORK: Final = ScratchNetwork(name="mnasnet_a1", connect=_connect)

ARCHITECTURES: Final = (
    Architecture(
        name="mnasnet_a1",
        input_size=224,
        feature_size=_FEATURES,
        pretrained=False,
        build=_NETWORK.build,
        build_published=_NETWORK.build_published,
        parameters=3_920_526,
        multiply_adds=311_579_072,
        published="Tan et al. 2018, arXiv:1807.11626, with 1000 ImageNet classes.",
        weights_source=_NETWORK.weights_source,
        load=_NETWORK.load,
        resizable=True,
        smallest_px=32,
        depths=("stage1_block2_add", "stage2_block3_add", "stage4_block2_add", "stage5_block3_add"),
    ),
)

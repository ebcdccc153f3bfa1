"""ResNet-50 with squeeze-and-excitation (Hu et al. 2017, arXiv:1709.01507)."""

from __future__ import annotations

from typing import Any, Final

from worker.ml.architectures.base import Architecture
from worker.ml.architectures.blocks import ScratchNetwork, conv_norm, squeeze_excite

_STAGES: Final = ((64, 3), (128, 4), (256, 6), (512, 3))
_WIDENING: Final = 4
_REDUCTION: Final = 16


def _connect(photo: Any) -> Any:
    from keras import layers

    x = layers.ZeroPadding2D(3, name="conv1_pad")(photo)
    x = conv_norm(x, 64, 7, "conv1", strides=2, padding="valid", activation="relu")
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="pool1")(x)
    for stage, (filters, repeats) in enumerate(_STAGES, start=2):
        for block in range(1, repeats + 1):
            strides = 2 if block == 1 and stage > 2 else 1  # noqa: PLR2004 - after the pooling
            x = _block(x, filters, strides, f"conv{stage}_block{block}")
    return x


def _block(x: Any, filters: int, strides: int, name: str) -> Any:
    from keras import layers

    shortcut, wide = x, _WIDENING * filters
    if x.shape[-1] != wide:
        shortcut = conv_norm(x, wide, 1, f"{name}_0", strides=strides)
    x = conv_norm(x, filters, 1, f"{name}_1", strides=strides, activation="relu")
    x = conv_norm(x, filters, 3, f"{name}_2", activation="relu")
    x = conv_norm(x, wide, 1, f"{name}_3")
    x = squeeze_excite(x, wide // _REDUCTION, name)
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.ReLU(name=f"{name}_out")(x)


_NETWORK: Final = ScratchNetwork(name="se_resnet50", connect=_connect)

ARCHITECTURES: Final = (
    Architecture(
        name="se_resnet50",
        input_size=224,
        feature_size=2048,
        pretrained=False,
        build=_NETWORK.build,
        build_published=_NETWORK.build_published,
        parameters=28_141_144,
        multiply_adds=3_860_488_192,
        published="Hu et al. 2017, arXiv:1709.01507, with 1000 ImageNet classes.",
        weights_source=_NETWORK.weights_source,
        load=_NETWORK.load,
        resizable=True,
        smallest_px=32,
        depths=("conv2_block3_out", "conv3_block4_out", "conv4_block6_out"),
    ),
)

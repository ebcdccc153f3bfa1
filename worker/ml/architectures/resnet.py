"""ResNet with 34, 50, 101 and 152 layers, and V2 of the last three (He et al. 2015 and 2016).

arXiv:1512.03385 and arXiv:1603.05027. ResNet-34 is written here from the paper's table 1, with
the shortcuts of option B: a 1x1 convolution where the shape changes.
"""

from __future__ import annotations

from typing import Any, Final

from worker.ml.architectures.base import Architecture
from worker.ml.architectures.blocks import ScratchNetwork, conv_norm
from worker.ml.architectures.keras_backbone import SOURCE, KerasBackbone, notop_file

_STAGES: Final = {50: (3, 4, 6), 101: (3, 4, 23), 152: (3, 8, 36)}
_RESNET34: Final = ((64, 3), (128, 4), (256, 6), (512, 3))


def _from_keras(
    layers: int, version: int, parameters: int, multiply_adds: int, md5: str
) -> Architecture:
    suffix = "V2" if version > 1 else ""
    stem = f"resnet{layers}{suffix.lower()}"
    name = f"resnet{layers}" + ("_v2" if version > 1 else "")
    backbone = KerasBackbone(
        name=name,
        constructor=f"ResNet{layers}{suffix}",
        pixels="signed" if version > 1 else "centred",
    )
    blocks = enumerate(_STAGES[layers], start=2)
    return Architecture(
        name=name,
        input_size=224,
        feature_size=2048,
        pretrained=True,
        build=backbone.build,
        build_published=backbone.build_published,
        parameters=parameters,
        multiply_adds=multiply_adds,
        published=(
            f"He et al. {'2016, arXiv:1603.05027' if version > 1 else '2015, arXiv:1512.03385'},"
            " with 1000 ImageNet classes."
        ),
        weights_source=SOURCE,
        load=backbone.load,
        keras_file=notop_file(stem, "resnet", "BASE_WEIGHTS_PATH", md5),
        resizable=True,
        smallest_px=32,
        depths=tuple(f"conv{stage}_block{last}_out" for stage, last in blocks),
    )


def _connect(photo: Any) -> Any:
    from keras import layers

    x = layers.ZeroPadding2D(3, name="conv1_pad")(photo)
    x = conv_norm(x, 64, 7, "conv1", strides=2, padding="valid", activation="relu")
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1")(x)
    for stage, (filters, repeats) in enumerate(_RESNET34, start=2):
        for block in range(1, repeats + 1):
            strides = 2 if block == 1 and stage > 2 else 1  # noqa: PLR2004 - after the pooling
            x = _basic_block(x, filters, strides, f"conv{stage}_block{block}")
    return x


def _basic_block(x: Any, filters: int, strides: int, name: str) -> Any:
    from keras import layers

    shortcut = x
    if strides > 1 or x.shape[-1] != filters:
        shortcut = conv_norm(x, filters, 1, f"{name}_0", strides=strides)
    x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    x = conv_norm(x, filters, 3, f"{name}_1", strides=strides, padding="valid", activation="relu")
    x = conv_norm(x, filters, 3, f"{name}_2")
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.ReLU(name=f"{name}_out")(x)


_NETWORK_34: Final = ScratchNetwork(name="resnet34", connect=_connect)

ARCHITECTURES: Final = (
    Architecture(
        name="resnet34",
        input_size=224,
        feature_size=512,
        pretrained=False,
        build=_NETWORK_34.build,
        build_published=_NETWORK_34.build_published,
        parameters=21_814_696,
        multiply_adds=3_663_761_408,
        published="He et al. 2015, arXiv:1512.03385, with 1000 ImageNet classes.",
        weights_source=_NETWORK_34.weights_source,
        load=_NETWORK_34.load,
        resizable=True,
        smallest_px=32,
        depths=("conv2_block3_out", "conv3_block4_out", "conv4_block6_out"),
    ),
    _from_keras(50, 1, 25_636_712, 3_857_973_248, "4d473c1dd8becc155b73f8504c6f6626"),
    _from_keras(101, 1, 44_707_176, 7_570_194_432, "88cf7a10940856eca736dc7b7e228a21"),
    _from_keras(152, 1, 60_419_944, 11_282_415_616, "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    _from_keras(50, 2, 25_613_800, 3_482_255_360, "fac2f116257151a9d068a22e544a4917"),
    _from_keras(101, 2, 44_675_560, 7_194_476_544, "c0ed64b8031c3730f411d2eb4eea35b5"),
    _from_keras(152, 2, 60_380_648, 10_906_697_728, "ed17cf2e0169df9d443503ef94b23b33"),
)

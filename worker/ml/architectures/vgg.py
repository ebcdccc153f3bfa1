"""VGG with 16 and 19 layers (Simonyan and Zisserman 2014, arXiv:1409.1556)."""

from __future__ import annotations

from typing import Final

from worker.ml.architectures.base import Architecture
from worker.ml.architectures.keras_backbone import SOURCE, KerasBackbone, notop_file


def _architecture(layers: int, parameters: int, multiply_adds: int, md5: str) -> Architecture:
    backbone = KerasBackbone(name=f"vgg{layers}", constructor=f"VGG{layers}", pixels="centred")
    return Architecture(
        name=f"vgg{layers}",
        input_size=224,
        feature_size=512,
        pretrained=True,
        build=backbone.build,
        build_published=backbone.build_published,
        parameters=parameters,
        multiply_adds=multiply_adds,
        published=(
            "Simonyan and Zisserman 2014, arXiv:1409.1556, with two dense layers of 4096 and 1000"
            " ImageNet classes; the features here end before them."
        ),
        weights_source=SOURCE,
        load=backbone.load,
        keras_file=notop_file(f"vgg{layers}", f"vgg{layers}", "WEIGHTS_PATH_NO_TOP", md5),
        resizable=True,
        smallest_px=32,
        depths=("block2_pool", "block3_pool", "block4_pool"),
    )


ARCHITECTURES: Final = (
    _architecture(16, 138_357_544, 15_470_264_320, "6d6bbae143d832006294945121d1f1fc"),
    _architecture(19, 143_667_240, 19_632_062_464, "253f8cb515780f3b799900260a226db6"),
)

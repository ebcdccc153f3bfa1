"""DenseNet with 121 and 169 layers (Huang et al. 2016, arXiv:1608.06993)."""

from __future__ import annotations

from typing import Final

from worker.ml.architectures.base import Architecture
from worker.ml.architectures.keras_backbone import SOURCE, KerasBackbone, notop_file


def _architecture(
    layers: int, feature_size: int, parameters: int, multiply_adds: int, md5: str
) -> Architecture:
    stem = f"densenet{layers}"
    backbone = KerasBackbone(name=stem, constructor=f"DenseNet{layers}", pixels="standardised")
    return Architecture(
        name=stem,
        input_size=224,
        feature_size=feature_size,
        pretrained=True,
        build=backbone.build,
        build_published=backbone.build_published,
        parameters=parameters,
        multiply_adds=multiply_adds,
        published="Huang et al. 2016, arXiv:1608.06993, with 1000 ImageNet classes.",
        weights_source=SOURCE,
        load=backbone.load,
        keras_file=notop_file(stem, "densenet", f"DENSENET{layers}_WEIGHT_PATH_NO_TOP", md5),
        resizable=True,
        smallest_px=32,
        depths=("pool2_conv", "pool3_conv", "pool4_conv"),
    )


ARCHITECTURES: Final = (
    _architecture(121, 1024, 8_062_504, 2_834_161_664, "30ee3e1110167f948a6b9946edeeb738"),
    _architecture(169, 1664, 14_307_880, 3_359_843_328, "b8c4d4c20dd625c148057b9ff1c1176b"),
)

"""MobileNetV3, large and small, in the widths that are trained (Howard et al. 2019).

arXiv:1905.02244. They exist for photos of 224 px only.
"""

from __future__ import annotations

from typing import Final

from worker.ml.architectures.base import Architecture, KerasFile
from worker.ml.architectures.keras_backbone import SOURCE, KerasBackbone

_DEPTHS: Final = {
    "large": (
        "expanded_conv_2_add",
        "expanded_conv_5_add",
        "expanded_conv_11_add",
        "expanded_conv_14_add",
    ),
    "small": ("expanded_conv_2_add", "expanded_conv_5_add", "expanded_conv_7_add"),
}


def _architecture(
    kind: str, alpha: float, feature_size: int, parameters: int, multiply_adds: int, md5: str
) -> Architecture:
    backbone = KerasBackbone(
        name=f"mobilenet_v3_{kind}_{alpha}",
        constructor=f"MobileNetV3{kind.capitalize()}",
        pixels="signed",
        options={"alpha": alpha, "include_preprocessing": False},
    )
    return Architecture(
        name=f"mobilenet_v3_{kind}_{alpha}_224",
        input_size=224,
        feature_size=feature_size,
        pretrained=True,
        build=backbone.build,
        build_published=backbone.build_published,
        parameters=parameters,
        multiply_adds=multiply_adds,
        published="Howard et al. 2019, arXiv:1905.02244, with 1000 ImageNet classes.",
        weights_source=SOURCE,
        load=backbone.load,
        keras_file=KerasFile(
            f"weights_mobilenet_v3_{kind}_224_{alpha}_float_no_top_v2.h5",
            "mobilenet_v3",
            "BASE_WEIGHT_PATH",
            md5,
        ),
        resizable=True,
        smallest_px=32,
        depths=_DEPTHS[kind],
    )


ARCHITECTURES: Final = (
    _architecture("small", 0.75, 432, 2_051_552, 43_399_344, "ebdb5cc8e0b497cd13a7c275d475c819"),
    _architecture("small", 1.0, 576, 2_554_968, 56_510_400, "d3e8ec802a04aa4fc771ee12a9a9b836"),
    _architecture("large", 0.75, 720, 4_012_616, 154_560_624, "40af19a13ebea4e2ee0c676887f69a2e"),
    _architecture("large", 1.0, 960, 5_507_432, 216_589_760, "07fb09a5933dd0c8eaafa16978110389"),
)

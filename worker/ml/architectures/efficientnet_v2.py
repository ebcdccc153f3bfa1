"""EfficientNetV2-B0 (Tan and Le 2021, arXiv:2104.00298)."""

from __future__ import annotations

from typing import Final

from worker.ml.architectures.base import Architecture, KerasFile
from worker.ml.architectures.keras_backbone import SOURCE, KerasBackbone

_BACKBONE: Final = KerasBackbone(
    name="efficientnet_v2_b0",
    constructor="EfficientNetV2B0",
    pixels="standardised",
    options={"include_preprocessing": False},
)

ARCHITECTURES: Final = (
    Architecture(
        name="efficientnet_v2_b0",
        input_size=224,
        feature_size=1280,
        pretrained=True,
        build=_BACKBONE.build,
        build_published=_BACKBONE.build_published,
        parameters=7_200_312,
        multiply_adds=718_086_176,
        published="Tan and Le 2021, arXiv:2104.00298, with 1000 ImageNet classes.",
        weights_source=SOURCE,
        load=_BACKBONE.load,
        keras_file=KerasFile(
            "efficientnetv2-b0_notop.h5",
            "efficientnet_v2",
            "BASE_WEIGHTS_PATH",
            "893217f2bb855e2983157299931e43ff",
        ),
        resizable=True,
        smallest_px=32,
        depths=("block2b_add", "block3b_add", "block5e_add", "block6h_add"),
    ),
)

"""MobileNet (Howard et al. 2017, arXiv:1704.04861), in every width and size that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from worker.ml.architectures.base import Architecture, KerasFile
from worker.ml.architectures.keras_backbone import SOURCE, KerasBackbone

# Width, size in pixels: parameters and multiply-adds with 1000 classes.
_SIZES: Final[Mapping[tuple[float, int], tuple[int, int]]] = {
    (1.0, 224): (4_253_864, 568_740_352),
    (1.0, 192): (4_253_864, 418_121_728),
    (1.0, 160): (4_253_864, 290_675_200),
    (1.0, 128): (4_253_864, 186_400_768),
    (0.75, 224): (2_601_976, 325_400_448),
    (0.75, 192): (2_601_976, 239_273_472),
    (0.75, 160): (2_601_976, 166_396_800),
    (0.75, 128): (2_601_976, 106_770_432),
    (0.5, 224): (1_342_536, 149_497_088),
    (0.5, 192): (1_342_536, 109_970_432),
    (0.5, 160): (1_342_536, 76_524_800),
    (0.5, 128): (1_342_536, 49_160_192),
    (0.25, 224): (475_544, 41_030_272),
    (0.25, 192): (475_544, 30_212_608),
    (0.25, 160): (475_544, 21_059_200),
    (0.25, 128): (475_544, 13_570_048),
}
_WIDTHS_IN_FILES: Final = {1.0: "1_0", 0.75: "7_5", 0.5: "5_0", 0.25: "2_5"}


def _architecture(alpha: float, side: int, parameters: int, multiply_adds: int) -> Architecture:
    backbone = KerasBackbone(
        name=f"mobilenet_{alpha}",
        constructor="MobileNet",
        pixels="signed",
        options={"alpha": alpha},
        published_px=side,
    )
    return Architecture(
        name=f"mobilenet_{alpha}_{side}",
        input_size=side,
        feature_size=int(1024 * alpha),
        pretrained=True,
        build=backbone.build,
        build_published=backbone.build_published,
        parameters=parameters,
        multiply_adds=multiply_adds,
        published="Howard et al. 2017, arXiv:1704.04861, with 1000 ImageNet classes.",
        weights_source=SOURCE,
        load=backbone.load,
        keras_file=KerasFile(
            f"mobilenet_{_WIDTHS_IN_FILES[alpha]}_{side}_tf_no_top.h5",
            "mobilenet",
            "BASE_WEIGHT_PATH",
        ),
        resizable=True,
        smallest_px=32,
        depths=("conv_pw_3_relu", "conv_pw_5_relu", "conv_pw_8_relu", "conv_pw_11_relu"),
    )


ARCHITECTURES: Final = tuple(_architecture(*shape, *counts) for shape, counts in _SIZES.items())

"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), in every width and size that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from worker.ml.architectures.base import Architecture, KerasFile
from worker.ml.architectures.keras_backbone import SOURCE, KerasBackbone

# Width, size in pixels: parameters and multiply-adds with 1000 classes.
_SIZES: Final[Mapping[tuple[float, int], tuple[int, int]]] = {
    (0.35, 224): (1_691_208, 59_285_808),
    (1.0, 224): (3_538_984, 300_774_272),
    (1.4, 224): (6_156_712, 582_195_824),
    (1.3, 224): (5_431_048, 509_374_560),
    (1.0, 192): (3_538_984, 221_316_608),
    (1.0, 160): (3_538_984, 154_083_200),
    (1.0, 128): (3_538_984, 99_074_048),
    (1.0, 96): (3_538_984, 56_289_152),
    (0.75, 224): (2_663_064, 209_069_792),
    (0.75, 192): (2_663_064, 153_941_888),
    (0.75, 160): (2_663_064, 107_295_200),
    (0.75, 128): (2_663_064, 69_129_728),
    (0.75, 96): (2_663_064, 39_445_472),
    (0.5, 224): (1_987_224, 97_131_840),
    (0.5, 192): (1_987_224, 71_701_760),
    (0.5, 160): (1_987_224, 50_184_000),
    (0.5, 128): (1_987_224, 32_578_560),
    (0.5, 96): (1_987_224, 18_885_440),
    (0.35, 192): (1_691_208, 43_896_512),
    (0.35, 160): (1_691_208, 30_874_800),
    (0.35, 128): (1_691_208, 20_220_672),
    (0.35, 96): (1_691_208, 11_934_128),
}

_WEIGHT_FILES: Final[Mapping[str, Mapping[str, str]]] = {
    "mobilenet_v2_0.35_224": {
        "mobilenet_v2_0.35_224_no_top.weights.h5": (
            "04af0032331eca800a501cbd14b1861ef1d07bfa5728325084bbe295e7ffaecb"
        )
    },
    "mobilenet_v2_1.0_224": {
        "mobilenet_v2_1.0_224_dequantised.weights.h5": (
            "554ec3ed02d35a89b8e385b193ceeda2b29828020904dc70086a1c3914d0828d"
        )
    },
}

# Convolutions fit every size: weights trained on photos of 224 px serve smaller ones too.
_LENDER_PX: Final = 224

# What opens a block that no shortcut leads around: nothing above needs anything from below.
_DEPTHS: Final = tuple(f"block_{block}_expand_relu" for block in (3, 6, 10, 13, 16))


def _architecture(alpha: float, side: int, parameters: int, multiply_adds: int) -> Architecture:
    name = f"mobilenet_v2_{alpha}_{side}"
    backbone = KerasBackbone(
        name=f"mobilenet_v2_{alpha}",
        constructor="MobileNetV2",
        pixels="signed",
        options={"alpha": alpha},
        published_px=side,
    )
    return Architecture(
        name=name,
        input_size=side,
        feature_size=max(1280, int(1280 * alpha)),
        pretrained=True,
        build=backbone.build,
        build_published=backbone.build_published,
        parameters=parameters,
        multiply_adds=multiply_adds,
        published="Sandler et al. 2018, arXiv:1801.04381, with 1000 ImageNet classes.",
        weights_source=SOURCE,
        load=backbone.load,
        keras_file=KerasFile(
            f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{side}_no_top.h5",
            "mobilenet_v2",
            "BASE_WEIGHT_PATH",
        ),
        weight_files=_WEIGHT_FILES.get(name, {}),
        lender="" if side == _LENDER_PX else f"mobilenet_v2_{alpha}_{_LENDER_PX}",
        resizable=True,
        smallest_px=32,
        depths=_DEPTHS,
    )


ARCHITECTURES: Final = tuple(_architecture(*shape, *counts) for shape, counts in _SIZES.items())

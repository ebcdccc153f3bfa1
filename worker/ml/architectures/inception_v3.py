"""Inception v3 (Szegedy et al. 2015, arXiv:1512.00567)."""

from __future__ import annotations

from typing import Final

from worker.ml.architectures.base import Architecture
from worker.ml.architectures.keras_backbone import SOURCE, KerasBackbone, notop_file

_BACKBONE: Final = KerasBackbone(
    name="inception_v3", constructor="InceptionV3", pixels="signed", published_px=299
)

ARCHITECTURES: Final = (
    Architecture(
        name="inception_v3",
        input_size=299,
        feature_size=2048,
        pretrained=True,
        build=_BACKBONE.build,
        build_published=_BACKBONE.build_published,
        parameters=23_851_784,
        multiply_adds=5_713_216_096,
        published="Szegedy et al. 2015, arXiv:1512.00567, with 1000 ImageNet classes.",
        weights_source=SOURCE,
        load=_BACKBONE.load,
        keras_file=notop_file(
            "inception_v3",
            "inception_v3",
            "WEIGHTS_PATH_NO_TOP",
            "bcbd6486424b2319ff4ef7d526e38f63",
        ),
        resizable=True,
        smallest_px=75,
        depths=("mixed2", "mixed4", "mixed7", "mixed8"),
    ),
)

"""NASNet-A for phones (Zoph et al. 2017, arXiv:1707.07012)."""

from __future__ import annotations

from typing import Final

from worker.ml.architectures.base import Architecture, KerasFile
from worker.ml.architectures.keras_backbone import SOURCE, KerasBackbone

_BACKBONE: Final = KerasBackbone(name="nasnet_mobile", constructor="NASNetMobile", pixels="signed")

ARCHITECTURES: Final = (
    Architecture(
        name="nasnet_mobile",
        input_size=224,
        feature_size=1056,
        pretrained=True,
        build=_BACKBONE.build,
        build_published=_BACKBONE.build_published,
        parameters=5_326_716,
        multiply_adds=563_638_816,
        published="Zoph et al. 2017, arXiv:1707.07012, with 1000 ImageNet classes.",
        weights_source=SOURCE,
        load=_BACKBONE.load,
        keras_file=KerasFile(
            "nasnet_mobile_no_top.h5",
            "nasnet",
            "NASNET_MOBILE_WEIGHT_PATH_NO_TOP",
            "1ed92395b5b598bdda52abe5c0dbfd63",
        ),
        resizable=True,
        smallest_px=32,
        depths=("normal_concat_3", "normal_concat_8"),
    ),
)

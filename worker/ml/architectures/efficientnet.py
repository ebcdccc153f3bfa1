"""EfficientNet B0 to B3 (Tan and Le 2019, arXiv:1905.11946)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from worker.ml.architectures.base import Architecture, KerasFile
from worker.ml.architectures.keras_backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SOURCE,
    KerasBackbone,
    rescaling,
)
from worker.ml.errors import WeightsUnavailable

if TYPE_CHECKING:
    import keras

_CLOSE: Final = 1e-3


class _EfficientNet(KerasBackbone):
    """The network with one rescaling layer in place of the preprocessing that it brings.

    Keras's network divides by 255 and normalises by numbers that are weights. They are ImageNet's
    mean and deviation; the deviation stands where a variance is meant, for which Keras makes up
    by a further layer only where it loads ImageNet's weights itself.
    """

    def _connect(self, input_size: int) -> tuple[Any, Any]:
        import keras
        from keras import layers

        photo = keras.Input((input_size, input_size, 3), name="image")
        whole = self._make(input_tensor=photo, include_top=False)

        def exchange(layer: keras.layers.Layer) -> keras.layers.Layer:
            if isinstance(layer, layers.Rescaling):
                return rescaling(self.pixels)
            if isinstance(layer, layers.Normalization):
                return layers.Identity(name=layer.name)
            return type(layer).from_config(layer.get_config())

        network = keras.models.clone_model(whole, clone_function=exchange)
        return network.inputs[0], network.outputs[0]

    def _adapted(self, reference: keras.Model) -> list[Any]:
        mean, variance, _, *rest = reference.get_weights()
        expected = (IMAGENET_MEAN, IMAGENET_STD)
        if not np.allclose([mean.ravel(), variance.ravel()], expected, atol=_CLOSE):
            message = f"the weights of {self.name} were trained on pixels scaled in another way"
            raise WeightsUnavailable(message, code="weights_wrong")
        weights: list[Any] = rest
        return weights


def _architecture(
    kind: str, side: int, feature_size: int, parameters: int, multiply_adds: int, md5: str
) -> Architecture:
    backbone = _EfficientNet(
        name=f"efficientnet_{kind}",
        constructor=f"EfficientNet{kind.upper()}",
        pixels="standardised",
        published_px=side,
    )
    return Architecture(
        name=f"efficientnet_{kind}",
        input_size=side,
        feature_size=feature_size,
        pretrained=True,
        build=backbone.build,
        build_published=backbone.build_published,
        parameters=parameters,
        multiply_adds=multiply_adds,
        published="Tan and Le 2019, arXiv:1905.11946, with 1000 ImageNet classes.",
        weights_source=SOURCE,
        load=backbone.load,
        keras_file=KerasFile(
            f"efficientnet{kind}_notop.h5", "efficientnet", "BASE_WEIGHTS_PATH", md5
        ),
        resizable=True,
        smallest_px=32,
        depths=("block2b_add", "block3b_add", "block5c_add", "block6d_add"),
    )


ARCHITECTURES: Final = (
    _architecture("b0", 224, 1280, 5_330_571, 385_814_752, "50bc09e76180e00e4465e1a485ddc09d"),
    _architecture("b1", 240, 1280, 7_856_239, 686_802_832, "74c4e6b3e1f6a1eea24c589628592432"),
    _architecture("b2", 260, 1408, 9_177_569, 993_561_872, "111f8e2ac8aa800a7a99e3239f7bfb39"),
    _architecture("b3", 300, 1536, 12_320_535, 1_827_141_392, "af6d107764bb5b1abb91932881670226"),
)

"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381), pretrained on ImageNet."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from worker.ml.architectures.base import Architecture
from worker.ml.errors import WeightsUnavailable

if TYPE_CHECKING:
    import keras

_FEATURE_SIZE: Final = 1280


def _build(input_size: int, *, alpha: float) -> keras.Model:
    import keras

    photo = keras.Input((input_size, input_size, 3), name="image")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(photo)
    backbone = keras.applications.MobileNetV2(
        input_tensor=scaled, alpha=alpha, include_top=False, weights=None
    )
    features = keras.layers.GlobalAveragePooling2D(name="features")(backbone.output)
    return keras.Model(photo, features, name=f"mobilenet_v2_{alpha}_{input_size}")


def _load(model: keras.Model, path: Path, *, alpha: float) -> None:
    """Fill ``model`` from a weight file, with or without the 1000 ImageNet classes on top.

    The file names layers by their place in Keras's own network, so they pass through one.
    """
    import keras

    reference = keras.applications.MobileNetV2(
        input_shape=(224, 224, 3), alpha=alpha, include_top=False, weights=None
    )
    try:
        with warnings.catch_warnings():
            # Keras only warns of layers that it leaves at random.
            warnings.simplefilter("error", UserWarning)
            reference.load_weights(path)
    except (ValueError, KeyError, OSError, UserWarning) as error:
        reason = str(error).splitlines()[0]
        message = f"{path.name} does not hold weights of MobileNetV2 {alpha}: {reason}"
        raise WeightsUnavailable(message, code="weights_wrong") from error
    model.set_weights(reference.get_weights())


def _build_published(*, alpha: float) -> keras.Model:
    import keras

    return keras.applications.MobileNetV2(alpha=alpha, weights=None)


def _architecture(alpha: float, parameters: int, multiply_adds: int) -> Architecture:
    return Architecture(
        name=f"mobilenet_v2_{alpha}_224",
        input_size=224,
        feature_size=_FEATURE_SIZE,
        pretrained=True,
        build=partial(_build, alpha=alpha),
        build_published=partial(_build_published, alpha=alpha),
        parameters=parameters,
        multiply_adds=multiply_adds,
        published="Sandler et al. 2018, arXiv:1801.04381, with 1000 ImageNet classes.",
        weights_source="ImageNet weights from the folder of weights, else Keras's download.",
        load=partial(_load, alpha=alpha),
    )


ARCHITECTURES: Final = (
    _architecture(0.35, 1_691_208, 59_285_808),
    _architecture(1.0, 3_538_984, 300_774_272),
)

"""What networks of ``keras.applications`` have in common: pixels, features, weight files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from worker.ml.architectures.base import KerasFile
from worker.ml.errors import WeightsUnavailable

if TYPE_CHECKING:
    import keras

Pixels = Literal["signed", "standardised", "centred"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
# Of the network that Caffe distributed; in the order red, green, blue.
_CAFFE_MEAN: Final = (123.68, 116.779, 103.939)

SOURCE: Final = "ImageNet weights from the folder of weights, else Keras's download."


@dataclass(frozen=True)
class KerasBackbone:
    """A network of ``keras.applications`` that takes RGB 0..255 and gives averaged features.

    ``pixels`` says what its weights were trained on: "signed" -1..1; "standardised" 0..1, less
    ImageNet's mean, over its deviation; "centred" 0..255 less ImageNet's mean, blue first.
    Networks that rescale by themselves are told not to, by ``options``.
    """

    name: str
    constructor: str
    pixels: Pixels
    options: Mapping[str, Any] = field(default_factory=dict)
    published_px: int = 224

    def build(self, input_size: int) -> keras.Model:
        """Return photos (batch, size, size, 3), 0..255, to features (batch, features)."""
        import keras

        photo, activations = self._connect(input_size)
        features = keras.layers.GlobalAveragePooling2D(name="features")(activations)
        return keras.Model(photo, features, name=f"{self.name}_{input_size}")

    def build_published(self) -> keras.Model:
        """Return Keras's own network with 1000 classes on top."""
        side = self.published_px
        return self._make(input_shape=(side, side, 3), include_top=True)

    def load(self, model: keras.Model, path: Path) -> None:
        """Fill ``model`` from a weight file, with or without the 1000 ImageNet classes on top.

        The file names layers by their place in Keras's own network, so they pass through one.
        """
        side = self.published_px
        reference = self._make(input_shape=(side, side, 3), include_top=False)
        try:
            with warnings.catch_warnings():
                # Keras only warns of layers that it leaves at random.
                warnings.simplefilter("error", UserWarning)
                reference.load_weights(path)
        except (ValueError, KeyError, OSError, UserWarning) as error:
            reason = str(error).splitlines()[0]
            message = f"{path.name} does not hold weights of {self._described}: {reason}"
            raise WeightsUnavailable(message, code="weights_wrong") from error
        model.set_weights(self._adapted(reference))

    @property
    def _described(self) -> str:
        return " ".join([self.constructor, *map(str, self.options.values())])

    def _make(self, **arguments: Any) -> keras.Model:
        import keras

        make = getattr(keras.applications, self.constructor)
        with warnings.catch_warnings():
            # It tells of the size that its download was trained for, and nothing is downloaded.
            warnings.simplefilter("ignore", UserWarning)
            network: keras.Model = make(weights=None, **self.options, **arguments)
        return network

    def _connect(self, input_size: int) -> tuple[Any, Any]:
        """Return a photo (batch, size, size, 3), 0..255, and the last activations for it."""
        import keras

        photo = keras.Input((input_size, input_size, 3), name="image")
        pixels = rescaling(self.pixels)(photo)
        return photo, self._make(input_tensor=pixels, include_top=False).output

    def _adapted(self, reference: keras.Model) -> list[Any]:
        """Return the weights as a network needs them that takes red first."""
        if self.pixels == "centred":
            first = next(layer for layer in reference.layers if layer.weights)
            kernel, *rest = first.get_weights()
            first.set_weights([kernel[:, :, ::-1], *rest])
        weights: list[Any] = reference.get_weights()
        return weights


def rescaling(pixels: Pixels) -> keras.layers.Layer:
    """Return the layer from 0..255 to what weights want that take red first."""
    import keras

    scale, offset = SCALES[pixels]
    return keras.layers.Rescaling(scale, offset=offset, name="rescaling")


SCALES: Final[Mapping[str, tuple[Any, Any]]] = {
    "signed": (1 / 127.5, -1.0),
    "standardised": (
        [1 / (255 * deviation) for deviation in IMAGENET_STD],
        [-mean / deviation for mean, deviation in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)],
    ),
    "centred": (1.0, [-mean for mean in _CAFFE_MEAN]),
}


def notop_file(stem: str, module: str, address: str, md5: str) -> KerasFile:
    """Return the file of weights without a top, as Keras's older networks name it."""
    name = f"{stem}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return KerasFile(name, module, address, md5)

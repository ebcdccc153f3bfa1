"""Parts of the networks that are written here from their papers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from worker.ml.architectures.keras_backbone import Pixels, rescaling
from worker.ml.errors import WeightsUnavailable

if TYPE_CHECKING:
    import keras

Activation = Literal["relu", "leaky_relu"]

# Few photos mean few steps: Keras's .99 would leave statistics where they began.
_MOMENTUM: Final = 0.9
_LEAK: Final = 0.1
_WITHOUT_PLACES: Final = 2
"""Axes of activations that are features already: batch and channels."""


@dataclass(frozen=True)
class ScratchNetwork:
    """A network written here: no weights of it are published for Keras.

    ``connect`` takes rescaled pixels (batch, size, size, 3) to activations, which are averaged
    over their places; where it gives (batch, features), its last layer is called "features".
    ``top`` takes the activations to the probabilities of the published classes; without it that
    is one dense layer on the features. ``scale`` and ``offset`` replace ``pixels``.
    """

    name: str
    connect: Callable[[Any], Any]
    classes: int = 1000
    published_px: int = 224
    pixels: Pixels = "standardised"
    scaling: tuple[float, float] | None = None
    top: Callable[[Any], Any] | None = None

    @property
    def weights_source(self) -> str:
        """Return the sentence for :class:`~worker.ml.architectures.base.Architecture`."""
        return (
            "None is published for Keras: trained from nothing, unless the folder of weights holds"
            f" {self.name}.weights.h5."
        )

    def build(self, input_size: int) -> keras.Model:
        """Return photos (batch, size, size, 3), 0..255, to features (batch, features)."""
        import keras

        photo, activations = self._activations(input_size)
        name = f"{self.name}_{input_size}"
        return keras.Model(photo, _averaged(activations), name=name)

    def build_published(self) -> keras.Model:
        """Return the network with its classes on top."""
        import keras

        photo, activations = self._activations(self.published_px)
        if self.top is not None:
            answer = self.top(activations)
        else:
            dense = keras.layers.Dense(self.classes, activation="softmax", name="predictions")
            answer = dense(_averaged(activations))
        return keras.Model(photo, answer, name=self.name)

    def load(self, model: keras.Model, path: Path) -> None:
        """Fill ``model`` from a file that Keras's ``save_weights`` wrote of such a network."""
        reference = self.build(self.published_px)
        try:
            with warnings.catch_warnings():
                # Keras only warns of layers that it leaves at random.
                warnings.simplefilter("error", UserWarning)
                reference.load_weights(path)
        except (ValueError, KeyError, OSError, UserWarning) as error:
            reason = str(error).splitlines()[0]
            message = f"{path.name} does not hold weights of {self.name}: {reason}"
            raise WeightsUnavailable(message, code="weights_wrong") from error
        model.set_weights(reference.get_weights())

    def _activations(self, input_size: int) -> tuple[Any, Any]:
        import keras

        photo = keras.Input((input_size, input_size, 3), name="image")
        return photo, self.connect(self._rescaling()(photo))

    def _rescaling(self) -> keras.layers.Layer:
        import keras

        if self.scaling is None:
            return rescaling(self.pixels)
        scale, offset = self.scaling
        return keras.layers.Rescaling(scale, offset=offset, name="rescaling")


def _averaged(activations: Any) -> Any:
    from keras import layers

    if len(activations.shape) == _WITHOUT_PLACES:
        return activations
    return layers.GlobalAveragePooling2D(name="features")(activations)


def conv_norm(
    x: Any,
    filters: int,
    kernel_px: int,
    name: str,
    *,
    strides: int = 1,
    padding: Literal["same", "valid"] = "same",
    groups: int = 1,
    activation: Activation | None = None,
) -> Any:
    """Return a convolution without bias, normalised over the batch, and activated."""
    from keras import layers

    x = layers.Conv2D(
        filters,
        kernel_px,
        strides=strides,
        padding=padding,
        groups=groups,
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)
    return normalise(x, name, activation=activation)


def depthwise_norm(
    x: Any, kernel_px: int, name: str, *, strides: int = 1, activation: Activation | None = None
) -> Any:
    """Return a convolution of each channel by itself, normalised and activated."""
    from keras import layers

    x = layers.DepthwiseConv2D(
        kernel_px, strides=strides, padding="same", use_bias=False, name=name
    )(x)
    return normalise(x, name, activation=activation)


def normalise(x: Any, name: str, *, activation: Activation | None = None) -> Any:
    """Return activations normalised over the batch, and activated."""
    from keras import layers

    x = layers.BatchNormalization(momentum=_MOMENTUM, name=f"{name}_norm")(x)
    if activation == "relu":
        return layers.ReLU(name=f"{name}_relu")(x)
    if activation == "leaky_relu":
        return layers.LeakyReLU(_LEAK, name=f"{name}_relu")(x)
    return x


def squeeze_excite(x: Any, squeezed: int, name: str) -> Any:
    """Weigh channels by what the whole picture says of them (Hu et al. 2017, arXiv:1709.01507).

    The mean of each channel passes through ``squeezed`` units to a factor from 0 to 1.
    """
    from keras import layers

    means = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    small = layers.Conv2D(squeezed, 1, activation="relu", name=f"{name}_reduce")(means)
    factors = layers.Conv2D(x.shape[-1], 1, activation="sigmoid", name=f"{name}_expand")(small)
    return layers.Multiply(name=f"{name}_excite")([x, factors])


def inverted_residual(
    x: Any,
    filters: int,
    name: str,
    *,
    kernel_px: int,
    expansion: int,
    strides: int,
    squeeze_share: float = 0.0,
) -> Any:
    """Return a block that widens, filters each channel and narrows again, linear at its end.

    Sandler et al. 2018 (arXiv:1801.04381); squeezing as in Tan et al. 2018 (arXiv:1807.11626),
    to a share of the channels that come in. What comes in is added where shapes allow it.
    """
    from keras import layers

    width = x.shape[-1]
    inner = conv_norm(x, width * expansion, 1, f"{name}_widen", activation="relu")
    inner = depthwise_norm(
        inner, kernel_px, f"{name}_depthwise", strides=strides, activation="relu"
    )
    if squeeze_share:
        inner = squeeze_excite(inner, max(1, int(width * squeeze_share)), name)
    inner = conv_norm(inner, filters, 1, f"{name}_out")
    if strides == 1 and width == filters:
        return layers.Add(name=f"{name}_add")([x, inner])
    return inner

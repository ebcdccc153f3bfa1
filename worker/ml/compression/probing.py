"""What reaches a layer when photos pass through a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import keras

Array = npt.NDArray[np.float64]

_BATCH: Final = 16
_POSITIONS: Final = 20_000
_NUMBERS: Final = 20_000_000


def channels_into(
    model: keras.Model, layer: Any, photos: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return (positions, channels): the layer's inputs, a fixed choice of positions."""
    rows = (found.reshape(-1, found.shape[-1]) for found in _inputs(model, layer, photos))
    return _thinned(rows, len(photos), _POSITIONS)


def columns_into(model: keras.Model, layer: Any, photos: npt.NDArray[np.float32]) -> Array:
    """Return (positions, inputs of one output): windows under a kernel, in the kernel's order."""
    fan_in = int(np.prod(layer.kernel.shape[:-1]))
    most = min(_POSITIONS, max(2 * fan_in, _NUMBERS // fan_in))
    rows = (_windows(layer, found) for found in _inputs(model, layer, photos))
    return _thinned(rows, len(photos), most).astype(np.float64)


def _inputs(
    model: keras.Model, layer: Any, photos: npt.NDArray[np.float32]
) -> Iterator[npt.NDArray[np.float32]]:
    import keras

    probe = keras.Model(model.input, layer.input)
    for start in range(0, len(photos), _BATCH):
        yield np.asarray(probe(photos[start : start + _BATCH], training=False))


def _windows(layer: Any, found: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if type(layer).__name__ == "Dense":
        return found.reshape(-1, found.shape[-1])
    import tensorflow as tf

    height, width = layer.kernel_size
    cut = tf.image.extract_patches(
        found,
        sizes=(1, height, width, 1),
        strides=(1, *layer.strides, 1),
        rates=(1, *layer.dilation_rate, 1),
        padding=layer.padding.upper(),
    )
    rows: npt.NDArray[np.float32] = np.asarray(cut).reshape(-1, cut.shape[-1])
    return rows


def _thinned(
    batches: Iterator[npt.NDArray[np.float32]], photos: int, most: int
) -> npt.NDArray[np.float32]:
    share = max(1, most * _BATCH // max(1, photos))
    kept = [rows[:: max(1, len(rows) // share)] for rows in batches]
    found: npt.NDArray[np.float32] = np.concatenate(kept)
    return found

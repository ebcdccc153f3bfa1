"""Batch normalisation folded into the layer before it, as compilers do.

Compilers multiply each channel's weights by a factor of its own. A palette chosen before that
would be none any more, and small weights would be other ones; so it is done first, here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.compression import graphs

if TYPE_CHECKING:
    import keras

Array = npt.NDArray[np.float64]

FOLDABLE: Final = ("Conv2D", "DepthwiseConv2D", "Dense")
_NORM: Final = "BatchNormalization"


def fold_batch_norms(model: keras.Model) -> keras.Model:
    """Return a network of the same answers without batch normalisation, where it can be folded.

    Raises :class:`~worker.ml.errors.CompilationFailed` where the network holds another.
    """
    import keras

    graphs.check_flat(model)
    flow = graphs.Flow(model)
    norms = {
        layer.name: norm for layer in model.layers if (norm := _norm_after(flow, layer)) is not None
    }
    folded = {norm.name for norm in norms.values()}

    def change(layer: Any) -> Any:
        if layer.name in folded:
            return keras.layers.Activation("linear", name=layer.name)
        if layer.name in norms:
            return graphs.copy_of(layer, use_bias=True)
        return graphs.copy_of(layer)

    rebuilt = graphs.rebuild(model, change)
    for layer in model.layers:
        if layer.name in folded or not layer.weights:
            continue
        weights = layer.get_weights()
        norm = norms.get(layer.name)
        rebuilt.get_layer(layer.name).set_weights(
            weights if norm is None else _folded(layer, weights, norm)
        )
    return rebuilt


def _norm_after(flow: graphs.Flow, layer: Any) -> Any | None:
    if type(layer).__name__ not in FOLDABLE:
        return None
    if getattr(layer.activation, "__name__", "linear") != "linear":
        return None
    follower = flow.only_follower(layer)
    return follower if type(follower).__name__ == _NORM else None


def _folded(layer: Any, weights: list[Any], norm: Any) -> list[Any]:
    """Return kernel and bias (Ioffe and Szegedy 2015, section 3.1)."""
    kernel, bias = weights[0].astype(np.float64), 0.0
    if layer.use_bias:
        bias = weights[1].astype(np.float64)
    mean, variance = _array(norm.moving_mean), _array(norm.moving_variance)
    factor = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        factor = factor * _array(norm.gamma)
    shift = (_array(norm.beta) if norm.center else 0.0) + (bias - mean) * factor
    # A depthwise kernel is (rows, columns, channels, multiplier), its outputs in that order.
    scaled = (
        (kernel.reshape(*kernel.shape[:2], -1) * factor).reshape(kernel.shape)
        if (type(layer).__name__ == "DepthwiseConv2D")
        else kernel * factor
    )
    return [scaled.astype(np.float32), shift.astype(np.float32)]


def _array(variable: Any) -> Array:
    return np.asarray(variable, dtype=np.float64)

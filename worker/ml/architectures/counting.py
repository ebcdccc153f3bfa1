"""How many numbers a network holds, and how many multiplications one photo takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def count_parameters(model: keras.Model) -> int:
    """Return how many numbers the network holds, batch normalisation's statistics included."""
    return int(model.count_params())


def count_multiply_adds(model: keras.Model) -> int:
    """Return the multiply-adds of convolutions and dense layers for one photo.

    What papers count: a multiplication and the addition after it are one; normalisation,
    activations, pooling and biases are left out. Every use of a shared layer counts.
    """
    return sum(_of_layer(layer) for layer in _layers(model))


def _layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _layers(layer)
        else:
            yield layer


def _of_layer(layer: Any) -> int:
    kind = type(layer).__name__
    nodes = layer._inbound_nodes  # noqa: SLF001 - Keras has no public list of a layer's uses
    positions = sum(math.prod(node.output_tensors[0].shape[1:-1]) for node in nodes)
    if kind in {"Conv2D", "DepthwiseConv2D", "Dense"}:
        # A kernel is read once for each place of the output; groups are in its shape already.
        return int(positions * math.prod(layer.kernel.shape))
    if kind == "SeparableConv2D":
        kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
        return int(positions * sum(math.prod(kernel.shape) for kernel in kernels))
    return 0

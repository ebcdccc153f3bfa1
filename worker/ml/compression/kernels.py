"""What becomes of one kernel: weights set to nought, drawn from a palette, or made integers.

Kernels are float32 and stay so; their values are such that a file stores them in less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.compression.palettes import find_palette

if TYPE_CHECKING:
    import keras

    from worker.ml.compression.recipes import Recipe

Kernel = npt.NDArray[np.float32]

LEAST_WEIGHTS: Final = 2048
"""Smaller kernels are not worth what a palette or a mask of their own takes."""

_LINEAR_TRIES: Final = 64


def compressible(model: keras.Model) -> list[Any]:
    """Return the layers whose kernels may be pruned or clustered, in their order.

    Not the first with weights: what it loses everything after it lacks. Not depthwise ones:
    nine weights make a channel, and all of them together are a few per cent of a network.
    """
    weighted = [layer for layer in model.layers if layer.weights]
    return [
        layer
        for layer in weighted[1:]
        if type(layer).__name__ in {"Conv2D", "Dense"}
        and getattr(layer, "groups", 1) == 1
        and np.prod(layer.kernel.shape) >= LEAST_WEIGHTS
    ]


def mask_of(kernel: Kernel, sparsity: float) -> npt.NDArray[np.bool_]:
    """Return which weights stay: the largest, as many as ``sparsity`` leaves."""
    order = np.argsort(np.abs(kernel), axis=None, kind="stable")
    mask = np.ones(kernel.size, dtype=bool)
    mask[order[: round(sparsity * kernel.size)]] = False
    return mask.reshape(kernel.shape)


def palette_of(
    kernel: Kernel, size: int, mask: npt.NDArray[np.bool_] | None = None
) -> tuple[Kernel, npt.NDArray[np.int32]]:
    """Return the values (``size``,) and the index of each weight; what is masked has none, -1."""
    indexes = np.full(kernel.shape, -1, dtype=np.int32)
    kept = np.ones(kernel.shape, dtype=bool) if mask is None else mask
    palette, found = find_palette(kernel[kept].astype(np.float16), size)
    indexes[kept] = found
    return palette.astype(np.float32), indexes


def from_palette(palette: Kernel, indexes: npt.NDArray[np.int32]) -> Kernel:
    """Return the kernel that palette and indexes describe, in values that float16 has."""
    values = palette.astype(np.float16).astype(np.float32)
    found = np.where(indexes < 0, 0.0, values[np.maximum(indexes, 0)])
    return found.astype(np.float32)


def to_linear(kernel: Kernel, bits: int) -> Kernel:
    """Return the kernel in whole steps of a scale for each of its outputs (the last axis).

    Scales are such that float16 has them, and that whoever looks for the largest weight finds
    the same scale again: then storing them as integers loses nothing more.
    """
    most = 2 ** (bits - 1) - 1
    flat = kernel.reshape(-1, kernel.shape[-1])
    scales = np.array([_scale_for(float(peak), most) for peak in np.abs(flat).max(axis=0)])
    steps = np.round(flat / scales).clip(-most, most)
    found: Kernel = (steps * scales).astype(np.float32).reshape(kernel.shape)
    return found


def _scale_for(peak: float, most: int) -> float:
    scale = np.float16(max(peak, 1e-4) / most)
    for _ in range(_LINEAR_TRIES):
        found = np.float16(float(np.float16(float(scale) * most)) / most)
        if found == scale and float(scale) * (most + 0.49) >= peak:
            break
        scale = np.nextafter(scale, np.float16(np.inf))
    return float(scale)


def compress_once(model: keras.Model, recipe: Recipe) -> None:
    """Change the kernels of a folded network as the recipe says, without training, in place."""
    if recipe.linear_bits:
        for layer in model.layers:
            _make_linear(layer, recipe.linear_bits)
        return
    for layer in compressible(model):
        kernel = np.asarray(layer.kernel)
        mask = mask_of(kernel, recipe.sparsity) if recipe.sparsity else None
        if recipe.palette:
            kernel = from_palette(*palette_of(kernel, recipe.palette, mask))
        elif mask is not None:
            kernel = kernel * mask
        layer.kernel.assign(kernel)


def _make_linear(layer: Any, bits: int) -> None:
    kind = type(layer).__name__
    if kind not in {"Conv2D", "DepthwiseConv2D", "Dense"}:
        return
    kernel = np.asarray(layer.kernel)
    if kernel.size < LEAST_WEIGHTS:
        return
    if kind == "DepthwiseConv2D":
        outputs = kernel.reshape(*kernel.shape[:2], -1)
        layer.kernel.assign(to_linear(outputs, bits).reshape(kernel.shape))
    else:
        layer.kernel.assign(to_linear(kernel, bits))

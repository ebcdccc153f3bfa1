"""Convolution, pooling and products in NumPy, for pictures with their channels first.

Written from the definitions, without TensorFlow: that the same numbers come out of Keras is then
the agreement of two independent calculations. All arrays are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Pair = tuple[int, int]

# Columns of a convolution at a time: what stays in a processor's cache is twice as fast.
_BLOCK_VALUES: Final = 1 << 20
_SMALLEST_NORMAL: Final = np.float32(2.0**-14)
_TINY_STEPS: Final = np.float32(0.75)
_BEYOND_FLOAT16: Final = np.float32(65520.0)


def find_padding(
    kind: str, custom: tuple[int, ...], sizes: Pair, kernel: Pair, strides: Pair, dilations: Pair
) -> tuple[Pair, Pair]:
    """Return ((top, bottom), (left, right)); ``same`` puts the odd row below, as TensorFlow."""
    if kind == "valid":
        return (0, 0), (0, 0)
    if kind == "custom":
        top, bottom, left, right = custom
        return (top, bottom), (left, right)
    rows, columns = (
        _same(size, width, stride, dilation, is_lower=kind == "same_lower")
        for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    )
    return rows, columns


def _same(size: int, width: int, stride: int, dilation: int, *, is_lower: bool) -> Pair:
    reach = (width - 1) * dilation + 1
    total = max(0, (-(-size // stride) - 1) * stride + reach - size)
    less, more = total // 2, total - total // 2
    return (more, less) if is_lower else (less, more)


def convolve(
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    strides: Pair = (1, 1),
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
    dilations: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """Return the cross-correlation of ``x`` (N, C, H, W) with (outputs, C/groups, h, w)."""
    x = _padded(x, padding, 0.0)
    outputs, _, *kernel = weight.shape
    rows, columns = (
        (size - (width - 1) * dilation - 1) // stride + 1
        for size, width, dilation, stride in zip(
            x.shape[2:], kernel, dilations, strides, strict=True
        )
    )
    if weight.shape[1] == 1 and outputs == groups:
        result = _each_channel(x, weight, (rows, columns), strides, dilations)
    else:
        result = np.empty((len(x), outputs, rows, columns), np.float32)
        matrix = weight.reshape(groups, outputs // groups, -1)
        depth = matrix.shape[2] * groups
        step = max(1, _BLOCK_VALUES // max(1, depth * columns))
        for first in range(0, rows, step):
            count = min(step, rows - first)
            columns_of = _columns(x, (first, count, columns), (kernel[0], kernel[1]), strides,
                                  dilations)  # fmt: skip
            part = matrix @ columns_of.reshape(len(x), groups, -1, count * columns)
            result[:, :, first : first + count] = part.reshape(len(x), outputs, count, columns)
    if bias is not None:
        result += bias.reshape(1, -1, 1, 1)
    return result


def _columns(
    x: Array, window: tuple[int, int, int], kernel: Pair, strides: Pair, dilations: Pair
) -> Array:
    """Return what the kernel sees at each place of some rows: (N, C, h·w, rows, columns)."""
    first, rows, columns = window
    seen = np.empty((*x.shape[:2], kernel[0] * kernel[1], rows, columns), np.float32)
    for place, view in enumerate(_views(x, (rows, columns), kernel, strides, dilations, first)):
        seen[:, :, place] = view
    return seen


def _each_channel(x: Array, weight: Array, sizes: Pair, strides: Pair, dilations: Pair) -> Array:
    result = np.zeros((*x.shape[:2], *sizes), np.float32)
    product = np.empty_like(result)
    taps = weight.reshape(len(weight), -1).T[:, None, :, None, None]
    kernel = (weight.shape[2], weight.shape[3])
    for tap, view in zip(taps, _views(x, sizes, kernel, strides, dilations), strict=True):
        np.multiply(view, tap, out=product)
        result += product
    return result


def _views(
    x: Array, sizes: Pair, kernel: Pair, strides: Pair, dilations: Pair, first: int = 0
) -> Iterator[Array]:
    """Yield, for each place in the kernel, the pixels that it meets."""
    (rows, columns), (down, across) = sizes, strides
    for row in range(kernel[0]):
        top = first * down + row * dilations[0]
        for column in range(kernel[1]):
            left = column * dilations[1]
            yield x[
                ...,
                top : top + (rows - 1) * down + 1 : down,
                left : left + (columns - 1) * across + 1 : across,
            ]


def _padded(x: Array, padding: tuple[Pair, Pair], value: float) -> Array:
    if padding == ((0, 0), (0, 0)):
        return x
    return np.pad(x, ((0, 0), (0, 0), *padding), constant_values=value)


def pool(
    x: Array,
    kind: str,
    kernel: Pair,
    *,
    strides: Pair,
    padding: tuple[Pair, Pair],
    counts_padding: bool = False,
    rounds_up: bool = False,
) -> Array:
    """Return maxima or averages (``max``, ``average``) of windows of ``x`` (N, C, H, W).

    With ``rounds_up`` a window may begin inside and end outside (``ceil_mode``); one that would
    begin in the padding behind the picture is left out.
    """
    sizes = []
    for size, width, stride, (before, after) in zip(
        x.shape[2:], kernel, strides, padding, strict=True
    ):
        room = size + before + after - width
        count = (-(-room // stride) if rounds_up else room // stride) + 1
        if rounds_up and (count - 1) * stride >= size + before:
            count -= 1
        sizes.append(count)
    whole = tuple(
        (before, max(after, (count - 1) * stride + width - size - before))
        for size, width, stride, (before, after), count in zip(
            x.shape[2:], kernel, strides, padding, sizes, strict=True
        )
    )
    rows, columns = whole
    window = ((sizes[0], sizes[1]), kernel, strides, (1, 1))
    if kind == "max":
        highest: Array = np.maximum.reduce(
            list(_views(_padded(x, (rows, columns), -np.inf), *window))
        )
        return highest
    ones = np.ones((1, 1, *x.shape[2:]), np.float32)
    if counts_padding:
        ones = _padded(ones, padding, 1.0)
        outside = [(0, outer[1] - inner[1]) for outer, inner in zip(whole, padding, strict=True)]
        ones = _padded(ones, (outside[0], outside[1]), 0.0)
    else:
        ones = _padded(ones, (rows, columns), 0.0)
    total = np.add.reduce(list(_views(_padded(x, (rows, columns), 0.0), *window)))
    average: Array = total / np.add.reduce(list(_views(ones, *window)))
    return average


def softmax(x: Array, axis: int) -> Array:
    """Return exp(x) over its sum along ``axis``."""
    raised = np.exp(x - x.max(axis=axis, keepdims=True))
    shares: Array = raised / raised.sum(axis=axis, keepdims=True)
    return shares


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), without overflow for large negative numbers."""
    raised = np.exp(-np.abs(x))
    values: Array = np.where(x >= 0, 1, raised) / (1 + raised)
    return values


def round_to_float16(x: Array) -> Array:
    """Return float32 with the values that float16 would keep, ties to even.

    Done on the bits, which is a quarter of the time of NumPy's conversion there and back.
    """
    values = np.ascontiguousarray(x).reshape(-1)
    bits = values.view(np.uint32)
    rounded = bits >> np.uint32(13)
    rounded &= np.uint32(1)
    rounded += np.uint32(0xFFF)
    rounded += bits
    rounded &= np.uint32(0xFFFFE000)
    result = rounded.view(np.float32)
    size = np.abs(values)
    tiny = size < _SMALLEST_NORMAL
    if tiny.any():
        # Added to this, a number loses what float16 cannot hold below its normal range.
        places = np.flatnonzero(tiny & (size > 0))
        result[places] = (values[places] + _TINY_STEPS) - _TINY_STEPS
    if not size.max(initial=0.0) < _BEYOND_FLOAT16:
        np.copyto(result, np.copysign(np.float32(np.inf), values), where=size >= _BEYOND_FLOAT16)
        np.copyto(result, values, where=np.isnan(values))
    return result.reshape(x.shape)

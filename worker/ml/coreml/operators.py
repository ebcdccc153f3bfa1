"""The operators of an ML Program, by Apple's definitions of the MIL operations, in NumPy.

Each takes its arguments by the names that the operation gives them: arrays of float32, integers
or booleans, numbers and strings. Those with several results return a tuple. What is not in
:data:`OPERATORS` is unknown, and nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from worker.ml.coreml.arithmetic import Array, convolve, find_padding, pool, sigmoid, softmax
from worker.ml.coreml.errors import OperatorUnknown

Arguments = Mapping[str, Any]
Operator = Callable[[Arguments], Any]

_PLANE: Final = 4
_KINDS: Final = {"fp16": np.float32, "fp32": np.float32, "int32": np.int32, "bool": np.bool_}


def _axes(arguments: Arguments) -> tuple[int, ...] | None:
    axes = arguments.get("axes")
    return None if axes is None else tuple(int(axis) for axis in np.atleast_1d(axes))


def _pair(values: Any) -> tuple[int, int]:
    first, second = (int(value) for value in values)
    return first, second


def _picture(arguments: Arguments, what: str) -> Array:
    x: Array = arguments["x"]
    if x.ndim != _PLANE:
        raise OperatorUnknown(f"{what} over {x.ndim - 2} dimensions")
    return x


# --- weights ----------------------------------------------------------------------------------


def _conv(arguments: Arguments) -> Array:
    x, weight = _picture(arguments, "conv"), arguments["weight"]
    strides, dilations = _pair(arguments["strides"]), _pair(arguments["dilations"])
    kernel = _pair(weight.shape[2:])
    custom = tuple(int(side) for side in arguments["pad"])
    sizes = _pair(x.shape[2:])
    padding = find_padding(arguments["pad_type"], custom, sizes, kernel, strides, dilations)
    return convolve(
        x,
        weight,
        arguments.get("bias"),
        strides=strides,
        padding=padding,
        dilations=dilations,
        groups=int(arguments["groups"]),
    )


def _linear(arguments: Arguments) -> Array:
    product: Array = arguments["x"] @ arguments["weight"].T
    bias = arguments.get("bias")
    return product if bias is None else product + bias


def _matmul(arguments: Arguments) -> Array:
    x, y = arguments["x"], arguments["y"]
    x = x.swapaxes(-1, -2) if arguments.get("transpose_x") else x
    y = y.swapaxes(-1, -2) if arguments.get("transpose_y") else y
    product: Array = x @ y
    return product


def _batch_norm(arguments: Arguments) -> Array:
    x = arguments["x"]
    shape = (1, -1) + (1,) * (x.ndim - 2)
    gamma, beta = arguments.get("gamma"), arguments.get("beta")
    factor = 1 / np.sqrt(arguments["variance"] + arguments["epsilon"])
    factor = factor if gamma is None else factor * gamma
    shift = -arguments["mean"] * factor + (0 if beta is None else beta)
    result: Array = x * factor.reshape(shape) + shift.reshape(shape)
    return result


# --- windows ----------------------------------------------------------------------------------


def _pool(kind: str) -> Operator:
    def calculate(arguments: Arguments) -> Array:
        x = _picture(arguments, f"{kind} pooling")
        kernel, strides = _pair(arguments["kernel_sizes"]), _pair(arguments["strides"])
        custom = tuple(int(side) for side in arguments["pad"])
        sizes = _pair(x.shape[2:])
        return pool(
            x,
            kind,
            kernel,
            strides=strides,
            padding=find_padding(arguments["pad_type"], custom, sizes, kernel, strides, (1, 1)),
            counts_padding=not arguments.get("exclude_padding_from_average", False),
            rounds_up=bool(arguments["ceil_mode"]),
        )

    return calculate


def _pad(arguments: Arguments) -> Array:
    x, sides = arguments["x"], arguments["pad"].reshape(-1, 2)
    width = [(0, 0)] * (x.ndim - len(sides)) + [_pair(side) for side in sides]
    mode = arguments["mode"]
    if mode == "constant":
        return np.pad(x, width, constant_values=arguments["constant_val"])
    if mode not in {"reflect", "replicate"}:
        raise OperatorUnknown(f"pad with {mode}")
    return np.pad(x, width, mode="reflect" if mode == "reflect" else "edge")


def _upsample(arguments: Arguments) -> Array:
    x = _picture(arguments, "upsample")
    down, across = arguments["scale_factor_height"], arguments["scale_factor_width"]
    if float(down) != int(down) or float(across) != int(across):
        raise OperatorUnknown("upsample by a fraction")
    enlarged: Array = x.repeat(int(down), axis=2).repeat(int(across), axis=3)
    return enlarged


# --- shapes -----------------------------------------------------------------------------------


def _reshape(arguments: Arguments) -> Array:
    x = arguments["x"]
    shape = [int(side) for side in arguments["shape"]]
    # A nought keeps the side that stands there.
    kept = [x.shape[place] if side == 0 else side for place, side in enumerate(shape)]
    reshaped: Array = x.reshape(kept)
    return reshaped


def _flatten2d(arguments: Arguments) -> Array:
    x, axis = arguments["x"], int(arguments["axis"]) % max(1, arguments["x"].ndim)
    flat: Array = x.reshape(math.prod(x.shape[:axis]), -1)
    return flat


def _squeeze(arguments: Arguments) -> Array:
    squeezed: Array = np.squeeze(arguments["x"], _axes(arguments))
    return squeezed


def _concat(arguments: Arguments) -> Array:
    if arguments.get("interleave"):
        raise OperatorUnknown("concat, interleaved")
    return np.concatenate(arguments["values"], axis=int(arguments["axis"]))


def _stack(arguments: Arguments) -> Array:
    return np.stack(arguments["values"], axis=int(arguments["axis"]))


def _split(arguments: Arguments) -> tuple[Array, ...]:
    x, axis, sizes = arguments["x"], int(arguments["axis"]), arguments.get("split_sizes")
    if sizes is None:
        return tuple(np.split(x, int(arguments["num_splits"]), axis=axis))
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


def _slice(arguments: Arguments) -> Array:
    x = arguments["x"]

    def mask(name: str) -> Any:
        values = arguments.get(name)
        return [False] * x.ndim if values is None else values

    strides = arguments.get("stride")
    steps = [1] * x.ndim if strides is None else [int(step) for step in strides]
    chosen: list[Any] = []
    for place in range(x.ndim):
        begin, end = int(arguments["begin"][place]), int(arguments["end"][place])
        if mask("squeeze_mask")[place]:
            chosen.append(begin)
            continue
        chosen.append(
            slice(
                None if mask("begin_mask")[place] else begin,
                None if mask("end_mask")[place] else end,
                steps[place],
            )
        )
    part: Array = x[tuple(chosen)]
    return part


def _slice_by_size(arguments: Arguments) -> Array:
    x = arguments["x"]
    begins = [int(begin) for begin in arguments["begin"]]
    ends = [
        side if int(size) == -1 else begin + int(size)
        for begin, size, side in zip(begins, arguments["size"], x.shape, strict=True)
    ]
    part: Array = x[tuple(slice(*ends_of) for ends_of in zip(begins, ends, strict=True))]
    return part


# --- numbers ----------------------------------------------------------------------------------


def _cast(arguments: Arguments) -> Array:
    kind = _KINDS.get(str(arguments["dtype"]))
    if kind is None:
        raise OperatorUnknown(f"cast to {arguments['dtype']}")
    numbers: Array = arguments["x"].astype(kind)
    return numbers


def _gelu(arguments: Arguments) -> Array:
    x, mode = arguments["x"], arguments["mode"]
    if mode == "SIGMOID_APPROXIMATION":
        activated: Array = x * sigmoid(1.702 * x)
    elif mode == "TANH_APPROXIMATION":
        activated = x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    else:
        activated = x * (1 + _erf(x / math.sqrt(2))) / 2
    return activated


def _erf(x: Array) -> Array:
    from scipy.special import erf

    values: Array = erf(x)
    return values


def _prelu(arguments: Arguments) -> Array:
    x = arguments["x"]
    slope = arguments["alpha"].reshape((1, -1) + (1,) * (x.ndim - 2))
    sloped: Array = np.where(x >= 0, x, x * slope)
    return sloped


def _reduce(function: Callable[..., Any]) -> Operator:
    def calculate(arguments: Arguments) -> Array:
        reduced: Array = function(
            arguments["x"], axis=_axes(arguments), keepdims=bool(arguments["keep_dims"])
        )
        return reduced

    return calculate


def _of_x(function: Callable[[Array], Any]) -> Operator:
    return lambda arguments: function(arguments["x"])


def _of_two(function: Callable[[Array, Array], Any]) -> Operator:
    return lambda arguments: function(arguments["x"], arguments["y"])


OPERATORS: Final[Mapping[str, Operator]] = {
    "conv": _conv,
    "linear": _linear,
    "matmul": _matmul,
    "batch_norm": _batch_norm,
    "max_pool": _pool("max"),
    "avg_pool": _pool("average"),
    "pad": _pad,
    "upsample_nearest_neighbor": _upsample,
    "reshape": _reshape,
    "flatten2d": _flatten2d,
    "transpose": lambda given: given["x"].transpose([int(axis) for axis in given["perm"]]),
    "expand_dims": lambda given: np.expand_dims(given["x"], _axes(given) or ()),
    "squeeze": _squeeze,
    "concat": _concat,
    "stack": _stack,
    "split": _split,
    "slice_by_index": _slice,
    "slice_by_size": _slice_by_size,
    "tile": lambda given: np.tile(given["x"], [int(count) for count in given["reps"]]),
    "identity": _of_x(lambda x: x),
    "cast": _cast,
    "softmax": lambda given: softmax(given["x"], int(given["axis"])),
    "sigmoid": _of_x(sigmoid),
    "sigmoid_hard": lambda given: np.clip(given["alpha"] * given["x"] + given["beta"], 0, 1),
    "silu": _of_x(lambda x: x * sigmoid(x)),
    "gelu": _gelu,
    "relu": _of_x(lambda x: np.maximum(x, 0)),
    "relu6": _of_x(lambda x: np.clip(x, 0, 6)),
    "leaky_relu": lambda given: np.where(given["x"] >= 0, given["x"], given["x"] * given["alpha"]),
    "prelu": _prelu,
    "elu": lambda given: np.where(
        given["x"] >= 0, given["x"], given["alpha"] * np.expm1(np.minimum(given["x"], 0))
    ),
    "softplus": _of_x(lambda x: np.logaddexp(x, np.float32(0))),
    "softsign": _of_x(lambda x: x / (1 + np.abs(x))),
    "clip": lambda given: np.clip(given["x"], given["alpha"], given["beta"]),
    "tanh": _of_x(np.tanh),
    "exp": _of_x(np.exp),
    "log": lambda given: np.log(given["x"] + given["epsilon"]),
    "sqrt": _of_x(np.sqrt),
    "rsqrt": lambda given: 1 / np.sqrt(given["x"] + given["epsilon"]),
    "inverse": lambda given: 1 / (given["x"] + given["epsilon"]),
    "square": _of_x(np.square),
    "abs": _of_x(np.abs),
    "erf": _of_x(_erf),
    "add": _of_two(np.add),
    "sub": _of_two(np.subtract),
    "mul": _of_two(np.multiply),
    "real_div": _of_two(np.true_divide),
    "pow": _of_two(np.power),
    "maximum": _of_two(np.maximum),
    "minimum": _of_two(np.minimum),
    "reduce_mean": _reduce(np.mean),
    "reduce_sum": _reduce(np.sum),
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
}
"""What is known, by the name of the MIL operation."""

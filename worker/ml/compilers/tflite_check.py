"""Whether an Edge TPU takes a TFLite file whole, and what runtime a file asks for.

The accelerator's own compiler is a closed program for one kind of machine and is not run here.
What it takes is published (Coral, "TensorFlow models on the Edge TPU", supported operations):
integers of 8 bits throughout, sizes known beforehand, at most three sides longer than one, and a
list of operators with limits. As far as these can be read from the file they are checked; the
limits that only its compiler knows (memory, precision of enlargements) cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from worker.ml.compilers.base import check
from worker.ml.compilers.tflite_versions import numbers_of, oldest_runtime
from worker.ml.errors import ModelUnusable

_FIRST_RUNTIME: Final = 12
_LARGEST_SOFTMAX: Final = 16_000
_LONG_SIDES: Final = 3
_DEPTH_STEP: Final = 4


@dataclass(frozen=True)
class EdgeTPUReport:
    """What of a file an Edge TPU would run."""

    operators: int
    runtime: int
    """The oldest Edge TPU runtime that has all of the operators that it takes."""
    refused: tuple[str, ...]
    """What it would leave to the processor, each with the reason."""

    @property
    def is_ready(self) -> bool:
        """Say whether all of it can run there."""
        return not self.refused

    @property
    def sentence(self) -> str:
        """Say what was found."""
        if self.is_ready:
            return (
                f"all {self.operators} operators are on the published list of the Edge TPU,"
                f" runtime {self.runtime}; its compiler was not run"
            )
        shown = "; ".join(self.refused[:5])
        more = f" and {len(self.refused) - 5} more" if len(self.refused) > 5 else ""  # noqa: PLR2004
        return f"an Edge TPU does not take {shown}{more}"


def check_edgetpu(content: bytes) -> dict[str, Any]:
    """Return the check of a file that is meant for an Edge TPU."""
    report = inspect_edgetpu(content)
    return check("edgetpu", passed=report.is_ready, detail=report.sentence)


def inspect_edgetpu(content: bytes) -> EdgeTPUReport:
    """Compare a TFLite file with what an Edge TPU takes; raises :class:`ModelUnusable`."""
    graph, model = _read(content)
    refused: dict[str, None] = {}
    runtime = _FIRST_RUNTIME
    for operator in graph.operators or []:
        seen = _Seen(operator, graph, model)
        rule = _RULES.get(seen.name)
        reason = _unfit(seen) if rule is not None else "which is not on its list"
        if rule is not None and not reason:
            reason = rule.limit(seen)
        if reason:
            refused[f"{seen.name}, {reason}"] = None
        elif rule is not None:
            runtime = max(runtime, rule.since)
    return EdgeTPUReport(len(graph.operators or []), runtime, tuple(refused))


def _read(content: bytes) -> tuple[Any, Any]:
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        return model.subgraphs[0], model
    except Exception as error:  # a damaged file may fail anywhere in the generated code
        raise ModelUnusable(f"the TFLite file cannot be read: {error}") from error


class _Seen:
    """An operator with its tensors, as the rules look at it."""

    def __init__(self, operator: Any, graph: Any, model: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        code = model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        custom = code.customCode
        self.name = custom.decode() if custom else _names(schema.BuiltinOperator)[number]
        self.options = operator.builtinOptions
        self.inputs = [graph.tensors[index] for index in operator.inputs if index >= 0]
        self.outputs = [graph.tensors[index] for index in operator.outputs]
        self._model = model
        self._types = _names(schema.TensorType)

    def kind(self, tensor: Any) -> str:
        """Return the tensor's type, such as INT8."""
        return self._types[tensor.type]

    def constant(self, tensor: Any) -> Any:
        """Return the numbers of a constant, else None."""
        data = self._model.buffers[tensor.buffer].data
        if data is None or not len(data):
            return None
        kinds = {"INT32": np.int32, "INT8": np.int8, "UINT8": np.uint8, "INT64": np.int64}
        kind = kinds.get(self.kind(tensor))
        return None if kind is None else np.frombuffer(bytes(data), kind)

    @property
    def axes(self) -> list[int]:
        """Return the axes that the second input names, counted from the front."""
        named = self.constant(self.inputs[1]) if len(self.inputs) > 1 else None
        rank = len(_shape(self.inputs[0]))
        return [] if named is None else [int(axis) % rank for axis in named]


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}


def _shape(tensor: Any) -> list[int]:
    return [] if tensor.shape is None else [int(side) for side in tensor.shape]


def _unfit(seen: _Seen) -> str:
    """Return what is wrong with the tensors of any operator, or nothing."""
    for tensor in (*seen.inputs, *seen.outputs):
        kind, shape = seen.kind(tensor), _shape(tensor)
        is_constant = seen.constant(tensor) is not None
        if kind == "INT32" and is_constant:
            continue  # biases, shapes, axes
        if kind not in {"INT8", "UINT8"}:
            return f"which has {kind.lower()} inside"
        if tensor.shapeSignature is not None and min(tensor.shapeSignature, default=0) < 0:
            return "whose sizes are not fixed"
        if not is_constant and any(side != 1 for side in shape[:-_LONG_SIDES]):
            return f"whose tensor {shape} has more than three long sides"
    return ""


def _no_limit(_: _Seen) -> str:
    return ""


def _no_activation(seen: _Seen) -> str:
    return "with an activation inside" if seen.options.fusedActivationFunction else ""


def _even_dilation(seen: _Seen) -> str:
    uneven = seen.options.dilationWFactor != seen.options.dilationHFactor
    return "with different dilations across and down" if uneven else ""


def _concatenation(seen: _Seen) -> str:
    constants = [seen.constant(one) for one in seen.inputs]
    zero_points = [_zero_point(one) for one in seen.inputs]
    held = [(value, zero) for value, zero in zip(constants, zero_points, strict=True)
            if value is not None]  # fmt: skip
    if held and (len(seen.inputs) > 2 or any((value != zero).any() for value, zero in held)):  # noqa: PLR2004
        return "with a constant that is more than padding"
    return _no_activation(seen)


def _zero_point(tensor: Any) -> int:
    quantisation = tensor.quantization
    points = None if quantisation is None else quantisation.zeroPoint
    return 0 if points is None or not len(points) else int(points[0])


def _fully_connected(seen: _Seen) -> str:
    if seen.options.weightsFormat:
        return "with shuffled weights"
    long_sides = [side for side in _shape(seen.outputs[0]) if side != 1]
    return "whose output has several sides" if len(long_sides) > 1 else ""


def _spare_the_batch(seen: _Seen) -> str:
    return "across the batch" if 0 in seen.axes and len(_shape(seen.inputs[0])) > 1 else ""


def _mean(seen: _Seen) -> str:
    shape = _shape(seen.inputs[0])
    last = len(shape) - 1
    if last in seen.axes and shape[last] % _DEPTH_STEP:
        return f"over {shape[last]} channels, which is no multiple of {_DEPTH_STEP}"
    return _spare_the_batch(seen)


def _pad(seen: _Seen) -> str:
    widths = seen.constant(seen.inputs[1])
    if widths is None:
        return "whose widths are not fixed"
    long = len(widths) // 2 == _LONG_SIDES + 1
    return "of the batch" if long and widths[:2].any() else ""


def _softmax(seen: _Seen) -> str:
    sides = [side for side in _shape(seen.inputs[0]) if side != 1]
    if len(sides) > 1:
        return f"of a tensor {_shape(seen.inputs[0])}"
    over = bool(sides) and sides[0] > _LARGEST_SOFTMAX
    return f"of more than {_LARGEST_SOFTMAX} numbers" if over else ""


def _prelu(seen: _Seen) -> str:
    sides = _shape(seen.inputs[1])
    return "with a slope for each pixel" if any(side != 1 for side in sides[:-1]) else ""


def _strided_slice(seen: _Seen) -> str:
    strides = seen.constant(seen.inputs[3])
    if strides is None or any(stride != 1 for stride in strides):
        return "with strides"
    masked = seen.options.ellipsisMask or seen.options.newAxisMask
    return "with an ellipsis or a new axis" if masked else ""


def _pack(seen: _Seen) -> str:
    return "of batches" if seen.options.axis == 0 and len(_shape(seen.outputs[0])) > 1 else ""


def _split(seen: _Seen) -> str:
    axis = seen.constant(seen.inputs[0])
    whole = axis is None or (int(axis[0]) == 0 and len(_shape(seen.inputs[1])) > 1)
    return "of the batch" if whole else ""


@dataclass(frozen=True)
class _Rule:
    """Since which runtime an operator is taken, and what may be against one of its kind."""

    since: int = _FIRST_RUNTIME
    limit: Callable[[_Seen], str] = _no_limit


_ANY: Final = _Rule()
_RULES: Final[Mapping[str, _Rule]] = {
    "ADD": _ANY,
    "AVERAGE_POOL_2D": _Rule(limit=_no_activation),
    "CONCATENATION": _Rule(limit=_concatenation),
    "CONV_2D": _Rule(limit=_even_dilation),
    "DEPTHWISE_CONV_2D": _Rule(limit=_even_dilation),
    "EXPAND_DIMS": _Rule(13),
    "FULLY_CONNECTED": _Rule(limit=_fully_connected),
    "L2_NORMALIZATION": _ANY,
    "LOGISTIC": _ANY,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _Rule(14),
    "MAXIMUM": _ANY,
    "MAX_POOL_2D": _Rule(limit=_no_activation),
    "MEAN": _Rule(13, _mean),
    "MINIMUM": _ANY,
    "MUL": _ANY,
    "PACK": _Rule(13, _pack),
    "PAD": _Rule(limit=_pad),
    "PRELU": _Rule(13, _prelu),
    "QUANTIZE": _Rule(13),
    "REDUCE_MAX": _Rule(14, _spare_the_batch),
    "REDUCE_MIN": _Rule(14, _spare_the_batch),
    "RELU": _ANY,
    "RELU6": _ANY,
    "RELU_N1_TO_1": _ANY,
    "RESHAPE": _ANY,
    "RESIZE_BILINEAR": _ANY,
    "RESIZE_NEAREST_NEIGHBOR": _ANY,
    "RSQRT": _Rule(14),
    "SLICE": _ANY,
    "SOFTMAX": _Rule(limit=_softmax),
    "SPACE_TO_DEPTH": _ANY,
    "SPLIT": _Rule(limit=_split),
    "SQUEEZE": _ANY,
    "STRIDED_SLICE": _Rule(limit=_strided_slice),
    "SUB": _ANY,
    "SUM": _Rule(13, _spare_the_batch),
    "SQUARED_DIFFERENCE": _Rule(14),
    "TANH": _ANY,
    "TRANSPOSE": _Rule(14),
    "TRANSPOSE_CONV": _Rule(13),
}


def minimum_runtime(operators: Mapping[str, int], stated: str | None) -> str | None:
    """Return the oldest TFLite runtime for operators (versions by name).

    ``stated`` is what the file says itself, which may be absent or too low: the newer one counts.
    """
    found, _ = oldest_runtime(operators)
    known = [runtime for runtime in (found, stated) if runtime]
    return max(known, key=numbers_of, default=None)

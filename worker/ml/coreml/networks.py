"""The older form of a Core ML model: a network of layers, in a ``.mlmodel``.

Layers follow the published ``NeuralNetwork`` format of specification version 4 and later, where
arrays keep the rank that they have (``EXACT_ARRAY_MAPPING``). Older files, whose arrays always
have five axes, are named as unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from worker.ml.coreml.arithmetic import Array, convolve, find_padding, pool, sigmoid, softmax
from worker.ml.coreml.errors import OperatorUnknown

Layer = Callable[[Sequence[Array]], Array | Sequence[Array]]

_KINDS: Final = ("neuralNetwork", "neuralNetworkClassifier", "neuralNetworkRegressor")
_EXACT: Final = 1
_BITS_PER_BYTE: Final = 8
_POOLINGS: Final = {0: "max", 1: "average"}


@dataclass(frozen=True)
class _Step:
    calculate: Layer
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Network:
    """The layers of a specification, in the order in which they are calculated, in float32."""

    def __init__(self, specification: Any) -> None:
        self.classes: list[str] | None = None
        self.probabilities: str | None = None
        self.stored = "float32"
        self._scalers: dict[str, tuple[float, Array]] = {}
        self._steps: list[_Step] = []
        self.outputs = [feature.name for feature in specification.description.output]
        kind = specification.WhichOneof("Type")
        if kind not in _KINDS:
            self.unknown: tuple[str, ...] = (str(kind),)
            return
        network = getattr(specification, kind)
        self.unknown = tuple(sorted(set(_unknown(network, specification.description))))
        if kind == "neuralNetworkClassifier":
            self.classes = [str(label) for label in network.stringClassLabels.vector] or None
            self.probabilities = network.labelProbabilityLayerName or (
                specification.description.predictedProbabilitiesName
            )
        for preparation in network.preprocessing:
            name = preparation.featureName or specification.description.input[0].name
            self._scalers[name] = _scaler(preparation.scaler)
        if not self.unknown:
            self._steps = _read_steps(network)

    def run(self, inputs: Mapping[str, Array], *, rounds: bool = True) -> dict[str, Array]:
        """Return the outputs by name; raises :class:`OperatorUnknown`."""
        del rounds  # There is nothing but float32.
        if self.unknown:
            raise OperatorUnknown(*self.unknown)
        values: dict[str, Array] = {}
        for name, given in inputs.items():
            factor, shift = self._scalers.get(name, (1.0, np.zeros(1, np.float32)))
            values[name] = given if name not in self._scalers else given * factor + shift
        for step in self._steps:
            made = step.calculate([values[name] for name in step.inputs])
            results = [made] if isinstance(made, np.ndarray) else made
            for name, result in zip(step.outputs, results, strict=True):
                values[name] = np.asarray(result, np.float32)
        wanted = {*self.outputs, self.probabilities}
        return {name: value for name, value in values.items() if name in wanted}


def _unknown(network: Any, description: Any) -> Iterator[str]:
    for layer in network.layers:
        kind = layer.WhichOneof("layer")
        if kind not in LAYERS:
            yield str(kind)
            continue
        try:
            LAYERS[kind](getattr(layer, kind))
        except OperatorUnknown as error:
            yield from error.operators
    for feature in description.input:
        is_image = feature.type.WhichOneof("Type") == "imageType"
        mapping = network.imageInputShapeMapping if is_image else network.arrayInputShapeMapping
        if mapping != _EXACT:
            yield "arrays of five axes"
    for preparation in network.preprocessing:
        if preparation.WhichOneof("preprocessor") != "scaler":
            yield "meanImage"


def _read_steps(network: Any) -> list[_Step]:
    steps = []
    for layer in network.layers:
        kind = layer.WhichOneof("layer")
        calculate = LAYERS[kind](getattr(layer, kind))
        steps.append(_Step(calculate, tuple(layer.input), tuple(layer.output)))
    return steps


def _scaler(scaler: Any) -> tuple[float, Array]:
    """Return the factor of pixels and what is added, by channel as the picture has them."""
    biases = [scaler.redBias, scaler.greenBias, scaler.blueBias]
    if scaler.grayBias and not any(biases):
        biases = [scaler.grayBias]
    return float(scaler.channelScale), np.array(biases, np.float32).reshape(1, -1, 1, 1)


def _weights(stored: Any, shape: Sequence[int]) -> Array:
    """Return the numbers, however they are stored."""
    count = math.prod(shape)
    if len(stored.floatValue):
        return np.array(stored.floatValue, np.float32).reshape(shape)
    if stored.float16Value:
        halves = np.frombuffer(stored.float16Value, np.float16)
        return halves.astype(np.float32).reshape(shape)
    if not stored.rawValue:
        raise OperatorUnknown("weights of int8")
    steps = _unpack(stored.rawValue, stored.quantization.numberOfBits, count)
    if stored.quantization.WhichOneof("QuantizationType") == "lookupTableQuantization":
        table = np.array(stored.quantization.lookupTableQuantization.floatValue, np.float32)
        return table[steps].reshape(shape)
    linear = stored.quantization.linearQuantization
    numbers = steps.astype(np.float32).reshape(shape)
    return numbers * _by_channel(linear.scale, shape) + _by_channel(linear.bias, shape)


def _by_channel(values: Sequence[float], shape: Sequence[int]) -> Array:
    numbers = np.array(values, np.float32)
    return numbers.reshape(-1, *(1,) * (len(shape) - 1))


def _unpack(raw: bytes, bits: int, count: int) -> Array:
    """Return ``count`` whole numbers of some bits each, the highest bit first."""
    if bits == _BITS_PER_BYTE:
        return np.frombuffer(raw, np.uint8)[:count]
    places = np.unpackbits(np.frombuffer(raw, np.uint8))[: count * bits].reshape(count, bits)
    return places @ (1 << np.arange(bits)[::-1])


# --- layers: each takes its parameters and returns what calculates ------------------------------


def _convolution(layer: Any) -> Layer:
    if layer.isDeconvolution:
        raise OperatorUnknown("deconvolution")
    kernel = _pair(layer.kernelSize, 3)
    weight = _weights(layer.weights, (layer.outputChannels, layer.kernelChannels, *kernel))
    bias = _weights(layer.bias, (layer.outputChannels,)) if layer.hasBias else None
    strides, dilations = _pair(layer.stride, 1), _pair(layer.dilationFactor, 1)

    def calculate(given: Sequence[Array]) -> Array:
        (x,) = given
        return convolve(
            x,
            weight,
            bias,
            strides=strides,
            padding=_padding(layer, _pair(x.shape[2:], 0), kernel, strides, dilations),
            dilations=dilations,
            groups=max(1, layer.nGroups),
        )

    return calculate


def _padding(
    layer: Any,
    sizes: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
) -> tuple[tuple[int, int], tuple[int, int]]:
    if layer.HasField("same"):
        kind = "same_lower" if layer.same.asymmetryMode else "same"
        return find_padding(kind, (), sizes, kernel, strides, dilations)
    return _borders(layer.valid.paddingAmounts)


def _borders(amounts: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    edges = [(int(edge.startEdgeSize), int(edge.endEdgeSize)) for edge in amounts.borderAmounts]
    rows, columns = edges or [(0, 0), (0, 0)]
    return rows, columns


def _pooling(layer: Any) -> Layer:
    if layer.type not in _POOLINGS or layer.WhichOneof("PoolingPaddingType") == "includeLastPixel":
        raise OperatorUnknown("pooling of L2 or with the last pixel")
    kind = _POOLINGS[layer.type]

    def calculate(given: Sequence[Array]) -> Array:
        (x,) = given
        if layer.globalPooling:
            reduced = (
                x.max(axis=(2, 3), keepdims=True)
                if kind == "max"
                else x.mean(axis=(2, 3), keepdims=True)
            )
            return np.asarray(reduced)
        kernel, strides = _pair(layer.kernelSize, 3), _pair(layer.stride, 1)
        return pool(
            x,
            kind,
            kernel,
            strides=strides,
            padding=_padding(layer, _pair(x.shape[2:], 0), kernel, strides, (1, 1)),
            counts_padding=not layer.avgPoolExcludePadding,
        )

    return calculate


def _pad(layer: Any) -> Layer:
    rows, columns = _borders(layer.paddingAmounts)
    if layer.WhichOneof("PaddingType") != "constant":
        raise OperatorUnknown(f"padding by {layer.WhichOneof('PaddingType')}")
    value = layer.constant.value
    return lambda given: np.pad(given[0], ((0, 0), (0, 0), rows, columns), constant_values=value)


def _batched_matmul(layer: Any) -> Layer:
    if layer.int8DynamicQuantize:
        raise OperatorUnknown("batchedMatmul with int8DynamicQuantize")
    rows, columns = layer.weightMatrixFirstDimension, layer.weightMatrixSecondDimension
    # Stored column by column.
    matrix = _weights(layer.weights, (columns, rows)).T if rows else None
    bias = _weights(layer.bias, (columns,)) if layer.hasBias else np.float32(0)

    def calculate(given: Sequence[Array]) -> Array:
        left = given[0].swapaxes(-1, -2) if layer.transposeA else given[0]
        right = given[1] if matrix is None else matrix
        right = right.swapaxes(-1, -2) if layer.transposeB and matrix is None else right
        product: Array = left @ right + bias
        return product

    return calculate


def _inner_product(layer: Any) -> Layer:
    if layer.int8DynamicQuantize:
        raise OperatorUnknown("innerProduct with int8DynamicQuantize")
    weight = _weights(layer.weights, (layer.outputChannels, layer.inputChannels))
    bias = _weights(layer.bias, (layer.outputChannels,)) if layer.hasBias else np.float32(0)
    return lambda given: given[0] @ weight.T + bias


def _batchnorm(layer: Any) -> Layer:
    if layer.computeMeanVar or layer.instanceNormalization:
        raise OperatorUnknown("batchnorm by the picture's own mean")
    shape = (layer.channels,)
    factor = _weights(layer.gamma, shape) / np.sqrt(_weights(layer.variance, shape) + layer.epsilon)
    shift = _weights(layer.beta, shape) - _weights(layer.mean, shape) * factor
    wide = (1, -1, 1, 1)
    return lambda given: given[0] * factor.reshape(wide) + shift.reshape(wide)


def _activation(layer: Any) -> Layer:
    kind = layer.WhichOneof("NonlinearityType")
    if kind not in _ACTIVATIONS:
        raise OperatorUnknown(f"activation {kind}")
    function, numbers = _ACTIVATIONS[kind], getattr(layer, kind)
    return lambda given: function(given[0], numbers)


_ACTIVATIONS: Final[Mapping[str, Callable[[Array, Any], Array]]] = {
    "linear": lambda x, numbers: x * np.float32(numbers.alpha) + np.float32(numbers.beta),
    "ReLU": lambda x, _: np.maximum(x, 0),
    "leakyReLU": lambda x, numbers: np.where(x >= 0, x, x * np.float32(numbers.alpha)),
    "tanh": lambda x, _: np.tanh(x),
    "sigmoid": lambda x, _: sigmoid(x),
    "sigmoidHard": lambda x, numbers: np.clip(x * numbers.alpha + numbers.beta, 0, 1),
    "ELU": lambda x, numbers: np.where(
        x >= 0, x, np.float32(numbers.alpha) * np.expm1(np.minimum(x, 0))
    ),
}


def _unary(layer: Any) -> Layer:
    name = layer.Operation.Name(layer.type)
    if name not in _UNARY:
        raise OperatorUnknown(f"unary {name}")
    scale, shift = np.float32(layer.scale or 1), np.float32(layer.shift)
    return lambda given: _UNARY[name](given[0] * scale + shift, layer)


_UNARY: Final[Mapping[str, Callable[[Array, Any], Array]]] = {
    "SQRT": lambda x, _: np.sqrt(x),
    "RSQRT": lambda x, layer: 1 / np.sqrt(x + np.float32(layer.epsilon)),
    "INVERSE": lambda x, layer: 1 / (x + np.float32(layer.epsilon)),
    "POWER": lambda x, layer: x ** np.float32(layer.alpha),
    "EXP": lambda x, _: np.exp(x),
    "ABS": lambda x, _: np.abs(x),
    "THRESHOLD": lambda x, layer: np.maximum(x, np.float32(layer.alpha)),
}


def _folded(function: Callable[[Array, Array], Array]) -> Callable[[Any], Layer]:
    """Of two and more inputs, or of one and the layer's own number."""

    def read(layer: Any) -> Layer:
        def calculate(given: Sequence[Array]) -> Array:
            if len(given) == 1:
                return function(given[0], np.float32(layer.alpha))  # type: ignore[arg-type]
            result = given[0]
            for other in given[1:]:
                result = function(result, other)
            return result

        return calculate

    return read


def _broadcast(function: Callable[[Array, Array], Array]) -> Callable[[Any], Layer]:
    return lambda _: lambda given: function(given[0], given[1])


def _reduce(function: Callable[..., Any]) -> Callable[[Any], Layer]:
    def read(layer: Any) -> Layer:
        axes = None if layer.reduceAll else tuple(int(axis) for axis in layer.axes)
        return lambda given: np.asarray(function(given[0], axis=axes, keepdims=layer.keepDims))

    return read


def _slice(layer: Any) -> Layer:
    parts: list[Any] = []
    for place, step in enumerate(layer.strides):
        begin = None if layer.beginMasks[place] else int(layer.beginIds[place])
        end = None if layer.endMasks[place] else int(layer.endIds[place])
        squeezed = place < len(layer.squeezeMasks) and layer.squeezeMasks[place]
        parts.append(int(layer.beginIds[place]) if squeezed else slice(begin, end, int(step)))
    return lambda given: given[0][tuple(parts)]


def _squeeze(layer: Any) -> Layer:
    axes = None if layer.squeezeAll else tuple(int(axis) for axis in layer.axes)
    return lambda given: np.squeeze(given[0], axes)


def _split(layer: Any) -> Layer:
    sizes = [int(size) for size in layer.splitSizes]
    where = [int(place) for place in np.cumsum(sizes)[:-1]] if sizes else int(layer.numSplits)
    return lambda given: np.split(given[0], where, axis=int(layer.axis))


def _concat(layer: Any) -> Layer:
    if getattr(layer, "sequenceConcat", False) or getattr(layer, "interleave", False):
        raise OperatorUnknown("concat of sequences or interleaved")
    axis = int(getattr(layer, "axis", -3))
    return lambda given: np.concatenate(given, axis=axis)


def _constant(layer: Any) -> Layer:
    values = _weights(layer.data, [int(side) for side in layer.shape])
    return lambda _: values


def _upsample(layer: Any) -> Layer:
    if layer.mode or list(layer.fractionalScalingFactor):
        raise OperatorUnknown("upsample between pixels")
    down, across = _pair(layer.scalingFactor, 1)
    return lambda given: given[0].repeat(down, axis=2).repeat(across, axis=3)


def _pair(values: Sequence[int], default: int) -> tuple[int, int]:
    first, second = (int(value) for value in values) if len(values) else (default, default)
    return first, second


LAYERS: Final[Mapping[str, Callable[[Any], Layer]]] = {
    "convolution": _convolution,
    "pooling": _pooling,
    "padding": _pad,
    "upsample": _upsample,
    "batchedMatmul": _batched_matmul,
    "innerProduct": _inner_product,
    "batchnorm": _batchnorm,
    "activation": _activation,
    "unary": _unary,
    "add": _folded(np.add),
    "multiply": _folded(np.multiply),
    "addBroadcastable": _broadcast(np.add),
    "subtractBroadcastable": _broadcast(np.subtract),
    "multiplyBroadcastable": _broadcast(np.multiply),
    "divideBroadcastable": _broadcast(np.true_divide),
    "clip": lambda layer: lambda given: np.clip(given[0], layer.minVal, layer.maxVal),
    "reduceMean": _reduce(np.mean),
    "reduceSum": _reduce(np.sum),
    "reduceMax": _reduce(np.max),
    "reduceMin": _reduce(np.min),
    "softmaxND": lambda layer: lambda given: softmax(given[0], int(layer.axis)),
    "reshapeStatic": lambda layer: lambda given: given[0].reshape(list(layer.targetShape)),
    "transpose": lambda layer: lambda given: given[0].transpose(list(layer.axes)),
    "squeeze": _squeeze,
    "expandDims": lambda layer: lambda given: np.expand_dims(given[0], tuple(layer.axes)),
    "flattenTo2D": lambda layer: (
        lambda given: given[0].reshape(math.prod(given[0].shape[: layer.axis]), -1)
    ),
    "concat": _concat,
    "concatND": _concat,
    "splitND": _split,
    "sliceStatic": _slice,
    "loadConstantND": _constant,
}
"""What is known, by the name of the layer; each takes the layer's parameters."""

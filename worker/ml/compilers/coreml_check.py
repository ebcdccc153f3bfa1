"""Whether a Core ML file says what the Keras network says, as far as can be told without a Mac.

It is taken apart: its structure, labels and input are compared, and every weight, decoded from
the file's own bytes, with the weight that Keras has. Batch normalisation is folded into the layer
before it on the way; folding it here again, from the Keras network, is an independent second
calculation. And it is run on drawn pictures by :mod:`worker.ml.coreml`, so that what no table of
weights shows is seen as well. ``docs/coreml-on-linux.md`` tells which check finds what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.compilers import mlpackage
from worker.ml.compilers.base import check
from worker.ml.coreml import CoreMLModel, OperatorUnknown, compare
from worker.ml.coreml.files import decode
from worker.ml.coreml.programs import constant_of
from worker.ml.errors import MLError

if TYPE_CHECKING:
    import keras

__all__ = ["check_execution", "check_package", "decode"]

Array = npt.NDArray[np.float64]

# One rounding to float16 (11 significant bits), and as much again for folding in float32.
_RELATIVE: Final = 2.0**-10
_OF_LARGEST: Final = 2.0**-16
_SUBNORMAL: Final = 2.0**-23
# 256 well-chosen values leave an error of a hundredth of the weights' spread or less.
_PALETTE_ERROR: Final = 0.05
_LARGEST_PALETTE: Final = 256
_SCALARS: Final = ("mul", "add", "sub", "real_div")
_PICTURES: Final = 8


@dataclass(frozen=True)
class _Weight:
    """One array that decides what a network does."""

    where: str
    kind: str
    values: Array
    is_palette: bool = False


def check_package(
    data: bytes, *, labels: Sequence[str], keras_model: keras.Model
) -> list[dict[str, Any]]:
    """Return checks ``{"name", "passed", "detail"}`` of a zipped package or a ``.mlmodel``.

    Raises nothing for a broken file: what is broken is what the failing check says.
    """
    try:
        model = CoreMLModel(data)
        weights = None if model.decoded is None else list(_program_weights(model.decoded))
    except MLError as error:
        return [check("structure", passed=False, detail=error.sentence)]
    kind = model.specification.WhichOneof("Type")
    checks = [
        check("structure", passed=True, detail=f"a {kind} of {len(data)} bytes"),
        _check_labels(model, labels),
        _check_input(model, keras_model),
    ]
    if weights is not None:
        checks += _check_scaling(model.decoded, keras_model)
        checks.append(_check_weights(weights, keras_model))
    return [*checks, check_execution(model, keras_model)]


def check_execution(model: CoreMLModel, keras_model: keras.Model) -> dict[str, Any]:
    """Run the file on drawn pictures and compare its answers with Keras's.

    An operator that is not known here is named, and nothing is held against the file.
    """
    from worker.ml.evaluation import predict_keras
    from worker.ml.preprocessing import Preprocessing
    from worker.ml.selftest import draw_picture, enlarge

    _, height, width, _ = keras_model.input_shape
    size = Preprocessing(width=width, height=height)
    pictures = [enlarge(draw_picture(number), size) for number in range(_PICTURES)]
    try:
        compared = compare(model, pictures, predict_keras(keras_model, pictures))
    except OperatorUnknown as error:
        detail = f"structure checked only: {error.sentence}"
        return check("execution", passed=True, detail=detail)
    except MLError as error:
        return check("execution", passed=False, detail=error.sentence)
    return check("execution", passed=compared.passed, detail=compared.sentence)


def _check_labels(model: CoreMLModel, labels: Sequence[str]) -> dict[str, Any]:
    description = model.specification.description
    outputs = {feature.name for feature in description.output}
    named = {description.predictedFeatureName, description.predictedProbabilitiesName}
    if named != outputs:
        detail = f"the outputs {sorted(outputs)} are not the label and its probabilities"
        return check("labels", passed=False, detail=detail)
    passed = model.labels == list(labels)
    return check("labels", passed=passed, detail=f"the labels are {model.labels}")


def _check_input(model: CoreMLModel, keras_model: keras.Model) -> dict[str, Any]:
    if len(model.inputs) != 1 or not model.inputs[0].colour:
        return check("input", passed=False, detail="the package does not take one photo")
    photo = model.inputs[0]
    _, _, height, width = photo.shape
    passed = (height, width) == tuple(keras_model.input_shape[1:3]) and photo.colour == "RGB"
    return check("input", passed=passed, detail=f"a {photo.colour} photo, {width}x{height}")


def _check_scaling(program: Any, keras_model: keras.Model) -> list[dict[str, Any]]:
    """Compare what is done to pixels before the first layer with weights.

    Nothing where Keras prepares pixels by more than factors and shifts: then running the file
    has to tell.
    """
    wanted = _keras_scaling(keras_model)
    if wanted is None:
        return []
    found = []
    for operation in _operations(program):
        if operation.op_type in _KINDS:
            break
        if operation.op_type in _SCALARS and constant_of(operation.inputs["y"]) is not None:
            found.append(float(constant_of(operation.inputs["y"])))
    passed = len(found) == len(wanted) and bool(np.allclose(found, wanted, rtol=1e-3))
    detail = f"pixels are scaled by {found}" + ("" if passed else f", not by {wanted}")
    return [check("scaling", passed=passed, detail=detail)]


def _keras_scaling(keras_model: keras.Model) -> list[float] | None:
    numbers: list[float] = []
    for layer in _layers(keras_model):
        kind = type(layer).__name__
        if kind == "Rescaling":
            if np.size(layer.scale) != 1 or np.size(layer.offset) != 1:
                return None
            scale, offset = float(np.ravel(layer.scale)[0]), float(np.ravel(layer.offset)[0])
            numbers += [*([scale] if scale != 1 else []), *([offset] if offset else [])]
        elif layer.weights and kind in _READERS:
            return numbers
        elif kind not in _UNTOUCHING:
            return None
    return numbers


def _check_weights(theirs: list[_Weight], keras_model: keras.Model) -> dict[str, Any]:
    ours, unknown = _keras_weights(keras_model)
    if unknown or len(ours) != len(theirs):
        why = ", ".join(unknown) or f"{len(theirs)} arrays for {len(ours)} of Keras"
        return check("weights", passed=True, detail=f"not compared one by one: {why}")
    return _compare(ours, theirs)


def _compare(ours: list[_Weight], theirs: list[_Weight]) -> dict[str, Any]:
    """Find for each array of the file one of Keras's, of its kind and shape, that it may be.

    Which of two alike belongs where is not told by this: running the file is.
    """
    waiting = list(ours)
    worst = 0.0
    for weight in theirs:
        alike = [
            one
            for one in waiting
            if one.kind == weight.kind and one.values.shape == weight.values.shape
        ]
        if not alike:
            detail = f"{weight.where}: Keras has no such array {weight.values.shape}"
            return check("weights", passed=False, detail=detail)
        compare_one = _compare_palette if weight.is_palette else _compare_float16
        excesses: list[float] = []
        for one in alike:
            excesses.append(compare_one(one.values, weight.values))
            if excesses[-1] <= 1:
                break
        if not excesses[-1] <= 1:
            detail = (
                f"{alike[0].where}: weights are {excesses[0]:.3g} times further off than rounding"
            )
            return check("weights", passed=False, detail=detail)
        waiting.remove(alike[len(excesses) - 1])
        worst = max(worst, excesses[-1])
    detail = f"{len(theirs)} arrays agree, the worst at {worst:.2f} of what rounding allows"
    return check("weights", passed=True, detail=detail)


def _tolerance(exact: Array) -> Array:
    size = np.abs(exact)
    allowed: Array = size * _RELATIVE + size.max(initial=0.0) * _OF_LARGEST + _SUBNORMAL
    return allowed


def _compare_float16(exact: Array, decoded: Array) -> float:
    """Return the largest error over what rounding to float16 explains."""
    return float((np.abs(decoded - exact) / _tolerance(exact)).max(initial=0.0))


def _compare_palette(exact: Array, decoded: Array) -> float:
    """Return the largest error over what the best entry of the palette would leave.

    A palette may be coarse, and is then caught by the spread of its errors.
    """
    palette = np.unique(decoded)
    if len(palette) > _LARGEST_PALETTE:
        return float("inf")
    place = np.searchsorted(palette, exact).clip(1, max(len(palette) - 1, 1))
    below, above = palette[place - 1], palette[np.minimum(place, len(palette) - 1)]
    best = np.minimum(np.abs(exact - below), np.abs(exact - above))
    # The palette was chosen for weights already rounded, and entries are rounded again.
    allowed = best + 2 * _tolerance(exact)
    errors = np.abs(decoded - exact)
    coarse = float(np.sqrt((errors**2).mean()) / max(float(exact.std()), 1e-12)) / _PALETTE_ERROR
    return max(float((errors / allowed).max(initial=0.0)), coarse)


# --- the package's side -----------------------------------------------------------------------

_KINDS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "conv": (("weight", "conv"), ("bias", "bias")),
    "linear": (("weight", "linear"), ("bias", "bias")),
    "matmul": (("y", "linear"),),
    "batch_norm": (
        ("gamma", "norm"),
        ("beta", "norm"),
        ("mean", "norm"),
        ("variance", "norm"),
    ),
}


def _program_weights(program: Any) -> Iterator[_Weight]:
    for index, operation in enumerate(_operations(program)):
        for name, kind in _KINDS.get(operation.op_type, ()):
            variable = operation.inputs.get(name)
            values = None if variable is None else constant_of(variable)
            if values is None:
                if variable is not None and operation.op_type != "matmul":
                    message = f"The {name} of {operation.op_type} {index} is not a constant"
                    raise mlpackage.PackageInvalid(message)
                continue
            array = np.asarray(values, dtype=np.float64)
            weight = _Weight(
                where=f"{name} of {operation.op_type} {index}",
                kind=kind,
                values=array.T if operation.op_type == "matmul" else array,
                is_palette=variable.op is not None and "lut" in variable.op.op_type,
            )
            if not _is_idle(weight):
                yield weight


def _is_idle(weight: _Weight) -> bool:
    """Say whether it is a bias of nothing but noughts, which one side may leave out."""
    return weight.kind == "bias" and not weight.values.any()


def _operations(program: Any) -> list[Any]:
    return [
        operation
        for operation in program.functions["main"].operations
        if operation.op_type != "const" and not operation.op_type.startswith("constexpr")
    ]


# --- Keras's side -----------------------------------------------------------------------------


def _keras_weights(model: keras.Model) -> tuple[list[_Weight], list[str]]:
    """Return weights as Core ML would hold them, and the layers that are not understood."""
    weights: list[_Weight] = []
    unknown: list[str] = []
    folded: set[int] = set()
    for layer in _layers(model):
        if not layer.weights or id(layer) in folded:
            continue
        reader = _READERS.get(type(layer).__name__)
        if reader is None:
            unknown.append(f"{layer.name} ({type(layer).__name__})")
            continue
        norm = _following_norm(layer)
        if norm is not None:
            folded.add(id(norm))
        weights += [weight for weight in reader(layer, norm) if not _is_idle(weight)]
    return weights, unknown


def _layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _layers(layer)
        else:
            yield layer


def _following_norm(layer: Any) -> Any:
    """Return the batch normalisation that alone takes this layer's linear output, if any."""
    activation = getattr(layer, "activation", None)
    if activation is not None and getattr(activation, "__name__", "") != "linear":
        return None
    if type(layer).__name__ == "BatchNormalization":
        return None
    nodes = getattr(layer, "_outbound_nodes", [])
    if len(nodes) != 1:
        return None
    follower = nodes[0].operation
    return follower if type(follower).__name__ == "BatchNormalization" else None


def _fold(norm: Any, channels: int) -> tuple[Array, Array]:
    """Return the factor and the shift of each channel (Ioffe and Szegedy 2015, section 3.1)."""
    if norm is None:
        return np.ones(channels), np.zeros(channels)
    gamma = _array(norm.gamma) if norm.scale else np.ones(channels)
    beta = _array(norm.beta) if norm.center else np.zeros(channels)
    factor = gamma / np.sqrt(_array(norm.moving_variance) + norm.epsilon)
    return factor, beta - _array(norm.moving_mean) * factor


def _read_conv(layer: Any, norm: Any) -> list[_Weight]:
    return _conv(layer, norm, _array(layer.kernel).transpose(3, 2, 0, 1))


def _read_depthwise(layer: Any, norm: Any) -> list[_Weight]:
    kernel = _array(layer.kernel).transpose(2, 3, 0, 1)
    return _conv(layer, norm, kernel.reshape(-1, 1, *kernel.shape[2:]))


def _conv(layer: Any, norm: Any, kernel: Array) -> list[_Weight]:
    factor, shift = _fold(norm, len(kernel))
    weights = [_Weight(layer.name, "conv", kernel * factor[:, None, None, None])]
    if layer.use_bias or norm is not None:
        own = _array(layer.bias) * factor if layer.use_bias else 0.0
        weights.append(_Weight(f"bias of {layer.name}", "bias", shift + own))
    return weights


def _read_dense(layer: Any, _: Any) -> list[_Weight]:
    weights = [_Weight(layer.name, "linear", _array(layer.kernel).T)]
    if layer.use_bias:
        weights.append(_Weight(f"bias of {layer.name}", "bias", _array(layer.bias)))
    return weights


def _read_norm(layer: Any, _: Any) -> list[_Weight]:
    channels = layer.moving_mean.shape[0]
    gamma = _array(layer.gamma) if layer.scale else np.ones(channels)
    beta = _array(layer.beta) if layer.center else np.zeros(channels)
    arrays = (gamma, beta, _array(layer.moving_mean), _array(layer.moving_variance))
    return [_Weight(f"{layer.name}", "norm", values) for values in arrays]


_READERS: Final[dict[str, Callable[[Any, Any], list[_Weight]]]] = {
    "Conv2D": _read_conv,
    "DepthwiseConv2D": _read_depthwise,
    "Dense": _read_dense,
    "BatchNormalization": _read_norm,
}


# Layers before the first with weights that leave pixels as they are.
_UNTOUCHING: Final = frozenset({"InputLayer", "ZeroPadding2D", "Flatten", "Reshape"})


def _array(variable: Any) -> Array:
    return np.asarray(variable, dtype=np.float64)

"""Whether a Core ML package says what the Keras network says, as far as bytes can tell.

Only a Mac or a phone can run a package. Here it is taken apart: its structure, labels and input
are compared, and every weight, decoded from the package's own bytes, with the weight that Keras
has. Batch normalisation is folded into the layer before it on the way; folding it here again,
from the Keras network, is an independent second calculation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.compilers import mlpackage
from worker.ml.compilers.base import check
from worker.ml.compilers.coreml import PALETTE_SIZE, quiet
from worker.ml.errors import MLError

if TYPE_CHECKING:
    import keras

Array = npt.NDArray[np.float64]

# One rounding to float16 (11 significant bits), and as much again for folding in float32.
_RELATIVE: Final = 2.0**-10
_OF_LARGEST: Final = 2.0**-16
_SUBNORMAL: Final = 2.0**-23
# 256 well-chosen values leave an error of a hundredth of the weights' spread or less.
_PALETTE_ERROR: Final = 0.05
_SCALARS: Final = ("mul", "add", "sub", "real_div")


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
    """Return checks ``{"name", "passed", "detail"}`` of a zipped package.

    Raises nothing for a broken package: what is broken is what the failing check says.
    """
    try:
        package = mlpackage.unpack(data)
        specification, program = _load(package)
    except MLError as error:
        return [check("structure", passed=False, detail=error.sentence)]
    return [
        check("structure", passed=True, detail=f"an ML Program of {len(data)} bytes"),
        _check_labels(specification, program, labels),
        _check_input(specification, keras_model),
        _check_scaling(program, keras_model),
        *_check_weights(program, keras_model),
    ]


def _load(package: mlpackage.Package) -> tuple[Any, Any]:
    with quiet() as ct, tempfile.TemporaryDirectory() as folder:
        specification = ct.proto.Model_pb2.Model()
        weights_folder = package.write(Path(folder))
        try:
            specification.ParseFromString(package.specification)
        except Exception as error:  # protobuf's error class is nowhere public
            message = f"The specification cannot be read: {_first_line(error)}"
            raise mlpackage.PackageInvalid(message) from error
        return specification, decode(specification, weights_folder)


def decode(specification: Any, weights_folder: Path) -> Any:
    """Return the ML Program with its weights decoded from the files of the folder.

    Raises :class:`~worker.ml.compilers.mlpackage.PackageInvalid`.
    """
    kind = specification.WhichOneof("Type")
    if kind != "mlProgram":
        message = f"The package holds a {kind}, not an ML Program"
        raise mlpackage.PackageInvalid(message)
    with quiet():
        from coremltools.converters.mil.frontend.milproto.load import load

        try:
            program = load(
                specification,
                specification_version=specification.specificationVersion,
                file_weights_dir=str(weights_folder),
            )
            # Decoding reads the weights, so it has to happen while the folder is there.
            list(_program_weights(program))
        except mlpackage.PackageInvalid:
            raise
        except Exception as error:  # the decoder has no error class of its own
            message = f"The package cannot be decoded: {_first_line(error)}"
            raise mlpackage.PackageInvalid(message) from error
    return program


def _check_labels(specification: Any, program: Any, labels: Sequence[str]) -> dict[str, Any]:
    found = [
        str(label)
        for operation in _operations(program)
        if operation.op_type == "classify"
        for label in _value(operation.inputs["classes"])
    ]
    outputs = {feature.name for feature in specification.description.output}
    named = {
        specification.description.predictedFeatureName,
        specification.description.predictedProbabilitiesName,
    }
    if named != outputs:
        detail = f"the outputs {sorted(outputs)} are not the label and its probabilities"
        return check("labels", passed=False, detail=detail)
    return check("labels", passed=found == list(labels), detail=f"the labels are {found}")


def _check_input(specification: Any, keras_model: keras.Model) -> dict[str, Any]:
    inputs = specification.description.input
    if len(inputs) != 1 or inputs[0].type.WhichOneof("Type") != "imageType":
        return check("input", passed=False, detail="the package does not take one photo")
    image = inputs[0].type.imageType
    colour = image.ColorSpace.Name(image.colorSpace)
    _, height, width, _ = keras_model.input_shape
    passed = (image.width, image.height, colour) == (width, height, "RGB")
    return check("input", passed=passed, detail=f"a {colour} photo, {image.width}x{image.height}")


def _check_scaling(program: Any, keras_model: keras.Model) -> dict[str, Any]:
    """Compare what is done to pixels before the first layer with weights."""
    wanted = [
        float(value)
        for layer in _layers(keras_model)
        if type(layer).__name__ == "Rescaling"
        for value in (layer.scale, layer.offset)
    ]
    found = []
    for operation in _operations(program):
        if operation.op_type in _KINDS:
            break
        if operation.op_type in _SCALARS and _value(operation.inputs["y"]) is not None:
            found.append(float(_value(operation.inputs["y"])))
    passed = len(found) == len(wanted) and bool(np.allclose(found, wanted, rtol=1e-3))
    detail = f"pixels are scaled by {found}" + ("" if passed else f", not by {wanted}")
    return check("scaling", passed=passed, detail=detail)


def _check_weights(program: Any, keras_model: keras.Model) -> list[dict[str, Any]]:
    ours, unknown = _keras_weights(keras_model)
    theirs = list(_program_weights(program))
    named = ", ".join(unknown)
    coverage = check(
        "coverage",
        passed=not unknown and len(ours) == len(theirs),
        detail=f"{len(theirs)} arrays of weights for {len(ours)} of Keras"
        + (f"; not comparable: {named}" if unknown else ""),
    )
    return [coverage, _compare(ours, theirs)]


def _compare(ours: list[_Weight], theirs: list[_Weight]) -> dict[str, Any]:
    """Compare arrays of one kind and shape in the order in which the networks use them."""
    waiting = list(ours)
    worst = 0.0
    for weight in theirs:
        match = next(
            (
                one
                for one in waiting
                if one.kind == weight.kind and one.values.shape == weight.values.shape
            ),
            None,
        )
        if match is None:
            detail = f"{weight.where}: Keras has no such array {weight.values.shape}"
            return check("weights", passed=False, detail=detail)
        waiting.remove(match)
        compare = _compare_palette if weight.is_palette else _compare_float16
        excess = compare(match.values, weight.values)
        if not excess <= 1:
            detail = f"{match.where}: weights are {excess:.3g} times further off than rounding"
            return check("weights", passed=False, detail=detail)
        worst = max(worst, excess)
    passed = not waiting
    detail = (
        f"{len(theirs)} arrays agree, the worst at {worst:.2f} of what rounding allows"
        if passed
        else f"the package lacks {waiting[0].where}"
    )
    return check("weights", passed=passed, detail=detail)


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
    if len(palette) > PALETTE_SIZE:
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
            values = None if variable is None else _value(variable)
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


def _value(variable: Any) -> Any:
    """Return the constant that a variable is, palettes expanded, else None."""
    if getattr(variable, "val", None) is not None:
        return variable.val
    operation = getattr(variable, "op", None)
    if operation is not None and operation.op_type.startswith("constexpr"):
        return operation.materialized_val_inference()
    return None


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


def _array(variable: Any) -> Array:
    return np.asarray(variable, dtype=np.float64)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__

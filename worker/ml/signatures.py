"""What goes into a model and what comes out of it, whatever it is for, and how to run it so.

A TFLite file names its tensors twice: in a signature, for people, and in the graph. The first
signature counts (``serving_default`` where there is one); a file without one has the graph's
names, less what converters put around them. ``nightferry.tensors`` in the SDK does the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.errors import ModelUnusable
from worker.ml.evaluation import open_tflite

Array = npt.NDArray[Any]

KNOWN_DTYPES: Final = (
    "float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32",
    "int64", "bool",
)  # fmt: skip
"""What an input can be made up for; ``image`` (Core ML) besides, which holds uint8."""
# Where a file leaves a side open: the first that it runs with.
_SIDES: Final = (64, 128, 224, 256, 32, 1)
_PREFIX, _SUFFIX = "serving_default_", ":0"


@dataclass(frozen=True)
class Tensor:
    """One input or output. A side of ``shape`` that may differ from call to call is None.

    ``scale`` and ``zero_point`` are those of quantised integers, 0 where there is no scale.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0

    @property
    def is_photo(self) -> bool:
        """Whether it takes one photo: (batch, height, width, 3), of fixed size."""
        return (
            len(self.shape) == 4  # noqa: PLR2004
            and self.shape[3] == 3  # noqa: PLR2004
            and None not in self.shape[1:]
        )

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Tensor:
        """Read what :meth:`to_json` wrote."""
        return cls(
            str(told["name"]),
            tuple(told["shape"]),
            str(told["dtype"]),
            float(told.get("scale", 0)),
            int(told.get("zero_point", 0)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what is told of it: an open side is null."""
        told: dict[str, Any] = {
            "name": self.name, "shape": list(self.shape), "dtype": self.dtype,
        }  # fmt: skip
        if self.scale:
            # As text: what is signed holds no fractions.
            told |= {"scale": repr(self.scale), "zero_point": self.zero_point}
        return told


class TFLiteRunner:
    """A TFLite file, ready to run on tensors by name; raises :class:`ModelUnusable`.

    ``inputs`` and ``outputs`` are what the file states. Open sides are settled with the first
    run, see :meth:`settle`. Quantised outputs come back as float32, other integers as they are.
    """

    def __init__(self, content: bytes, *, is_accelerated: bool = True) -> None:
        """Open the file."""
        self._interpreter = open_tflite(content, is_accelerated=is_accelerated)
        taken, given = _named(self._interpreter)
        self._taken, self._given = taken, given
        self.inputs = [_tensor(name, details) for name, details in taken.items()]
        self.outputs = [_tensor(name, details) for name, details in given.items()]
        self._shapes = {name: tuple(map(int, one["shape"])) for name, one in taken.items()}
        self.durations_ms: list[float] = []

    def settle(self) -> list[Tensor]:
        """Return the inputs with all sides known: open ones get the first side that runs."""
        settled = settle(self.inputs, self.run)
        self.durations_ms.clear()
        return settled

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name for inputs of the file's own types."""
        try:
            self._resize(values)
            for name, details in self._taken.items():
                self._interpreter.set_tensor(details["index"], values[name])
            begun = time.perf_counter()
            self._interpreter.invoke()
            self.durations_ms.append((time.perf_counter() - begun) * 1000)
            raw = {
                name: self._interpreter.get_tensor(details["index"])
                for name, details in self._given.items()
            }
        except (ValueError, RuntimeError) as error:
            message = f"the file does not run: {str(error).splitlines()[0][:200]}"
            raise ModelUnusable(message) from error
        return {name: _real(raw[name], self._given[name]) for name in raw}

    def _resize(self, values: Mapping[str, Array]) -> None:
        has_changed = False
        for name, details in self._taken.items():
            shape = tuple(values[name].shape)
            if shape != self._shapes[name]:
                self._interpreter.resize_tensor_input(details["index"], shape)
                self._shapes[name] = shape
                has_changed = True
        if has_changed:
            self._interpreter.allocate_tensors()


def settle(inputs: Sequence[Tensor], run: Callable[[Mapping[str, Array]], object]) -> list[Tensor]:
    """Return the inputs with all sides known: open ones get the first side that ``run`` takes.

    Raises :class:`ModelUnusable` where none does.
    """
    refusal = ""
    has_open = any(None in one.shape[1:] for one in inputs)
    for side in _SIDES if has_open else (1,):
        settled = [replace(one, shape=_closed(one, side)) for one in inputs]
        try:
            run({one.name: zeros(one) for one in settled})
        except ModelUnusable as error:
            refusal = refusal or error.sentence
        else:
            return settled
    raise ModelUnusable(refusal)


def zeros(tensor: Tensor) -> Array:
    """Return an input of nothing, of a tensor whose sides are known."""
    return np.zeros([side or 1 for side in tensor.shape], dtype=numpy_dtype(tensor))


def numpy_dtype(tensor: Tensor) -> str:
    """Return the type that an array for the tensor has; raises :class:`ModelUnusable`."""
    if tensor.dtype == "image":
        return "uint8"
    if tensor.dtype not in KNOWN_DTYPES:
        message = f"no value can be made up for the input {tensor.name} of type {tensor.dtype}"
        raise ModelUnusable(message, code="dtype_unknown")
    return tensor.dtype


def is_classifier(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], labels: Sequence[str]
) -> bool:
    """Tell whether this takes one photo and answers with one number for each label."""
    return bool(labels) and class_count(inputs, outputs) in {len(labels), 0}


def class_count(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int | None:
    """Return with how many numbers this answers to one photo; None if it is no such model.

    Core ML's classifiers have two outputs, the label and a dictionary of probabilities, of which
    a file without labels does not tell the size: that is 0.
    """
    if len(inputs) != 1 or not inputs[0].is_photo:
        return None
    answers = [one for one in outputs if one.dtype not in {"stringType", "int64Type"}]
    if len(answers) != 1:
        return None
    shape = answers[0].shape
    if answers[0].dtype == "dictionaryType":
        return shape[-1] or 0 if shape else 0
    if len(shape) == 2 and shape[0] in {None, 1} and shape[1]:  # noqa: PLR2004
        return shape[1]
    return None


def _named(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return inputs and outputs by the names that people know them by."""
    taken, given = interpreter.get_input_details(), interpreter.get_output_details()
    signatures = interpreter.get_signature_list()
    if signatures:
        key = "serving_default" if "serving_default" in signatures else next(iter(signatures))
        runner = interpreter.get_signature_runner(key)
        ours, theirs = runner.get_input_details(), runner.get_output_details()
        if _indexes(ours.values()) == _indexes(taken) and _indexes(theirs.values()) == _indexes(
            given
        ):
            return (
                {name: _at(taken, ours[name]["index"]) for name in sorted(ours)},
                {name: _at(given, theirs[name]["index"]) for name in sorted(theirs)},
            )
    return _by_tensor_name(taken), _by_tensor_name(given)


def _indexes(details: Any) -> list[int]:
    return sorted(int(one["index"]) for one in details)


def _at(details: Sequence[dict[str, Any]], index: int) -> dict[str, Any]:
    return next(one for one in details if one["index"] == index)


def _by_tensor_name(details: Sequence[dict[str, Any]]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for number, one in enumerate(details):
        name = plain_name(str(one["name"])) or f"tensor_{number}"
        named[name if name not in named else f"{name}_{number}"] = one
    return named


def plain_name(name: str) -> str:
    """Return a tensor's name without what converters put around it."""
    return name.removeprefix(_PREFIX).removesuffix(_SUFFIX)


def _tensor(name: str, details: dict[str, Any]) -> Tensor:
    stated = details.get("shape_signature")
    sides = details["shape"] if stated is None or not len(stated) else stated
    scale, zero_point = details["quantization"]
    dtype = np.dtype(details["dtype"]).name
    return Tensor(
        name,
        tuple(None if side < 0 else int(side) for side in sides),
        dtype if dtype in KNOWN_DTYPES else "other",
        float(scale),
        int(zero_point),
    )


def _closed(tensor: Tensor, side: int) -> tuple[int, ...]:
    """Return the shape with its open sides settled; the batch is always one."""
    return tuple(
        known if known is not None else 1 if place == 0 else side
        for place, known in enumerate(tensor.shape)
    )


def _real(values: Array, details: dict[str, Any]) -> Array:
    scale, zero_point = details["quantization"]
    if not np.issubdtype(values.dtype, np.integer) or scale == 0:
        return values
    real: Array = (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return real


# --- Keras ------------------------------------------------------------------------------------


def keras_signature(model: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return inputs and outputs of a Keras network by name.

    Names are the keys of its dictionaries, else those of input tensors and of answering layers.
    """
    inputs, outputs = _keras_inputs(model), _keras_outputs(model)
    return [_keras_tensor(*one) for one in inputs], [_keras_tensor(*one) for one in outputs]


def run_keras(model: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the network's outputs by name, as it returns them; also while it is traced."""
    import keras

    given = [values[name] for name, _ in _keras_inputs(model)]
    structured = keras.tree.pack_sequence_as(_keras_structure(model, "input"), given)
    answers = keras.tree.flatten(model(structured, training=False))
    names = [name for name, _ in _keras_outputs(model)]
    return dict(zip(names, answers, strict=True))


def _keras_inputs(model: Any) -> list[tuple[str, Any]]:
    structure, tensors = _keras_structure(model, "input"), model.inputs
    names = sorted(structure) if isinstance(structure, dict) else [one.name for one in tensors]
    # A name that Keras made up is another in every process.
    named = [
        name if not name.startswith("keras_tensor") else f"input_{place}"
        for place, name in enumerate(names)
    ]
    return _distinct(named if len(named) > 1 or "input_0" not in named else ["input"], tensors)


def _keras_outputs(model: Any) -> list[tuple[str, Any]]:
    structure, tensors = _keras_structure(model, "output"), model.outputs
    if isinstance(structure, dict):
        return _distinct(sorted(structure), tensors)
    names = getattr(model, "output_names", None)
    return _distinct(names or [f"output_{place}" for place in range(len(tensors))], tensors)


def _keras_structure(model: Any, side: str) -> Any:
    """Return the tensor, list or dictionary; a Sequential has one tensor."""
    try:
        return getattr(model, side)
    except AttributeError:
        return getattr(model, f"{side}s")[0]


def _distinct(names: Sequence[str], tensors: Sequence[Any]) -> list[tuple[str, Any]]:
    return [
        (name if name not in names[:place] else f"{name}_{place}", tensor)
        for place, (name, tensor) in enumerate(zip(names, tensors, strict=True))
    ]


def _keras_tensor(name: str, tensor: Any) -> Tensor:
    shape = tuple(None if side is None else int(side) for side in tensor.shape)
    return Tensor(name, shape, str(tensor.dtype))

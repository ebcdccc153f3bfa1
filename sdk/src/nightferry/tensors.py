"""Models of any signature: names of inputs and outputs, arrays in and out, and drawn inputs.

A TFLite file names its tensors twice: in a signature, for people, and in the graph. The first
signature counts (``serving_default`` where there is one); a file without one has the graph's
names, less what converters put around them (``serving_default_`` before, ``:0`` behind).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nightferry.errors import PredictionError, RuntimeMissingError

try:
    import numpy as np
except ImportError as error:
    raise RuntimeMissingError(
        "Running models needs numpy: pip install 'nightferry[tflite]'."
    ) from error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_PREFIX, _SUFFIX = "serving_default_", ":0"
_MASK = 0xFFFFFFFF


class Tensors:
    """The inputs and outputs of an opened TFLite file, by name. Not for several threads at once."""

    def __init__(self, interpreter: Any) -> None:
        """Read the names; the interpreter's tensors are allocated."""
        self._interpreter = interpreter
        self.inputs, self.outputs = _named(interpreter)
        self._shapes = {name: tuple(map(int, one["shape"])) for name, one in self.inputs.items()}

    def run(self, values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Return every output by name; see ``Predictor.run``. Raises PredictionError."""
        if set(values) != set(self.inputs):
            message = (
                f"The model takes {', '.join(sorted(self.inputs))}; what was given is "
                f"{', '.join(sorted(map(str, values))) or 'nothing'}."
            )
            raise PredictionError(message)
        arrays = {name: _as_taken(name, values[name], one) for name, one in self.inputs.items()}
        try:
            self._resize(arrays)
            for name, array in arrays.items():
                self._interpreter.set_tensor(self.inputs[name]["index"], array)
            self._interpreter.invoke()
            return {
                name: as_real(self._interpreter.get_tensor(one["index"]), one)
                for name, one in self.outputs.items()
            }
        except (RuntimeError, ValueError) as error:
            message = f"The model failed to run: {str(error).splitlines()[0][:300]}"
            raise PredictionError(message) from error

    def _resize(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        changed = False
        for name, array in arrays.items():
            if array.shape != self._shapes[name]:
                index = self.inputs[name]["index"]
                self._interpreter.resize_tensor_input(index, array.shape, strict=True)
                self._shapes[name] = array.shape
                changed = True
        if changed:
            self._interpreter.allocate_tensors()


def fill(
    shape: Sequence[int], dtype: str, cells: Sequence[int], seed: int, low: float, high: float
) -> NDArray[Any]:
    """Return the drawn input that ``docs/selftest-format.md`` describes (format 2)."""
    drawn = np.array(_xorshift(seed, math.prod(cells)), dtype=np.int64) >> 8
    kind = np.dtype("uint8" if dtype == "image" else dtype)
    if kind.kind == "f":
        values: NDArray[Any] = low + (high - low) * (drawn.astype(np.float64) / 2**24)
    else:
        values = int(low) + ((drawn * (int(high) - int(low) + 1)) >> 24)
    places = [np.arange(side) * n // side for side, n in zip(shape, cells, strict=True)]
    blocks = values.reshape(tuple(cells))
    large: NDArray[Any] = (blocks[np.ix_(*places)] if places else blocks).astype(kind)
    return large


def as_real(values: NDArray[Any], details: Mapping[str, Any]) -> NDArray[Any]:
    """Return quantised integers as float32, ``(q - zero_point) * scale``; others as they are."""
    scale, zero_point = details["quantization"]
    if values.dtype.kind not in "iu" or not scale:
        return values
    real: NDArray[Any] = (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return real


def _xorshift(seed: int, count: int) -> list[int]:
    state, values = seed & _MASK, []
    for _ in range(count):
        state ^= (state << 13) & _MASK
        state ^= state >> 17
        state ^= (state << 5) & _MASK
        values.append(state)
    return values


def _as_taken(name: str, value: Any, details: Mapping[str, Any]) -> NDArray[Any]:
    """Return the array in the input's type: floats for quantised integers are quantised."""
    wanted = np.dtype(details["dtype"])
    array = np.asarray(value)
    open_shape = [int(side) for side in details.get("shape_signature", details["shape"])]
    fits = array.ndim == len(open_shape) and all(
        side in {-1, given} for side, given in zip(open_shape, array.shape, strict=True)
    )
    if not fits:
        shown = [side if side >= 0 else None for side in open_shape]
        message = f"The input {name} has the shape {list(array.shape)}; the model takes {shown}."
        raise PredictionError(message)
    if array.dtype.kind == "f" and wanted.kind in "iu" and details["quantization"][0]:
        scale, zero_point = details["quantization"]
        limits = np.iinfo(wanted)
        steps = np.round(array.astype(np.float32) / np.float32(scale)) + zero_point
        quantised: NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(wanted)
        return quantised
    if not np.can_cast(array.dtype, wanted, casting="same_kind"):
        message = f"The input {name} is of {array.dtype}; the model takes {wanted}."
        raise PredictionError(message)
    return array.astype(wanted)


def _named(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    taken, given = interpreter.get_input_details(), interpreter.get_output_details()
    signatures = interpreter.get_signature_list()
    if signatures:
        key = "serving_default" if "serving_default" in signatures else next(iter(signatures))
        runner = interpreter.get_signature_runner(key)
        named = (runner.get_input_details(), runner.get_output_details())
        if [_indexes(side.values()) for side in named] == [_indexes(taken), _indexes(given)]:
            ours, theirs = (
                {name: _at(all_, side[name]["index"]) for name in sorted(side)}
                for all_, side in zip((taken, given), named, strict=True)
            )
            return ours, theirs
    return _by_tensor_name(taken), _by_tensor_name(given)


def _indexes(details: Any) -> list[int]:
    return sorted(int(one["index"]) for one in details)


def _at(details: Sequence[dict[str, Any]], index: int) -> dict[str, Any]:
    return next(one for one in details if one["index"] == index)


def _by_tensor_name(details: Sequence[dict[str, Any]]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for number, one in enumerate(details):
        name = str(one["name"]).removeprefix(_PREFIX).removesuffix(_SUFFIX) or f"tensor_{number}"
        named[name if name not in named else f"{name}_{number}"] = one
    return named

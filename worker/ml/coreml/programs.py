"""An ML Program, read from its protobuf and calculated operator by operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from worker.ml.coreml.arithmetic import Array, round_to_float16
from worker.ml.coreml.errors import OperatorUnknown
from worker.ml.coreml.operators import OPERATORS

_MAIN: Final = "main"


@dataclass(frozen=True)
class _Step:
    """One operator: what it is given, by name, and what it makes."""

    kind: str
    constants: Mapping[str, Any]
    variables: Mapping[str, str]
    lists: Mapping[str, Sequence[str | Array]]
    outputs: tuple[tuple[str, str], ...]
    """(name, type)"""
    last_uses: tuple[str, ...] = ()
    """Variables that nothing needs afterwards."""


class Program:
    """What :func:`worker.ml.compilers.coreml_check.decode` read, ready to be calculated.

    Numbers are stored as the program says: what is declared float16 is rounded to float16 after
    each operator. Inside an operator sums are of float32, as Core ML leaves it open.
    """

    def __init__(self, decoded: Any) -> None:
        function = decoded.functions[_MAIN]
        self.inputs = {name: tuple(one.shape) for name, one in function.inputs.items()}
        self.outputs = [one.name for one in function.outputs]
        self.classes: list[str] | None = None
        self.probabilities: str | None = None
        self.unknown = _unknown(function)
        self.stored = _storage(function)
        # Constants of operators that cannot be run are not worth decoding.
        self._steps = [] if self.unknown else self._read(function)

    def run(self, inputs: Mapping[str, Array], *, rounds: bool = True) -> dict[str, Array]:
        """Return the outputs by name, and ``probabilities`` where the program is a classifier.

        Without ``rounds`` float16 is kept as float32. Raises :class:`OperatorUnknown`.
        """
        if self.unknown:
            raise OperatorUnknown(*self.unknown)
        values: dict[str, Any] = dict(inputs)
        for step in self._steps:
            arguments = dict(step.constants)
            for name, source in step.variables.items():
                arguments[name] = values[source]
            for name, sources in step.lists.items():
                arguments[name] = [values[one] if isinstance(one, str) else one for one in sources]
            made = OPERATORS[step.kind](arguments)
            results = made if isinstance(made, tuple) else (made,)
            for (name, kind), result in zip(step.outputs, results, strict=True):
                values[name] = _stored(result, kind if rounds else "fp32")
            for name in step.last_uses:
                del values[name]
        wanted = [name for name in (*self.outputs, self.probabilities) if name in values]
        return {str(name): values[name] for name in wanted}

    def _read(self, function: Any) -> list[_Step]:
        steps = []
        for operation in _operations(function):
            if operation.op_type == "classify":
                self.classes = [str(label) for label in constant_of(operation.inputs["classes"])]
                self.probabilities = operation.inputs["probabilities"].name
            else:
                steps.append(_step(operation))
        kept = {*self.outputs, self.probabilities}
        return _forgetting(steps, kept)


def _operations(function: Any) -> list[Any]:
    """Return the operators that are left when everything constant is known."""
    return [
        operation
        for operation in function.operations
        if not operation.op_type.startswith("const")
        and (operation.op_type == "classify" or any(one.val is None for one in operation.outputs))
    ]


def _unknown(function: Any) -> tuple[str, ...]:
    kinds = {operation.op_type for operation in _operations(function)}
    return tuple(sorted(kinds - {"classify"} - OPERATORS.keys()))


def _storage(function: Any) -> str:
    """Return the coarsest thing that numbers are kept in."""
    if any("lut" in operation.op_type for operation in function.operations):
        return "palette"
    made = [one for operation in _operations(function) for one in operation.outputs]
    return "float16" if any(_is_float16(one) for one in made) else "float32"


def _is_float16(variable: Any) -> bool:
    try:
        return bool(variable.dtype.__name__ == "fp16")
    except (AttributeError, ValueError):  # a list or a dictionary has no type
        return False


def _step(operation: Any) -> _Step:
    constants: dict[str, Any] = {}
    variables: dict[str, str] = {}
    lists: dict[str, list[str | Array]] = {}
    for name, given in operation.inputs.items():
        if isinstance(given, list | tuple):
            parts = [(one.name, constant_of(one)) for one in given]
            lists[name] = [of if value is None else _as_number(value) for of, value in parts]
        elif given is not None:
            value = constant_of(given)
            if value is None:
                variables[name] = given.name
            else:
                constants[name] = _as_number(value)
    outputs = tuple((one.name, one.dtype.__name__) for one in operation.outputs)
    return _Step(operation.op_type, constants, variables, lists, outputs)


def constant_of(variable: Any) -> Any:
    """Return the constant that a variable is, with palettes and the like expanded, else None."""
    if variable.val is not None:
        return variable.val
    operation = variable.op
    if operation is not None and operation.op_type.startswith("constexpr"):
        expanded = operation.materialized_val_inference()
        if isinstance(expanded, list | tuple):
            return expanded[list(operation.outputs).index(variable)]
        return expanded
    return None


def _as_number(value: Any) -> Any:
    kind = getattr(value, "dtype", None)
    if kind is not None and np.issubdtype(kind, np.floating):
        return np.asarray(value, np.float32) if np.ndim(value) else np.float32(value)
    return value


def _stored(value: Array, kind: str) -> Array:
    """Keep it as the program does: float16 beyond its range becomes infinite."""
    if kind == "fp16":
        return round_to_float16(np.asarray(value, np.float32))
    return value if value.dtype != np.float64 else value.astype(np.float32)


def _forgetting(steps: Sequence[_Step], kept: set[str | None]) -> list[_Step]:
    """Return the steps, each with the names that it is the last to use."""
    seen = set(kept)
    backwards = []
    for step in reversed(steps):
        listed = [one for sources in step.lists.values() for one in sources]
        used = {name for name, _ in step.outputs} | set(step.variables.values())
        used |= {one for one in listed if isinstance(one, str)}
        backwards.append(replace(step, last_uses=tuple(sorted(used - seen))))
        seen |= used
    return backwards[::-1]

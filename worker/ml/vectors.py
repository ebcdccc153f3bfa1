"""Self-tests of models with any inputs and outputs: drawn tensors and the file's own answers.

Nobody's data travel to devices, and hardly any bytes: an input is described by a seed, from which
a device draws the same blocks of numbers, and of each output some places are recorded. The
format, and what devices do with it, is in ``docs/selftest-format.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from worker.ml.errors import ModelUnusable
from worker.ml.selftest import FORMAT, MAX_LATENCY_MS
from worker.ml.signatures import Array, Tensor, numpy_dtype

DATA_FORMAT: Final = 2
"""Of the text inside; the member around it keeps the number that devices sign for."""

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Runs a file on tensors by name; raises :class:`ModelUnusable`."""

_CANDIDATES: Final = 12
_CASES: Final = 3
_PLACES: Final = 24
_MAX_CELLS: Final = 4096
_MAX_OUTPUTS: Final = 64
_BLOCKS: Final = (8, 4, 2, 16, 1)
_LEAST_TOLERANCE: Final = 0.05
_KERNEL_ALLOWANCE: Final = 4
_DIGITS: Final = 2
_MASK: Final = 0xFFFFFFFF
# Integers that nothing is known of may be places in a table or a mask: these are always there.
_WHOLE_RANGE: Final = (0, 1)
_BYTE_RANGES: Final = {"uint8": (0, 255), "int8": (-128, 127), "image": (0, 255), "bool": (0, 1)}

Range = tuple[float, float]


@dataclass(frozen=True)
class Drawn:
    """One case: for each input the seed and the number of blocks along each side."""

    seeds: tuple[int, ...]
    cells: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Vectors:
    """What a manifest carries (``member``) and what people are told.

    ``spreads`` are, by output, largest less smallest value over all candidates. ``notes`` are
    sentences about what the test does not see.
    """

    member: dict[str, Any]
    cases: int
    tolerances: dict[str, float]
    spreads: dict[str, float]
    notes: list[str]

    @property
    def sentence(self) -> str:
        """Say in short what is tested."""
        tolerances = ", ".join(f"{name} ± {value:g}" for name, value in self.tolerances.items())
        return f"{self.cases} drawn inputs, {tolerances}"


def draw(case: Drawn, inputs: Sequence[Tensor], ranges: Sequence[Range]) -> dict[str, Array]:
    """Return the inputs of a case, by name."""
    return {
        tensor.name: fill(tensor, seed, cells, limits)
        for tensor, seed, cells, limits in zip(inputs, case.seeds, case.cells, ranges, strict=True)
    }


def fill(tensor: Tensor, seed: int, cells: Sequence[int], limits: Range) -> Array:
    """Return a tensor of blocks of drawn values: index i of a side of n is of block i·c div n.

    The blocks' values come row by row from Marsaglia's xorshift32 (2003), shifts 13, 17 and 5;
    of each number x the upper 24 bits, u. Floats are low + (high - low)·u / 2^24 in float64, then
    rounded; integers low + u·(high - low + 1) div 2^24.
    """
    low, high = limits
    drawn = np.array(_xorshift(seed, math.prod(cells)), dtype=np.int64) >> 8
    dtype = np.dtype(numpy_dtype(tensor))
    if dtype.kind == "f":
        values: Array = low + (high - low) * (drawn.astype(np.float64) / 2**24)
    else:
        values = int(low) + ((drawn * (int(high) - int(low) + 1)) >> 24)
    blocks = values.reshape(tuple(cells))
    sides = [side or 1 for side in tensor.shape]
    places = [np.arange(n) * c // n for n, c in zip(sides, cells, strict=True)]
    large: Array = (blocks[np.ix_(*places)] if places else blocks).astype(dtype)
    return large


def choose_range(tensor: Tensor, mean: float | None = None, std: float | None = None) -> Range:
    """Return between what an input's values are drawn.

    ``mean`` and ``std`` are those of a photo's preprocessing; without them a photo has 0..255.
    """
    if tensor.dtype in _BYTE_RANGES:
        return _BYTE_RANGES[tensor.dtype]
    if not tensor.dtype.startswith("float"):
        return _WHOLE_RANGE
    if not tensor.is_photo:
        return (-1.0, 1.0)
    mean, std = mean or 0.0, std or 1.0
    return ((0 - mean) / std, (255 - mean) / std)


def draw_candidates(inputs: Sequence[Tensor], number: int = _CANDIDATES) -> list[Drawn]:
    """Return cases that differ in seed and in the size of their blocks, always the same."""
    return [
        Drawn(
            tuple(_seed(case * len(inputs) + place) for place in range(len(inputs))),
            tuple(_cells(one, _BLOCKS[case % len(_BLOCKS)]) for one in inputs),
        )
        for case in range(number)
    ]


def record(
    run: Run, inputs: Sequence[Tensor], ranges: Sequence[Range], *, other_run: Run | None = None,
    candidates: int = _CANDIDATES,
) -> Vectors:  # fmt: skip
    """Return the self-test of whatever ``run`` runs, the same for the same file.

    ``other_run`` calculates the same by other kernels; what they differ by, a device may too.
    Raises :class:`ModelUnusable`: ``outputs_not_finite``, ``selftest_impossible``.
    """
    drawn = draw_candidates(inputs, candidates)
    answers = [dict(run(draw(case, inputs, ranges))) for case in drawn]
    finite = [index for index, answer in enumerate(answers) if _is_finite(answer)]
    if not finite:
        message = "the file answers every drawn input with numbers that are not finite"
        raise ModelUnusable(message, code="outputs_not_finite")
    notes = []
    if len(finite) < len(drawn):
        notes.append(
            f"{len(drawn) - len(finite)} of {len(drawn)} drawn inputs get answers that are not"
            " finite numbers."
        )
    drawn, answers = [drawn[i] for i in finite], [answers[i] for i in finite]
    names, left_out = _comparable(answers)
    notes += left_out
    stacks = {name: np.stack([_flat(one[name]) for one in answers]) for name in names}
    spreads = {name: float(values.max() - values.min()) for name, values in stacks.items()}
    differ = {name: np.zeros(len(drawn)) for name in names}
    if other_run is not None:
        others = [other_run(draw(case, inputs, ranges)) for case in drawn]
        differ = {name: _differences(stacks[name], [one[name] for one in others]) for name in names}
    kept = _steady(differ, spreads)
    drawn, answers = [drawn[i] for i in kept], [answers[i] for i in kept]
    stacks = {name: values[kept] for name, values in stacks.items()}
    tolerances = {
        name: _tolerance(values, spreads[name], float(differ[name][kept].max()))
        for name, values in stacks.items()
    }
    if all(_moves(values) <= tolerances[name] for name, values in stacks.items()):
        notes.append(
            "The outputs hardly depend on the drawn inputs, so the self-test says only that the"
            " file runs."
        )
    chosen = _choose(stacks, spreads)
    text = _write(inputs, ranges, [drawn[i] for i in chosen], stacks, chosen, answers, tolerances)
    member = {
        "format": FORMAT,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "data": text,
    }
    return Vectors(member, len(chosen), tolerances, spreads, notes)


def _cells(tensor: Tensor, blocks: int) -> tuple[int, ...]:
    """Return how many blocks lie along each side: of photos few, of short rows each value."""
    sides = [side or 1 for side in tensor.shape]
    if len(sides) <= 2:  # noqa: PLR2004 - a row of numbers
        return tuple(min(side, _MAX_CELLS if place else 1) for place, side in enumerate(sides))
    cells = [1, *(min(side, blocks) for side in sides[1:-1]), sides[-1]]
    while math.prod(cells) > _MAX_CELLS:
        largest = max(range(len(cells)), key=cells.__getitem__)
        cells[largest] = max(1, cells[largest] // 2)
    return tuple(cells)


def _seed(number: int) -> int:
    """Return a seed with bits in all places: of a small one the first numbers are small, too."""
    return (number + 1) * 2654435761 & _MASK or 1


def _xorshift(seed: int, number: int) -> list[int]:
    state, values = seed & _MASK or 1, []
    for _ in range(number):
        state ^= (state << 13) & _MASK
        state ^= state >> 17
        state ^= (state << 5) & _MASK
        values.append(state)
    return values


def _is_finite(answer: Mapping[str, Array]) -> bool:
    return all(np.isfinite(values.astype(np.float64)).all() for values in answer.values())


def _comparable(answers: Sequence[Mapping[str, Array]]) -> tuple[list[str], list[str]]:
    """Return the outputs that can be compared, and a sentence for each that cannot."""
    names, notes = [], []
    for name in sorted(answers[0]):
        shapes = {one[name].shape for one in answers}
        if len(shapes) > 1:
            notes.append(f"The output {name} has another size for each input; it is not compared.")
        elif 0 in next(iter(shapes)):
            notes.append(f"The output {name} is empty; it is not compared.")
        else:
            names.append(name)
    if not names:
        message = "no output has the same size for every input"
        raise ModelUnusable(message, code="selftest_impossible")
    if len(names) > _MAX_OUTPUTS:
        notes.append(f"{len(names) - _MAX_OUTPUTS} of {len(names)} outputs are not compared.")
    return names[:_MAX_OUTPUTS], notes


def _flat(values: Array) -> Array:
    return values.reshape(-1).astype(np.float64)


def _differences(values: Array, others: Sequence[Array]) -> Array:
    """Return, by case, by how much other kernels' answers differ at most."""
    if any(other.size != row.size for other, row in zip(others, values, strict=True)):
        message = "other kernels answer with outputs of another size"
        raise ModelUnusable(message, code="selftest_impossible")
    rows = [_flat(other) - row for other, row in zip(others, values, strict=True)]
    differ: Array = np.nan_to_num(np.abs(np.stack(rows)).max(axis=1), nan=np.inf)
    return differ


def _steady(differ: Mapping[str, Array], spreads: Mapping[str, float]) -> list[int]:
    """Return the better half of the cases: those that kernels agree about best."""
    worst = np.max([values / (spreads[name] or 1.0) for name, values in differ.items()], axis=0)
    kept = np.flatnonzero(worst <= np.median(worst)).tolist()
    if not math.isfinite(max(worst[kept])):
        message = "other kernels answer with numbers that are not finite"
        raise ModelUnusable(message, code="selftest_impossible")
    return [int(index) for index in kept]


def _tolerance(values: Array, spread: float, differ: float) -> float:
    """Return how far a device may be off, in the output's unit, three digits rounded up."""
    floor = max(1e-6, 1e-3 * float(np.abs(values).max()))
    return float(f"{max(_LEAST_TOLERANCE * spread, _KERNEL_ALLOWANCE * differ, floor) * 1.005:.3g}")


def _moves(values: Array) -> float:
    """Return by how much a value of an output differs at most between the inputs."""
    return float((values.max(axis=0) - values.min(axis=0)).max())


def _choose(stacks: Mapping[str, Array], spreads: Mapping[str, float]) -> list[int]:
    """Return the cases whose answers lie farthest apart, the first being as far as any."""
    scaled = np.concatenate(
        [values[:, _places(values)] / (spreads[name] or 1.0) for name, values in stacks.items()],
        axis=1,
    )
    centre = scaled.mean(axis=0)
    chosen = [int(np.abs(scaled - centre).max(axis=1).argmax())]
    while len(chosen) < min(_CASES, len(scaled)):
        far = np.min([np.abs(scaled - scaled[index]).max(axis=1) for index in chosen], axis=0)
        far[chosen] = -1
        chosen.append(int(far.argmax()))
    return sorted(chosen)


def _places(values: Array) -> list[int]:
    """Return places in an output: half where answers differ most, half spread evenly."""
    size = values.shape[1]
    if size <= _PLACES:
        return list(range(size))
    moves = values.max(axis=0) - values.min(axis=0)
    liveliest = np.argsort(-moves, kind="stable")[: _PLACES // 2].tolist()
    even = (np.arange(_PLACES // 2) * size // (_PLACES // 2)).tolist()
    return sorted({*liveliest, *even})


def _write(
    inputs: Sequence[Tensor],
    ranges: Sequence[Range],
    cases: Sequence[Drawn],
    stacks: Mapping[str, Array],
    chosen: Sequence[int],
    answers: Sequence[Mapping[str, Array]],
    tolerances: Mapping[str, float],
) -> str:
    places = {name: _places(values) for name, values in stacks.items()}
    document = {
        "format": DATA_FORMAT,
        "inputs": [
            {
                "name": tensor.name,
                "shape": [side or 1 for side in tensor.shape],
                "dtype": tensor.dtype,
                "low": _number(limits[0], 9),
                "high": _number(limits[1], 9),
            }
            for tensor, limits in zip(inputs, ranges, strict=True)
        ],
        "outputs": [
            {
                "name": name,
                "shape": list(answers[0][name].shape),
                "at": places[name],
                "tolerance": tolerances[name],
            }
            for name in stacks
        ],
        "cases": [
            {
                "seeds": list(case.seeds),
                "cells": [list(cells) for cells in case.cells],
                "values": [
                    [
                        _number(stacks[name][index, at], _decimals(tolerances[name]))
                        for at in places[name]
                    ]
                    for name in stacks
                ],
            }
            for case, index in zip(cases, chosen, strict=True)
        ],
        "max_latency_ms": MAX_LATENCY_MS,
    }
    return json.dumps(document, separators=(",", ":"))


def _decimals(tolerance: float) -> int:
    return _DIGITS - math.floor(math.log10(tolerance))


def _number(value: float, decimals: int) -> float:
    """Return the value as short as is exact enough."""
    rounded = round(float(value), decimals)
    return int(rounded) if rounded.is_integer() else rounded


def compare(
    ours: Sequence[Mapping[str, Array]], theirs: Sequence[Mapping[str, Array]]
) -> dict[str, Any]:
    """Return how far two networks' answers to the same inputs lie apart, ready for JSON.

    By output and over all: the mean absolute difference, and the largest, as fractions of the
    spread of ``theirs`` over all inputs (largest less smallest value). ``count`` is of inputs.
    """
    by_output = {}
    for name in theirs[0]:
        wanted = np.stack([_flat(one[name]) for one in theirs])
        got = np.stack([_flat(one[name]) for one in ours])
        spread = float(wanted.max() - wanted.min())
        differ = np.abs(got - wanted) / (spread or 1.0)
        by_output[name] = {
            "mean": float(differ.mean()),
            "largest": float(differ.max()),
            "spread": spread,
            "moves": _moves(wanted),
        }
    return {
        "mean": max(one["mean"] for one in by_output.values()),
        "largest": max(one["largest"] for one in by_output.values()),
        "outputs": by_output,
        "count": len(theirs),
    }

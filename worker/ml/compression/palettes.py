"""A few values for many weights."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

_ROUNDS: Final = 40
# Below this there is no room for entries by value beside those by rank.
_LEAST_MIXED: Final = 32


def find_palette(
    weights: npt.NDArray[np.floating[Any]], size: int
) -> tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.uint8]]:
    """Return ``size`` values, 256 at most, and for each weight (flattened) the nearest's index.

    Lloyd's algorithm (1982) in one dimension, from evenly spread quantiles: where values are
    sorted, a cluster is an interval, and a round costs a search. No chance is involved, so it
    gives the same palette everywhere.
    """
    flat = weights.reshape(-1).astype(np.float64)
    values, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    if len(values) <= size:
        palette = np.full(size, values[-1])
        palette[: len(values)] = values
        return palette.astype(weights.dtype), inverse.astype(np.uint8).reshape(-1)
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    total = np.concatenate([[0.0], np.cumsum(counts * values)])
    palette = _first_guess(values, size)
    for _ in range(_ROUNDS):
        cuts = np.searchsorted(values, (palette[1:] + palette[:-1]) / 2)
        edges = np.concatenate([[0], cuts, [len(values)]])
        weight = np.diff(mass[edges])
        means = np.diff(total[edges]) / np.maximum(weight, 1.0)
        palette = np.sort(np.where(weight > 0, means, palette))
    rounded = palette.astype(weights.dtype).astype(np.float64)
    nearest = np.searchsorted((rounded[1:] + rounded[:-1]) / 2, values)
    return rounded.astype(weights.dtype), nearest[inverse].astype(np.uint8).reshape(-1)


def _first_guess(values: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    if size < _LEAST_MIXED:
        middles = (np.arange(size) + 0.5) / size * (len(values) - 1)
        return np.asarray(values[middles.round().astype(int)])
    # Half of the first guesses by rank, half by value: outliers need entries of their own.
    ranks = np.linspace(0, len(values) - 1, size // 2).round().astype(int)
    steps = np.linspace(values[0], values[-1], size // 2)
    return np.sort(np.concatenate([values[ranks], steps]))

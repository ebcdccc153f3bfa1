"""A bounded benchmark of the model in use, for apps whose people allow it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nightferry.errors import ConditionsNotMetError, ConfigurationError
from nightferry.latency import bucket_of, describe
from nightferry.models import ModelState

if TYPE_CHECKING:
    from nightferry.manifest import Document
    from nightferry.models import Model
    from nightferry.prediction import Predictor

MAX_S = 60.0
MAX_RUNS = 200
_WARM_UP_RUNS = 2
_SEED = 2654435761


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """How long the file takes here, in milliseconds; the median of ``runs`` and the extremes."""

    model: Model
    runs: int
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    data: Document


def check_allowed(model: Model, max_s: float) -> None:
    """Raise ConfigurationError for a span out of bounds, ConditionsNotMetError on trial."""
    if not 0 < max_s <= MAX_S:
        message = f"A benchmark takes more than 0 and at most {MAX_S:.0f} s, not {max_s!r}."
        raise ConfigurationError(message)
    if model.state not in {ModelState.CONFIRMED, ModelState.EMBEDDED}:
        message = f"{model.name} {model.label} is on trial; it is timed once it is confirmed."
        raise ConditionsNotMetError(message)


def measure(predictor: Predictor, max_s: float) -> BenchmarkReport:
    """Run drawn inputs until ``max_s`` seconds are over, 200 times at most, and at least once.

    The first two runs, which prepare the runtime, do not count. Raises PredictionError.
    """
    inputs = _draw(predictor)
    ends_at = time.monotonic() + max_s
    durations: list[float] = []
    for number in range(MAX_RUNS + _WARM_UP_RUNS):
        started = time.perf_counter()
        predictor.run(inputs)
        spent_ms = (time.perf_counter() - started) * 1000
        if number >= _WARM_UP_RUNS:
            durations.append(spent_ms)
        if time.monotonic() >= ends_at:
            durations = durations or [spent_ms]
            break
    ordered = sorted(durations)
    return BenchmarkReport(
        model=predictor.model,
        runs=len(ordered),
        median_ms=ordered[len(ordered) // 2],
        fastest_ms=ordered[0],
        slowest_ms=ordered[-1],
        data=describe(Counter(map(bucket_of, ordered)), None),
    )


def _draw(predictor: Predictor) -> dict[str, Any]:
    """Return inputs of noise; an open side has 1. What they hold does not change the time."""
    from nightferry.tensors import fill

    drawn = {}
    for name, told in predictor.inputs.items():
        shape = [side or 1 for side in told["shape"]]
        cells = [min(side, 8) for side in shape]
        is_float = told["dtype"].startswith("float")
        drawn[name] = fill(shape, told["dtype"], cells, _SEED, 0.0, 1.0 if is_float else 1)
    return drawn

"""Searching a network within a budget: what may be asked for, who stays, and what is chosen.

Candidates are narrowed by successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943): each
round judges what is left on twice as many photos and keeps the better half. Photos of the test
set take no part: they measure the finalists, and choose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from server.domain.architectures import ARCHITECTURES
from server.domain.errors import InvalidInput, Unprocessable
from server.domain.intervals import wilson

MOST_FINALISTS = 6
# An estimated latency is of float32 on this machine; integers may take half of it.
_LATENCY_DOUBT = 2.5
_HALF_FLOAT_BYTES = 2
# Names, shapes and metadata that a file holds beside its weights.
_FILE_OVERHEAD_BYTES = 64_000


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the network must keep to: at least one limit is set.

    ``max_size_bytes`` and ``max_latency_ms`` (on this server, one thread) are upper bounds,
    ``min_accuracy`` (a share of photos) is a lower one. With ``min_accuracy`` the smallest file
    wins that reaches it, else the most accurate one within the bounds. ``networks`` names those
    to try; empty tries all whose weights are at hand.
    """

    max_size_bytes: int | None = None
    max_latency_ms: float | None = None
    min_accuracy: float | None = None
    networks: tuple[str, ...] = ()
    finalists: int = 3

    @classmethod
    def read(cls, values: Mapping[str, object]) -> Budget:
        """Return the budget; raises ``InvalidInput`` ``invalid_budget``."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            _refuse(f"a budget has no member {unknown[0]!r}")
        size = _number(values, "max_size_bytes")
        budget = cls(
            max_size_bytes=None if size is None else int(size),
            max_latency_ms=_number(values, "max_latency_ms"),
            min_accuracy=_number(values, "min_accuracy"),
            networks=_names(values.get("networks")),
            finalists=int(_number(values, "finalists") or cls.finalists),
        )
        if size is None and budget.max_latency_ms is None and budget.min_accuracy is None:
            _refuse("give at least one of max_size_bytes, max_latency_ms and min_accuracy")
        if budget.min_accuracy is not None and budget.min_accuracy > 1:
            _refuse("min_accuracy is a share of photos, between 0 and 1")
        if not 1 <= budget.finalists <= MOST_FINALISTS:
            _refuse(f"finalists lies between 1 and {MOST_FINALISTS}")
        return budget

    def to_json(self) -> dict[str, object]:
        """Return what was set."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if value not in (None, ())
        }

    def describe(self) -> str:
        """Return the budget in words."""
        parts = []
        if self.max_size_bytes is not None:
            parts.append(f"at most {self.max_size_bytes:,} bytes")
        if self.max_latency_ms is not None:
            parts.append(f"at most {self.max_latency_ms:g} ms a photo on this server")
        if self.min_accuracy is not None:
            parts.append(f"at least {self.min_accuracy:.1%} of photos right")
        return ", ".join(parts)


def _number(values: Mapping[str, object], name: str) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:  # noqa: PLR2004
        _refuse(f"{name} is a number above 0")
        raise AssertionError
    return float(value)


def _names(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    names = tuple(map(str, value)) if isinstance(value, list | tuple) else ()
    wrong = [name for name in names if name not in ARCHITECTURES]
    if wrong or not isinstance(value, list | tuple):
        named = repr(wrong[0][:60]) if wrong else "that"
        _refuse(f"networks is a list of networks, and {named} is none")
    return tuple(dict.fromkeys(names))


def _refuse(reason: str) -> None:
    message = f"The budget does not hold together: {reason}."
    raise InvalidInput(message, code="invalid_budget")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One network cut at one depth, later as one file.

    ``correct`` of ``count`` photos were right whose people the fold had not trained on. Before it
    is compiled ``size_bytes`` is the least that its weights can come to and ``latency_ms`` an
    estimate; ``precision`` is empty. Of a file both are measured, ``loss`` is the share of
    validation photos that compiling cost against float32 beyond chance, and ``test_correct`` of
    ``test_count`` test photos were right.
    """

    network: str
    depth: str
    parameters: int
    multiply_adds: int
    size_bytes: int
    precision: str = ""
    correct: int = 0
    count: int = 0
    latency_ms: float | None = None
    loss: float = 0.0
    test_correct: int | None = None
    test_count: int = 0
    round: int = 0
    dropped: str = ""

    @property
    def name(self) -> str:
        """Return what tells it from the others."""
        precision = f" {self.precision}" if self.precision else ""
        return f"{self.network} at {self.depth}{precision}"

    @property
    def accuracy(self) -> float:
        """Return the share of photos that were right in the folds, less what compiling cost."""
        return max(0.0, self.correct / self.count - self.loss) if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Return Wilson's interval at 95 % of the share in the folds."""
        found = wilson(self.correct, self.count)
        return found.lower, found.upper

    def to_json(self) -> dict[str, object]:
        """Return everything, with the figures that follow from it."""
        tested = self.test_correct is not None
        test = wilson(self.test_correct or 0, self.test_count)
        return {
            **vars(self),
            "accuracy": round(self.accuracy, 4) if self.count else None,
            "interval": list(self.interval),
            "test_accuracy": (self.test_correct or 0) / self.test_count
            if tested and self.test_count
            else None,
            "test_interval": [test.lower, test.upper] if tested else None,
        }


def misses(candidate: Candidate, budget: Budget) -> str:
    """Return how a measured file breaks the budget, empty where it keeps to it."""
    broken = []
    if budget.max_size_bytes is not None and candidate.size_bytes > budget.max_size_bytes:
        broken.append(f"{candidate.size_bytes:,} bytes")
    latency = candidate.latency_ms or 0.0
    if budget.max_latency_ms is not None and latency > budget.max_latency_ms:
        broken.append(f"{latency:.2f} ms a photo")
    if budget.min_accuracy is not None and candidate.accuracy < budget.min_accuracy:
        broken.append(f"{candidate.accuracy:.1%} right")
    return ", ".join(broken)


def cannot_keep(candidate: Candidate, budget: Budget) -> str:
    """Return why no file of this network can keep to the budget, empty where one may."""
    if budget.max_size_bytes is not None and candidate.size_bytes > budget.max_size_bytes:
        return f"a byte for each weight is {candidate.size_bytes:,} bytes already"
    latency = (candidate.latency_ms or 0.0) / _LATENCY_DOUBT
    if budget.max_latency_ms is not None and latency > budget.max_latency_ms:
        return f"about {candidate.latency_ms:.1f} ms a photo in float32 is far too slow"
    if budget.min_accuracy is not None and candidate.count:
        highest = candidate.interval[1]
        if highest < budget.min_accuracy:
            return f"even the upper end of its interval, {highest:.1%}, is too little"
    return ""


def is_sure(candidate: Candidate, budget: Budget) -> bool:
    """Return whether a file of 16-bit floats keeps to the bounds, by a cautious estimate."""
    size = candidate.parameters * _HALF_FLOAT_BYTES + _FILE_OVERHEAD_BYTES
    fits = budget.max_size_bytes is None or size <= budget.max_size_bytes
    latency = candidate.latency_ms or 0.0
    return fits and (budget.max_latency_ms is None or latency <= 0.8 * budget.max_latency_ms)


def halve(
    candidates: Sequence[Candidate], budget: Budget, keep: int
) -> tuple[list[Candidate], list[Candidate]]:
    """Return the ``keep`` candidates to go on with, best first, and the dropped, with why.

    Who cannot keep to the budget goes first. One that keeps to its bounds for sure stays where
    there is any, so that the search does not end with nothing.
    """
    barred = [replace(one, dropped=why) for one in candidates if (why := cannot_keep(one, budget))]
    able = sorted(
        (one for one in candidates if not cannot_keep(one, budget)),
        key=lambda one: _order(one, budget),
    )
    kept = able[:keep]
    sure = [one for one in able if is_sure(one, budget)]
    if kept and sure and not any(is_sure(one, budget) for one in kept):
        kept[-1] = sure[0]
    places = {id(one) for one in kept}
    beaten = [
        replace(one, dropped=f"{len(kept)} others did better in round {one.round}")
        for one in able
        if id(one) not in places
    ]
    return kept, [*barred, *beaten]


def choose(candidates: Sequence[Candidate], budget: Budget) -> Candidate:
    """Return the file that the budget asks for.

    Raises:
        Unprocessable: ``budget_not_met``, which names the nearest file.

    """
    able = [one for one in candidates if not misses(one, budget)]
    if able:
        return min(able, key=lambda one: _order(one, budget))
    nearest = min(candidates, key=lambda one: (_excess(one, budget), one.size_bytes))
    message = (
        f"Nothing keeps to the budget of {budget.describe()}. The nearest is {nearest.name}:"
        f" {misses(nearest, budget)}, and {_figures(nearest)}. Ask for less, or allow more."
    )
    raise Unprocessable(message, code="budget_not_met", nearest=nearest.to_json())


def explain(chosen: Candidate, candidates: Sequence[Candidate], budget: Budget) -> str:
    """Return in one sentence why this file was chosen."""
    rivals = [one for one in candidates if one is not chosen and not misses(one, budget)]
    others = f"the {len(rivals)} other files that do" if len(rivals) > 1 else "the other that does"
    if budget.min_accuracy is not None:
        beats = f", and is the smallest: {others} are larger" if len(rivals) > 1 else ""
        if len(rivals) == 1:
            beats = ", and is smaller than the other that does"
    else:
        best = max((one.accuracy for one in rivals), default=None)
        lead = 0.0 if best is None else (chosen.accuracy - best) * 100
        beats = "" if best is None else f", {lead:.1f} points more than the best of {others}"
        if best is not None and lead < 0.05:  # noqa: PLR2004 - it reads as 0.0
            beats = f", as good as {others} at best, and is smaller or comes first"
    alone = "" if rivals else ", the only finalist that does"
    return (
        f"{chosen.name} keeps to the budget of {budget.describe()}{alone}:"
        f" {_figures(chosen)}{beats}."
    )


def _figures(one: Candidate) -> str:
    latency = "" if one.latency_ms is None else f", {one.latency_ms:.2f} ms"
    low, high = one.interval
    lost = f", less {one.loss * 100:.1f} points by compiling" if one.loss else ""
    return (
        f"right on {one.correct / max(1, one.count):.1%} of {one.count} photos of people not"
        f" trained on (95 %: {low:.1%} to {high:.1%}){lost}, {one.size_bytes:,} bytes{latency}"
    )


def _order(one: Candidate, budget: Budget) -> tuple[float, ...]:
    """Return a key by which the best comes first; every tie has an end."""
    size, cost = float(one.size_bytes), float(one.multiply_adds)
    if budget.min_accuracy is not None:
        reaches = one.accuracy >= budget.min_accuracy
        return (0.0, size, cost, -one.accuracy) if reaches else (1.0, -one.accuracy, size, cost)
    return (-one.accuracy, size, cost, one.latency_ms or 0.0)


def _excess(one: Candidate, budget: Budget) -> float:
    """Return by which factor a file misses the limit that it misses most."""
    factors = [1.0]
    if budget.max_size_bytes is not None:
        factors.append(one.size_bytes / budget.max_size_bytes)
    if budget.max_latency_ms is not None:
        factors.append((one.latency_ms or 0.0) / budget.max_latency_ms)
    if budget.min_accuracy is not None:
        factors.append(budget.min_accuracy / max(one.accuracy, 1e-9))
    return max(factors)

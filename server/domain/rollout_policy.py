"""A rollout's policy: stages, patience and what counts as harm; frozen when a rollout starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise

from server.domain.cohorts import MAX_COVERAGE_BP
from server.domain.errors import InvalidInput

# Five rate ratios and the success of predictions share the alpha of a rollout.
EVENT_GUARDRAILS = ("load_failure", "crash", "inference_error", "latency", "silence")
SUCCESS_GUARDRAIL = "success"
GUARDRAILS = (*EVENT_GUARDRAILS, SUCCESS_GUARDRAIL)

_MOST_STAGES = 20
_MOST_HOURS = 24 * 90
_MOST_DAYS = 90
_MOST_INSTALLATIONS = 1_000_000
_LARGEST_ALPHA = 0.5
_LARGEST_WHOLE = 10**9


@dataclass(frozen=True, kw_only=True)
class RolloutPolicy:
    """How a candidate grows and is judged.

    ``alpha`` is the chance of one false rollback in a whole rollout, shared by all guardrails
    alike, and again the chance that a candidate worse than ``margin`` is promoted.
    ``margin`` is a difference of success shares (.02 is two points). ``tuned_for`` is the number
    of installations with feedback, both arms together, at which success is known most sharply.
    ``needs_feedback`` false promotes on clean guardrails alone, for apps that send no feedback.
    """

    stages_bp: tuple[int, ...] = (100, 500, 1000, 2500, 5000)
    min_hours: float = 24.0
    min_installations: int = 20
    max_data_age_hours: float = 24.0
    deadline_days: float = 14.0
    alpha: float = 0.05
    margin: float = 0.02
    tuned_for: int = 2000
    needs_feedback: bool = True
    max_both_arms_share: float = 0.01

    @property
    def guardrail_alpha(self) -> float:
        """The share of alpha that each guardrail may spend."""
        return self.alpha / len(GUARDRAILS)

    @classmethod
    def read(cls, values: Mapping[str, object]) -> RolloutPolicy:
        """Return the policy that ``values`` describe; unknown or ill-typed members are refused.

        Raises:
            InvalidInput: ``invalid_policy``, naming the member.

        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise _refused(f"has no member {name!r}; it takes {', '.join(sorted(known))}")
        typed = {name: _typed(name, value, getattr(cls, name)) for name, value in values.items()}
        policy = cls(**typed)  # type: ignore[arg-type]
        policy._check()
        return policy

    def dump(self) -> dict[str, object]:
        """Return the policy as JSON values, which ``read`` takes back."""
        return {**asdict(self), "stages_bp": list(self.stages_bp)}

    def _check(self) -> None:
        rules = (
            (
                0 < len(self.stages_bp) <= _MOST_STAGES
                and all(low < high for low, high in pairwise((0, *self.stages_bp)))
                and self.stages_bp[-1] <= MAX_COVERAGE_BP,
                f"stages_bp are at most {_MOST_STAGES}, growing, from 1 to {MAX_COVERAGE_BP}",
            ),
            (0 <= self.min_hours <= _MOST_HOURS, f"min_hours lies between 0 and {_MOST_HOURS}"),
            (
                1 <= self.min_installations <= _MOST_INSTALLATIONS,
                f"min_installations lies between 1 and {_MOST_INSTALLATIONS}",
            ),
            (
                0 < self.max_data_age_hours <= _MOST_HOURS,
                f"max_data_age_hours is above 0 and at most {_MOST_HOURS}",
            ),
            (
                0 < self.deadline_days <= _MOST_DAYS,
                f"deadline_days is above 0 and at most {_MOST_DAYS}",
            ),
            (0 < self.alpha < _LARGEST_ALPHA, f"alpha lies between 0 and {_LARGEST_ALPHA}"),
            (0 < self.margin < 1, "margin lies between 0 and 1"),
            (
                1 <= self.tuned_for <= _MOST_INSTALLATIONS,
                f"tuned_for lies between 1 and {_MOST_INSTALLATIONS}",
            ),
            (0 < self.max_both_arms_share < 1, "max_both_arms_share lies between 0 and 1"),
        )
        for holds, rule in rules:
            if not holds:
                raise _refused(f"does not hold together: {rule}")


def _typed(name: str, value: object, default: object) -> object:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, tuple):
        if isinstance(value, list | tuple) and all(type(item) is int for item in value):
            return tuple(value)
    elif isinstance(default, float):
        if isinstance(value, float):
            return value
        # No limit is anywhere near it, and some whole numbers are too large for a float.
        if is_whole and abs(value) <= _LARGEST_WHOLE:  # type: ignore[arg-type]
            return float(value)  # type: ignore[arg-type]
    elif type(value) is type(default):
        return value
    raise _refused(f"takes for {name} a value like {default!r}, not {value!r:.80}")


def _refused(fact: str) -> InvalidInput:
    return InvalidInput(f"The rollout policy {fact}.", code="invalid_policy")

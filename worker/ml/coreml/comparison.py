"""How far a Core ML file's answers are from those of the network that it was made of.

Errors are measured against the spread of the network's own answers: where these hardly differ
between pictures, everything agrees with everything, and the comparison says so instead. Of
probabilities logarithms are compared, since a network that is sure of itself answers 0 and 1
almost whatever is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.coreml.model import CoreMLModel

Answers = npt.NDArray[np.float32]
"""(pictures, outputs)"""

# Shares of the spread, root mean square. What float16 does is measured for each file and added.
_BASE: Final = {"float32": 0.01, "float16": 0.05, "palette": 0.25}
_ROUNDING_ALLOWANCE: Final = 4.0
_LEAST_SPREAD: Final = 1e-3
_SUMS_TO_ONE: Final = 0.02
# Below, float16 has fewer digits, and what is left of an answer is noise.
_LEAST_PROBABILITY: Final = 1e-4


@dataclass(frozen=True)
class Comparison:
    """Errors as shares of the spread; ``passed`` also where the comparison can say nothing."""

    count: int
    """Pictures."""
    agreeing: int
    """Pictures of which the largest output is the same one."""
    error: float
    largest_error: float
    rounding: float
    """What storing in float16 alone changes, by the evaluator without it."""
    allowed: float
    varies: bool
    """Whether the network's own answers differ between the pictures."""

    @property
    def passed(self) -> bool:
        """Say whether the error is explained by the file's precision."""
        return math.isfinite(self.error) and (not self.varies or self.error <= self.allowed)

    @property
    def sentence(self) -> str:
        """Say what was found."""
        if not math.isfinite(self.error):
            return "answers with numbers that are not finite"
        if not self.varies:
            return (
                f"the network's own answers to {self.count} pictures hardly differ, so that"
                " nothing can be compared"
            )
        verb = "agrees" if self.passed else "disagrees"
        return (
            f"{verb} with Keras by the MIL definitions on {self.count} pictures: the error is"
            f" {self.error:.2%} of the spread of the answers, {self.allowed:.2%} are allowed;"
            f" the same first answer on {self.agreeing}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return it for a variant's metrics."""
        return {
            "count": self.count,
            "agreeing": self.agreeing,
            "error_of_spread": _digits(self.error),
            "largest_error_of_spread": _digits(self.largest_error),
            "rounding_of_spread": _digits(self.rounding),
            "allowed": _digits(self.allowed),
            "reference_varies": self.varies,
        }


def compare(
    model: CoreMLModel, images: Sequence[npt.NDArray[Any]], reference: Answers
) -> Comparison:
    """Compare a file's answers to pictures with ``reference``, Keras's to the same.

    Raises :class:`~worker.ml.coreml.OperatorUnknown` and
    :class:`~worker.ml.errors.ModelUnusable`.
    """
    return compare_answers(
        model.predict(images), model.predict(images, rounds=False), reference, model.stored
    )


def compare_answers(
    answers: Answers, unrounded: Answers, reference: Answers, stored: str
) -> Comparison:
    """Compare answers that are there; ``stored`` is what :attr:`CoreMLModel.stored` says.

    ``unrounded`` may end after some of the pictures.
    """
    scale = _logarithm if _are_probabilities(reference) else _as_it_is
    ours, theirs = scale(answers), scale(reference)
    spread = max(_size(theirs - theirs.mean(axis=0)), 1e-30)
    rounding = _size(ours[: len(unrounded)] - scale(unrounded)) / spread
    allowance = _ROUNDING_ALLOWANCE * rounding if math.isfinite(rounding) else 0.0
    same = answers.argmax(axis=1) == reference.argmax(axis=1)
    return Comparison(
        count=len(reference),
        agreeing=int(same.sum()),
        error=_size(ours - theirs) / spread,
        largest_error=float(np.abs(ours - theirs).max(initial=0.0)) / spread,
        rounding=rounding,
        allowed=_BASE[stored] + allowance,
        varies=spread > _LEAST_SPREAD * float(np.abs(theirs).max(initial=0.0)),
    )


def _are_probabilities(answers: Answers) -> bool:
    sums = answers.sum(axis=1)
    return bool((answers >= 0).all() and (np.abs(sums - 1) < _SUMS_TO_ONE).all())


def _logarithm(answers: Answers) -> npt.NDArray[Any]:
    # What is not a number stays one.
    logarithms: npt.NDArray[Any] = np.log(np.maximum(answers, _LEAST_PROBABILITY))
    return logarithms


def _as_it_is(answers: Answers) -> npt.NDArray[Any]:
    return answers


def _size(values: npt.NDArray[Any]) -> float:
    """Return the root mean square; infinite where anything is not a number."""
    size = float(np.sqrt((values.astype(np.float64) ** 2).mean())) if values.size else 0.0
    return size if math.isfinite(size) else math.inf


def _digits(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None

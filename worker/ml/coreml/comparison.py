"""How far a Core ML file's answers are from those of the network that it was made of.

Errors are measured against the spread of the network's own answers: where these hardly differ
between pictures, everything agrees with everything, and the comparison says so instead.
"""

from __future__ import annotations

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
        return not self.varies or self.error <= self.allowed

    @property
    def sentence(self) -> str:
        """Say what was found."""
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
    spread = max(_size(reference - reference.mean(axis=0)), 1e-30)
    rounding = _size(answers[: len(unrounded)] - unrounded) / spread
    same = answers.argmax(axis=1) == reference.argmax(axis=1)
    return Comparison(
        count=len(reference),
        agreeing=int(same.sum()),
        error=_size(answers - reference) / spread,
        largest_error=float(np.abs(answers - reference).max(initial=0.0)) / spread,
        rounding=rounding,
        allowed=_BASE[stored] + _ROUNDING_ALLOWANCE * rounding,
        varies=spread > _LEAST_SPREAD * float(np.abs(reference).max(initial=0.0)),
    )


def _size(values: npt.NDArray[Any]) -> float:
    """Return the root mean square; infinite where anything is not a number."""
    size = float(np.sqrt((values.astype(np.float64) ** 2).mean())) if values.size else 0.0
    return size if np.isfinite(size) else float("inf")


def _digits(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None

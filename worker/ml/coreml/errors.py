"""What keeps a Core ML file from being run here."""

from __future__ import annotations

from collections.abc import Sequence

from worker.ml.errors import ModelUnusable


class OperatorUnknown(ModelUnusable):
    """The file is made of something that the evaluator does not know; nothing is wrong with it."""

    code = "operator_unknown"

    def __init__(self, *operators: str) -> None:
        """Name the operators."""
        self.operators: Sequence[str] = operators
        super().__init__(f"the evaluator does not know: {', '.join(operators)}")

"""What every compiler gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

VARIANTS: Final = (
    ("tflite", "float32"),
    ("tflite", "float16"),
    ("tflite", "int8"),
    ("coreml", "float16"),
    ("coreml", "palette8"),
)
"""(runtime, precision), in the order in which they are made."""

INPUT_NAME: Final = "image"
OUTPUT_NAME: Final = "probabilities"


@dataclass(frozen=True)
class About:
    """What a file says of itself, where its format has a place for it."""

    name: str
    version: str
    description: str = ""
    author: str = ""
    license: str = ""


@dataclass(frozen=True)
class CompiledFile:
    """One file for one runtime. ``data`` is the same bytes whenever and wherever it is made.

    ``requires`` is read from the finished file; ``checks`` are ``{"name", "passed", "detail"}``.
    """

    runtime: str
    precision: str
    filename: str
    media_type: str
    data: bytes
    requires: dict[str, Any]
    checks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Return the sentences of the checks that failed."""
        return [check["detail"] for check in self.checks if not check["passed"]]


def check(name: str, *, passed: bool, detail: str) -> dict[str, Any]:
    """Return one line of a list of checks."""
    return {"name": name, "passed": bool(passed), "detail": detail}

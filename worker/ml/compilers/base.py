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
    ("tflite", "dynamic_int8"),
    ("tflite", "int16x8"),
    ("tflite", "edgetpu"),
    ("tflite", "pruned50"),
    ("tflite", "clustered16"),
    ("tflite", "filter_pruned50"),
    ("coreml", "float32"),
    ("coreml", "linear8"),
    ("coreml", "palette6"),
    ("coreml", "palette4"),
    ("coreml", "palette2"),
    ("coreml", "palette1"),
    ("coreml", "pruned50"),
    ("coreml", "pruned75"),
    ("coreml", "joint"),
    ("coreml", "filter_pruned50"),
    ("coreml", "neuralnetwork"),
)
"""(runtime, precision), in the order in which they are made."""

USUAL: Final = VARIANTS[:5]
"""What is compiled where nobody asks for anything else."""

COREML_TARGETS: Final = ("iOS15", "iOS16", "iOS17", "iOS18")
"""Oldest systems that a package can be made for; what it needs in the end, its file says."""

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
    network: Any = field(default=None, compare=False, repr=False)
    """The Keras network that was compiled where it is not the one given: compressed weights."""

    @property
    def failures(self) -> list[str]:
        """Return the sentences of the checks that failed."""
        return [check["detail"] for check in self.checks if not check["passed"]]


def check(name: str, *, passed: bool, detail: str) -> dict[str, Any]:
    """Return one line of a list of checks."""
    return {"name": name, "passed": bool(passed), "detail": detail}

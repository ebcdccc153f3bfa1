"""What is done to a network's weights before it is compiled, by the kind of file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Recipe:
    """How weights are changed. What is nought is left out; several go together.

    ``sparsity`` is the share of weights set to nought, ``filters`` the share of inner channels
    cut out, ``palette`` how many different values a kernel keeps, ``linear_bits`` the width of
    its integers. With ``is_tuned`` the network is trained on after it, as far as there are photos.
    """

    sparsity: float = 0.0
    filters: float = 0.0
    palette: int = 0
    linear_bits: int = 0
    is_tuned: bool = True


RECIPES: Final[Mapping[tuple[str, str], Recipe]] = {
    ("tflite", "pruned50"): Recipe(sparsity=0.5),
    ("tflite", "clustered16"): Recipe(palette=16),
    ("tflite", "filter_pruned50"): Recipe(filters=0.5),
    ("coreml", "linear8"): Recipe(linear_bits=8, is_tuned=False),
    ("coreml", "palette6"): Recipe(palette=64, is_tuned=False),
    ("coreml", "palette4"): Recipe(palette=16),
    ("coreml", "palette2"): Recipe(palette=4),
    ("coreml", "palette1"): Recipe(palette=2),
    ("coreml", "pruned50"): Recipe(sparsity=0.5),
    ("coreml", "pruned75"): Recipe(sparsity=0.75),
    ("coreml", "joint"): Recipe(sparsity=0.5, palette=15),
    ("coreml", "filter_pruned50"): Recipe(filters=0.5),
}
"""By (runtime, precision); kinds that are not here take the network as it is."""

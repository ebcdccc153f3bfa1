"""What a network is to the rest of the program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Architecture:
    """A network without its last layer: photos in, features out.

    ``build(input_size)`` returns a Keras model from float32 RGB (batch, size, size, 3), 0..255,
    to features (batch, ``feature_size``): rescaling is inside, so that every file compiled from
    it takes the same pixels. ``load(model, path)`` fills it with pretrained weights.
    """

    name: str
    input_size: int
    feature_size: int
    pretrained: bool
    build: Callable[[int], keras.Model]
    load: Callable[[keras.Model, Path], None] | None = None
    resizable: bool = False

    def at(self, input_size: int) -> Architecture:
        """Return the same network for photos of ``input_size`` pixels a side."""
        if not self.resizable and input_size != self.input_size:
            message = f"{self.name} takes photos of {self.input_size} px, not {input_size} px"
            raise ValueError(message)
        return dataclasses.replace(self, input_size=input_size)

"""What a network is to the rest of the program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class KerasFile:
    """A weight file that Keras downloads: its name, where Keras keeps the address, its MD5.

    ``module`` is one of ``keras.src.applications``, ``address`` the name in it of the address:
    of the file itself, or of the folder, which then ends in a slash. ``md5`` is what that module
    checks, empty where Keras publishes none.
    """

    name: str
    module: str
    address: str
    md5: str = ""


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
    """Whether weights are published that the program knows; else it is trained from nothing."""
    build: Callable[[int], keras.Model]
    build_published: Callable[[], keras.Model]
    """The network with the top and the input size it was published with, untrained."""
    parameters: int
    """Numbers in the published network, batch normalisation's statistics included."""
    multiply_adds: int
    """Of convolutions and dense layers of the published network, for one photo."""
    published: str
    """Where it is described, and with which top the figures above count it."""
    weights_source: str
    """One sentence."""
    load: Callable[[keras.Model, Path], None] | None = None
    keras_file: KerasFile | None = None
    weight_files: Mapping[str, str] = field(default_factory=dict)
    """Names of further weight files that are known, and their SHA-256."""
    lender: str = ""
    """Another size of the same network, whose weights serve where its own are not at hand."""
    resizable: bool = False
    smallest_px: int = 1
    """The least ``input_size`` that leaves the last layers something to look at."""
    runtimes: tuple[str, ...] = ("tflite", "coreml")
    """Compilers that take it, by trial: ``benchmarks/architectures.py``."""
    depths: tuple[str, ...] = ()
    """Layers of the built network, from low to high, whose averaged activations can be cached
    as features; the top, "features", is not among them."""

    def at(self, input_size: int) -> Architecture:
        """Return the same network for photos of ``input_size`` pixels a side."""
        if not self.resizable and input_size != self.input_size:
            message = f"{self.name} takes photos of {self.input_size} px, not {input_size} px"
            raise ValueError(message)
        if input_size < self.smallest_px:
            message = f"{self.name} takes photos from {self.smallest_px} px on, not {input_size} px"
            raise ValueError(message)
        return dataclasses.replace(self, input_size=input_size)

"""What a version can be compiled into, and what each kind of file is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Kind:
    """One entry of the menu; ``is_trained`` says that making it trains the network on."""

    purpose: str
    is_trained: bool = False


MENU: Final[Mapping[str, Kind]] = {
    "tflite:float32": Kind("exact; the reference on any device, and the largest file"),
    "tflite:float16": Kind("half the size at the same accuracy; what most phones should get"),
    "tflite:int8": Kind(
        "a quarter of the size and fast on CPUs; the first layers stay in float32"
    ),
    "coreml:float16": Kind("iOS 15 and later; half the size at the same accuracy"),
    "coreml:palette8": Kind("iOS 16 and later; 256 values for each layer's weights"),
    "tflite:dynamic_int8": Kind(
        "integer weights without calibration photos; activations stay in floats"
    ),
    "tflite:int16x8": Kind(
        "integers of 16 bits between the layers: accurate on accelerators that have them, far"
        " slower on a CPU"
    ),
    "tflite:edgetpu": Kind(
        "integers throughout, bytes in and out: input of the compiler for Edge TPUs"
    ),
    "tflite:pruned50": Kind(
        "half of the weights are nought, in float16; smaller only where it travels or lies"
        " compressed", is_trained=True,
    ),
    "tflite:clustered16": Kind(
        "16 values for each layer's weights, in float16; much smaller only where it travels or"
        " lies compressed", is_trained=True,
    ),
    "tflite:filter_pruned50": Kind(
        "half of the inner channels are gone: a smaller and faster network on every device, at"
        " a price in accuracy", is_trained=True,
    ),
    "coreml:float32": Kind("exact; to compare others with"),
    "coreml:linear8": Kind("iOS 16 and later; integers of 8 bits, made in seconds"),
    "coreml:palette6": Kind("iOS 16 and later; 64 values for each layer's weights"),
    "coreml:palette4": Kind(
        "iOS 16 and later; 16 values, trained on; a quarter of float16's size", is_trained=True
    ),
    "coreml:palette2": Kind("iOS 16 and later; 4 values; for large networks", is_trained=True),
    "coreml:palette1": Kind(
        "iOS 16 and later; 2 values; ruins small networks, and is then not shipped",
        is_trained=True,
    ),
    "coreml:pruned50": Kind(
        "iOS 16 and later; half of the weights are nought and take no room", is_trained=True
    ),
    "coreml:pruned75": Kind(
        "iOS 16 and later; three quarters of the weights are nought", is_trained=True
    ),
    "coreml:joint": Kind(
        "iOS 18 and later; half of the weights are nought, 15 values for the rest",
        is_trained=True,
    ),
    "coreml:filter_pruned50": Kind(
        "half of the inner channels are gone: a smaller and faster network, at a price in"
        " accuracy", is_trained=True,
    ),
    "coreml:neuralnetwork": Kind("the format before ML Programs, for iOS 13 and 14"),
}  # fmt: skip
"""By ``runtime:precision``, the usual ones first."""

USUAL: Final = tuple(MENU)[:5]
"""What is compiled where the policy says nothing."""

COREML_TARGETS: Final = ("iOS15", "iOS16", "iOS17", "iOS18")
"""Oldest systems that packages can be made for."""

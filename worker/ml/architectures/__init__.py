"""The networks that can be trained: one file each, and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from worker.ml.architectures import mobilenet_v2, small_cnn
from worker.ml.architectures.base import Architecture
from worker.ml.errors import ArchitectureUnknown

__all__ = ["ARCHITECTURES", "Architecture", "find_architecture"]

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    architecture.name: architecture
    for architecture in (
        *mobilenet_v2.ARCHITECTURES,
        *small_cnn.ARCHITECTURES,
    )
}


def find_architecture(name: str) -> Architecture:
    """Return the architecture of that name; raises :class:`ArchitectureUnknown`."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        message = f"there is no network '{name}'; there are {', '.join(ARCHITECTURES)}"
        raise ArchitectureUnknown(message) from None

"""The networks that can be trained: one file each, and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from worker.ml.architectures import (
    cifar,
    darknet,
    densenet,
    efficientnet,
    efficientnet_edgetpu,
    efficientnet_v2,
    inception_v3,
    mnasnet,
    mnist,
    mobilenet,
    mobilenet_v2,
    mobilenet_v3,
    nasnet,
    resnet,
    se_resnet,
    shufflenet,
    small_cnn,
    squeezenet,
    vgg,
)
from worker.ml.architectures.base import Architecture
from worker.ml.errors import ArchitectureUnknown

__all__ = ["ARCHITECTURES", "Architecture", "find_architecture"]

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    architecture.name: architecture
    for architecture in (
        *cifar.ARCHITECTURES,
        *darknet.ARCHITECTURES,
        *densenet.ARCHITECTURES,
        *efficientnet.ARCHITECTURES,
        *efficientnet_edgetpu.ARCHITECTURES,
        *efficientnet_v2.ARCHITECTURES,
        *inception_v3.ARCHITECTURES,
        *mnasnet.ARCHITECTURES,
        *mnist.ARCHITECTURES,
        *mobilenet.ARCHITECTURES,
        *mobilenet_v2.ARCHITECTURES,
        *mobilenet_v3.ARCHITECTURES,
        *nasnet.ARCHITECTURES,
        *resnet.ARCHITECTURES,
        *se_resnet.ARCHITECTURES,
        *shufflenet.ARCHITECTURES,
        *small_cnn.ARCHITECTURES,
        *squeezenet.ARCHITECTURES,
        *vgg.ARCHITECTURES,
    )
}


def find_architecture(name: str) -> Architecture:
    """Return the architecture of that name; raises :class:`ArchitectureUnknown`."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        message = f"there is no network '{name}'; there are {', '.join(ARCHITECTURES)}"
        raise ArchitectureUnknown(message) from None

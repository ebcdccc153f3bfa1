"""The networks that a policy may name; ``worker.ml.architectures`` holds the same list.

The server imports nothing of the worker, so the names stand here a second time; a test compares
the two.
"""

from __future__ import annotations

from itertools import product

AUTO = "auto"
"""The best network whose weights are at hand."""

_MOBILENET = product(("1.0", "0.75", "0.5", "0.25"), (224, 192, 160, 128))
_MOBILENET_V2 = (
    ("1.4", 224),
    ("1.3", 224),
    *product(("1.0", "0.75", "0.5", "0.35"), (224, 192, 160, 128, 96)),
)

ARCHITECTURES = (
    *(f"mobilenet_v2_{width}_{side}" for width, side in _MOBILENET_V2),
    *(f"mobilenet_{width}_{side}" for width, side in _MOBILENET),
    *(f"mobilenet_v3_{kind}_{width}_224" for kind in ("small", "large") for width in (0.75, 1.0)),
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_v2_b0",
    "efficientnet_edgetpu_s",
    "mnasnet_a1",
    "nasnet_mobile",
    "shufflenet_g3",
    "squeezenet_1.1",
    "darknet_reference",
    "densenet121",
    "densenet169",
    "inception_v3",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet50_v2",
    "resnet101_v2",
    "resnet152_v2",
    "se_resnet50",
    "vgg16",
    "vgg19",
    "cifar_cnn",
    "mnist_cnn",
    "mnist_mlp",
    "small_cnn",
)

"""What is published of each network: parameters and multiply-adds, and who says so.

``trained`` counts leave out batch normalisation's running means and variances, ``all`` has them;
``rounded`` figures are held to within ``parameters_within`` of either. Sources:

* keras: the exact counts of the table of applications in Keras's documentation (2019 to 2021);
* slim: the tables of mobilenet_v1.md and mobilenet/README.md in TensorFlow's models;
* torchvision: the exact counts in its documentation of models;
* imgclsmob: O. Semery's tables of exact counts;
* example: what Keras's own example prints;
* paper: the paper that the architecture names, rounded as it rounds.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple


class Published(NamedTuple):
    """One row; multiply-adds are None where nobody publishes them."""

    parameters: int
    counts: Literal["all", "trained", "rounded"]
    source: str
    multiply_adds: float | None
    cost_source: str = ""
    parameters_within: float = 0.0
    multiply_adds_within: float = 0.02


_V2_PARAMETERS: Final = {"1.4": 6.06, "1.3": 5.34, "1.0": 3.47, "0.75": 2.61, "0.5": 1.95}
_V2_PARAMETERS_ALL: Final = {**_V2_PARAMETERS, "0.35": 1.66}
_V2_COST: Final = {
    "1.4": {224: 582},
    "1.3": {224: 509},
    "1.0": {224: 300, 192: 221, 160: 154, 128: 99, 96: 56},
    "0.75": {224: 209, 192: 153, 160: 107, 128: 69, 96: 39},
    "0.5": {224: 97, 192: 71, 160: 50, 128: 32, 96: 18},
    "0.35": {224: 59, 192: 43, 160: 30, 128: 20, 96: 11},
}
_V1_PARAMETERS: Final = {"1.0": 4.24, "0.75": 2.59, "0.5": 1.34, "0.25": 0.47}
_V1_COST: Final = {
    "1.0": {224: 569, 192: 418, 160: 291, 128: 186},
    "0.75": {224: 317, 192: 233, 160: 162, 128: 104},
    "0.5": {224: 150, 192: 110, 160: 77, 128: 49},
    "0.25": {224: 41, 192: 34, 160: 21, 128: 14},
}
_MILLION: Final = 1e6

PUBLISHED: Final = {
    **{
        f"mobilenet_v2_{width}_{side}": Published(
            int(_V2_PARAMETERS_ALL[width] * _MILLION),
            "rounded",
            "slim",
            cost * _MILLION,
            "slim",
            # The table counts convolutions and biases, and rounds to 10,000.
            parameters_within=0.015,
            # Figures are cut to a whole million.
            multiply_adds_within=0.02 + 1 / cost,
        )
        for width, costs in _V2_COST.items()
        for side, cost in costs.items()
    },
    **{
        f"mobilenet_{width}_{side}": Published(
            int(_V1_PARAMETERS[width] * _MILLION),
            "rounded",
            "slim",
            # The table has 34 for width .25 at 192 px, where 30 fits the rows around it.
            None if (width, side) == ("0.25", 192) else cost * _MILLION,
            "slim",
            parameters_within=0.015,
            multiply_adds_within=0.03 + 1 / cost,
        )
        for width, costs in _V1_COST.items()
        for side, cost in costs.items()
    },
    "mobilenet_v2_1.0_224": Published(3_538_984, "all", "keras", 300e6, "paper"),
    "mobilenet_1.0_224": Published(4_253_864, "all", "keras", 569e6, "paper"),
    "mobilenet_v3_large_1.0_224": Published(5.4e6, "rounded", "slim", 217e6, "slim", 0.02, 0.03),
    "mobilenet_v3_large_0.75_224": Published(4.0e6, "rounded", "slim", 155e6, "slim", 0.02, 0.03),
    # The table says 2.9 and 2.4 million; the paper 2.5 and 2.0, which is what Keras builds.
    "mobilenet_v3_small_1.0_224": Published(2.5e6, "rounded", "paper", 56e6, "paper", 0.025, 0.03),
    "mobilenet_v3_small_0.75_224": Published(2.0e6, "rounded", "paper", 44e6, "paper", 0.03, 0.03),
    "efficientnet_b0": Published(5_330_571, "all", "keras", 0.39e9, "paper"),
    "efficientnet_b1": Published(7_856_239, "all", "keras", 0.70e9, "paper", 0, 0.03),
    "efficientnet_b2": Published(9.2e6, "rounded", "paper", 1.0e9, "paper", 0.01, 0.05),
    "efficientnet_b3": Published(12e6, "rounded", "paper", 1.8e9, "paper", 0.03, 0.05),
    "efficientnet_v2_b0": Published(7.2e6, "rounded", "keras", 0.7e9, "paper", 0.01, 0.05),
    "efficientnet_edgetpu_s": Published(5_438_392, "trained", "imgclsmob", 2378.12e6, "imgclsmob"),
    "mnasnet_a1": Published(3_887_038, "trained", "imgclsmob", 312e6, "paper"),
    "nasnet_mobile": Published(5_326_716, "all", "keras", 564e6, "paper", 0, 0.03),
    "shufflenet_g3": Published(1_865_728, "trained", "imgclsmob", 137e6, "paper"),
    "squeezenet_1.1": Published(1_235_496, "all", "torchvision", 0.35e9, "torchvision"),
    # 0.81 billion operations, a multiplication and an addition each one.
    "darknet_reference": Published(7_319_416, "trained", "imgclsmob", 0.405e9, "author's page"),
    "densenet121": Published(8_062_504, "all", "keras", 2852.39e6, "imgclsmob"),
    "densenet169": Published(14_307_880, "all", "keras", 3381.48e6, "imgclsmob"),
    # The paper says 5 billion, of a network without Keras's later changes.
    "inception_v3": Published(23_851_784, "all", "keras", 5.71e9, "torchvision"),
    "resnet34": Published(21_797_672, "trained", "torchvision", 3.6e9, "paper"),
    "resnet50": Published(25_636_712, "all", "keras", 3.8e9, "paper", 0, 0.03),
    "resnet101": Published(44_707_176, "all", "keras", 7.6e9, "paper", 0, 0.03),
    "resnet152": Published(60_419_944, "all", "keras", 11.3e9, "paper", 0, 0.03),
    # Keras halves the picture at the end of a stage, not at its beginning as elsewhere.
    "resnet50_v2": Published(25_613_800, "all", "keras", None),
    "resnet101_v2": Published(44_675_560, "all", "keras", None),
    "resnet152_v2": Published(60_380_648, "all", "keras", None),
    "se_resnet50": Published(28_088_024, "trained", "imgclsmob", 3.87e9, "paper"),
    "vgg16": Published(138_357_544, "all", "keras", 15.3e9, "MobileNet's paper"),
    "vgg19": Published(143_667_240, "all", "keras", 19.6e9, "ResNet's paper"),
    "cifar_cnn": Published(1_250_858, "all", "example", None),
    "mnist_cnn": Published(1_199_882, "all", "example", None),
    "mnist_mlp": Published(669_706, "all", "example", None),
}

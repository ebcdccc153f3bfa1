"""A model's policies: what may be set, what it means, and what holds where nothing is set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from server.domain.architectures import ARCHITECTURES, AUTO
from server.domain.errors import InvalidInput
from server.domain.variants import COREML_TARGETS, MENU, USUAL

VARIANTS = tuple(MENU)

STRATEGIES = ("auto", "linear", "lower", "fine_tune", "scratch")
AUGMENTATIONS = ("none", "hand_held", "selfie", "fixed_camera", "scanned")

_LAYER = re.compile(r"\w{1,60}").fullmatch
_MOST_SET_ASIDE = 0.8
_MOST_VIEWS = 16
_MOST_COMPRESSION_EPOCHS = 20
_MAX_COUNT = 1_000_000


@dataclass(frozen=True, kw_only=True)
class TrainingPolicy:
    """How a model trains, what it ships and when a candidate replaces the incumbent.

    Shares of photos are fractions of one; ``margin`` and ``variant_tolerance`` are fractions of
    test accuracy (.02 is two points). ``gate_on`` says which photos the gate judges on, and
    ``variant_agreement`` on which share of them a compiled file must answer as the network does.
    ``depth`` is where the network ends with the strategy ``linear``: "features", its top, or the
    name of a layer that it may be cut at. ``coreml_target`` is the oldest system that packages are
    made for; a kind that needs a newer one says so itself. Pruned and clustered kinds are trained
    on for ``compression_epochs``.
    """

    architecture: str = AUTO
    fit: Literal["stretch", "center_crop"] = "stretch"
    strategy: str = "auto"
    depth: str = "features"
    lower_min_gain: float = 0.01
    fine_tune_min_photos_per_label: int = 50
    fine_tune_min_gain: float = 0.01
    fine_tune_gain_per_megabyte: float = 0.01
    augmentation: str = "none"
    views: int = 2
    seed: int = 1
    validation_share: float = 0.15
    test_share: float = 0.15
    min_photos_per_label: int = 5
    max_contributor_share: float = 0.05
    min_test_photos: int = 1
    margin: float = 0.02
    gate_on: Literal["test", "golden"] = "test"
    variant_tolerance: float = 0.03
    variant_agreement: float = 0.9
    variants: tuple[str, ...] = USUAL
    coreml_target: str = COREML_TARGETS[0]
    compression_epochs: int = 3
    auto_release: bool = True
    auto_accept: str = "none"
    min_side_px: int = 64
    refuse_blurred: bool = True
    calibration_photos: int = 100

    @classmethod
    def read(cls, values: Mapping[str, object]) -> TrainingPolicy:
        """Return the policy that ``values`` describe; unknown or ill-typed members are refused.

        Raises:
            InvalidInput: ``invalid_policy``, naming the member.

        """
        known = {field.name: field for field in fields(cls)}
        checked: dict[str, object] = {}
        for name, value in values.items():
            if name not in known:
                message = f"The policy has no member {name!r}; it takes {', '.join(sorted(known))}."
                raise InvalidInput(message, code="invalid_policy")
            checked[name] = _typed(name, value, getattr(cls, name))
        policy = cls(**checked)  # type: ignore[arg-type]
        policy._check()
        return policy

    def _check(self) -> None:
        rules = (
            (
                0 < self.test_share < 1 and 0 < self.validation_share < 1,
                "test_share and validation_share lie between 0 and 1",
            ),
            (
                self.test_share + self.validation_share <= _MOST_SET_ASIDE,
                "validation_share and test_share leave at least a fifth for training",
            ),
            (0 < self.max_contributor_share <= 1, "max_contributor_share lies between 0 and 1"),
            (
                0 <= self.margin <= 1 and 0 <= self.variant_tolerance <= 1,
                "margin and variant_tolerance lie between 0 and 1",
            ),
            (0 <= self.variant_agreement <= 1, "variant_agreement lies between 0 and 1"),
            (self.gate_on in {"test", "golden"}, "gate_on is test or golden"),
            (self.min_photos_per_label > 1, "min_photos_per_label is at least 2"),
            (
                bool(self.variants) and set(self.variants) <= set(VARIANTS),
                f"variants are some of {', '.join(VARIANTS)}",
            ),
            (
                self.coreml_target in COREML_TARGETS,
                f"coreml_target is one of {', '.join(COREML_TARGETS)}",
            ),
            (
                0 <= self.compression_epochs <= _MOST_COMPRESSION_EPOCHS,
                f"compression_epochs lies between 0 and {_MOST_COMPRESSION_EPOCHS}",
            ),
            (-(2**31) <= self.seed < 2**31, "seed is a whole number of 32 bits"),
            (
                all(
                    0 <= count <= _MAX_COUNT
                    for count in (
                        self.min_photos_per_label,
                        self.min_test_photos,
                        self.min_side_px,
                        self.calibration_photos,
                        self.fine_tune_min_photos_per_label,
                    )
                ),
                "counts lie between 0 and a million",
            ),
            (self.min_test_photos >= 1, "min_test_photos is at least 1"),
            (self.auto_accept in {"none", "trusted"}, "auto_accept is none or trusted"),
            (
                self.architecture in {AUTO, *ARCHITECTURES},
                f"architecture is {AUTO} or one of {', '.join(ARCHITECTURES)}",
            ),
            (self.fit in {"stretch", "center_crop"}, "fit is stretch or center_crop"),
            (self.strategy in STRATEGIES, f"strategy is one of {', '.join(STRATEGIES)}"),
            (bool(_LAYER(self.depth)), "depth is features or the name of a layer"),
            (
                self.depth == "features" or self.strategy == "linear",
                "depth is chosen by measure unless strategy is linear",
            ),
            (
                self.augmentation in AUGMENTATIONS,
                f"augmentation is one of {', '.join(AUGMENTATIONS)}",
            ),
            (0 <= self.views <= _MOST_VIEWS, f"views lies between 0 and {_MOST_VIEWS}"),
            (
                0 <= self.lower_min_gain <= 1
                and 0 <= self.fine_tune_min_gain <= 1
                and 0 <= self.fine_tune_gain_per_megabyte <= 1,
                "gains lie between 0 and 1",
            ),
        )
        for holds, rule in rules:
            if not holds:
                message = f"The policy does not hold together: {rule}."
                raise InvalidInput(message, code="invalid_policy")


def _typed(name: str, value: object, default: object) -> object:
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(str(item) for item in value)
    if (
        isinstance(default, float)
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    ):
        return float(value)
    if type(value) is type(default):
        return value
    message = f"The policy's {name} takes a value like {default!r}, not {value!r}."
    raise InvalidInput(message, code="invalid_policy")

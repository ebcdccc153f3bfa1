"""A Core ML file as something that can be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.coreml import files
from worker.ml.coreml.arithmetic import Array
from worker.ml.coreml.errors import OperatorUnknown
from worker.ml.coreml.networks import Network
from worker.ml.coreml.programs import Program
from worker.ml.errors import MLError, ModelUnusable

# ITU-R BT.601, which is what a picture's conversion to grey uses.
_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Feature:
    """An input: a picture of a colour and size, or an array."""

    name: str
    shape: tuple[int, ...]
    """(1, channels, height, width) of a picture, else what the file says."""
    colour: str = ""
    """``RGB``, ``BGR`` or ``GRAYSCALE`` of a picture, else empty."""


class CoreMLModel:
    """A ``.mlpackage`` (zipped or a folder) or ``.mlmodel``, run by Apple's published definitions.

    That is no proof of what a phone will answer: Core ML orders sums as it likes and may use
    float16 where the file says float32. ``unknown_operators`` names what is not known here; a
    model that has any can be looked at, and not run.

    Raises :class:`~worker.ml.compilers.mlpackage.PackageInvalid` for a file that is no model.
    """

    def __init__(self, source: Path | bytes) -> None:
        self.decoded: Any = None
        """The MIL program as Core ML Tools read it, weights and all; None of a ``.mlmodel``."""
        with files.opened(source) as (specification, weights_folder):
            self.specification = specification
            self.inputs = [_feature(one) for one in specification.description.input]
            if specification.WhichOneof("Type") == "mlProgram":
                self.decoded = files.decode(specification, weights_folder)
        self._body = Network(specification) if self.decoded is None else Program(self.decoded)
        self.unknown_operators: tuple[str, ...] = self._body.unknown
        self.labels: list[str] | None = self._body.classes
        self.stored: str = self._body.stored
        """The coarsest thing that numbers are kept in: ``palette``, ``float16``, ``float32``."""

    def predict(
        self, images: Sequence[npt.NDArray[Any]], *, rounds: bool = True
    ) -> npt.NDArray[np.float32]:
        """Return the outputs (photos, outputs) for pictures of uint8 RGB (height, width, 3).

        Of a classifier the probabilities in the order of its labels, else its only output, made
        flat. Without ``rounds`` what the file keeps as float16 is kept as float32, which tells
        how much of an answer hangs on rounding.

        Raises :class:`OperatorUnknown` and :class:`ModelUnusable`.
        """
        if len(self.inputs) != 1:
            raise ModelUnusable(f"the model takes {len(self.inputs)} inputs, not a picture")
        taken = self.inputs[0]
        rows = [
            self._answer(self.run({taken.name: _fitted(taken, image)}, rounds=rounds))
            for image in images
        ]
        return np.stack(rows) if rows else np.zeros((0, len(self.labels or ())), np.float32)

    def run(
        self, inputs: Mapping[str, npt.NDArray[Any]], *, rounds: bool = True
    ) -> dict[str, Array]:
        """Return every output that is an array, by name, for one set of inputs.

        A picture is uint8 (height, width, channels), RGB; an array is as the file says. Of a
        classifier the probabilities stand under the name that the file gives them.
        Raises :class:`OperatorUnknown` and :class:`ModelUnusable`.
        """
        if self.unknown_operators:
            raise OperatorUnknown(*self.unknown_operators)
        given = {one.name: _given(one, inputs) for one in self.inputs}
        try:
            with np.errstate(all="ignore"):
                found = self._body.run(given, rounds=rounds)
        except MLError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise ModelUnusable(f"the Core ML file does not run: {error}") from error
        probabilities = self._body.probabilities
        if probabilities is not None and probabilities in found:
            name = self.specification.description.predictedProbabilitiesName
            found[name] = found.pop(probabilities)
        return found

    def _answer(self, found: dict[str, Array]) -> npt.NDArray[np.float32]:
        name = self.specification.description.predictedProbabilitiesName
        if name not in found and len(found) != 1:
            raise ModelUnusable(f"the model answers with {sorted(found)}, not one row a picture")
        answer = found[name] if name in found else next(iter(found.values()))
        return answer.reshape(-1).astype(np.float32)


def _feature(described: Any) -> Feature:
    kind = described.type.WhichOneof("Type")
    if kind == "imageType":
        image = described.type.imageType
        colour = image.ColorSpace.Name(image.colorSpace).removesuffix("_FLOAT16")
        channels = 1 if colour == "GRAYSCALE" else 3
        return Feature(described.name, (1, channels, image.height, image.width), colour)
    shape = described.type.multiArrayType.shape if kind == "multiArrayType" else ()
    return Feature(described.name, tuple(int(side) for side in shape))


def _fitted(feature: Feature, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the picture as the input wants it: an array may have its channels first."""
    if feature.colour or image.ndim != 3:  # noqa: PLR2004 - height, width, channels
        return image
    batch = image[np.newaxis]
    first = batch.transpose(0, 3, 1, 2)
    return first if feature.shape == first.shape != batch.shape else batch


def _given(feature: Feature, inputs: Mapping[str, npt.NDArray[Any]]) -> Array:
    if feature.name not in inputs:
        raise ModelUnusable(f"the model wants {feature.name!r}, and got {sorted(inputs)}")
    values = np.asarray(inputs[feature.name])
    if not feature.colour:
        return values if values.dtype.kind in "iub" else values.astype(np.float32)
    picture = values.astype(np.float32)
    if picture.ndim == 2:  # noqa: PLR2004 - grey, without an axis for its only channel
        picture = picture[..., np.newaxis]
    if feature.colour == "GRAYSCALE" and picture.shape[-1] == len(_LUMA):
        picture = np.round(picture @ _LUMA)[..., np.newaxis]
    if feature.colour == "BGR":
        picture = picture[..., ::-1]
    planes = picture.transpose(2, 0, 1)[np.newaxis]
    if planes.shape != feature.shape:
        wanted = "x".join(str(side) for side in (*feature.shape[2:], feature.shape[1]))
        raise ModelUnusable(f"the model takes pictures of {wanted}, not of {values.shape}")
    return np.ascontiguousarray(planes)

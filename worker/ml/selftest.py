"""Golden vectors: a few pictures with a file's own answers, which devices compare before use.

The pictures are made of stripes, rings, blocks and gradients, not of photos: nobody's picture
travels to devices. Of many, those are taken to which this very file answers clearly, with
different labels, and differently where channels are swapped or pixels scaled another way. The
format, and what devices do with it, is in ``docs/selftest-format.md``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from worker.ml.errors import ModelUnusable
from worker.ml.evaluation import predict_coreml, predict_tflite
from worker.ml.preprocessing import Pixels, Preprocessing

FORMAT: Final = 1
MAX_LATENCY_MS: Final = 5000

_SIDE_PX: Final = 16
_CANDIDATES: Final = 96
# NumPy needs its time.
_SLOW_CANDIDATES: Final = 48
_PICTURES: Final = 4
_PER_LABEL: Final = 6
_SHORTLIST: Final = 24
_MAX_BYTES: Final = 6000
# Of the spread of the answers: arithmetic in float16 stays below, faults go far above.
_LEAST_TOLERANCE: Final = 0.05
_KERNEL_ALLOWANCE: Final = 4
# Answers within the tolerance cannot exchange first and second at twice the tolerance.
_LEAST_MARGIN: Final = 3
_DIGITS: Final = 2

Answers = npt.NDArray[np.float32]
"""(pictures, outputs)"""


@dataclass(frozen=True)
class SelfTest:
    """What a manifest carries (``member``), and what people are told of it."""

    member: dict[str, Any]
    labels: tuple[int, ...]
    tolerance: float

    @property
    def sentence(self) -> str:
        """Say in short what is tested."""
        return (
            f"{len(self.labels)} pictures with {len(set(self.labels))} different answers,"
            f" tolerance {self.tolerance:g}"
        )


def make_selftest(
    content: bytes, preprocessing: Preprocessing, *, runtime: str = "tflite"
) -> SelfTest:
    """Return the self-test of an image classifier, the same one for the same file.

    A Core ML file's answers are calculated by the definitions of its operators, not by Core ML;
    see ``docs/coreml-on-linux.md``. Raises :class:`ModelUnusable`: ``selftest_impossible`` where
    no picture gets a clear answer, ``operator_unknown`` where the file cannot be run here.
    """
    predict = _coreml(content) if runtime == "coreml" else _tflite(content)
    candidates = _SLOW_CANDIDATES if runtime == "coreml" else _CANDIDATES
    pictures = [draw_picture(number) for number in range(candidates)]
    enlarged = [enlarge(picture, preprocessing) for picture in pictures]
    answers = predict(enlarged, preprocessing)
    margins = _margins(answers)
    listed = _shortlist(answers, margins)[: candidates // 4]
    images = [enlarged[index] for index in listed]
    needed = _needed_tolerances(predict, images, answers[listed], preprocessing)
    # Three digits, rounded up: what half the pictures need has to fit in.
    tolerance = float(f"{np.median(needed) * 1.005:.3g}")
    clear = [
        index
        for index, need in zip(listed, needed, strict=True)
        if need <= tolerance and margins[index] >= _LEAST_MARGIN * tolerance
    ]
    if not clear or tolerance == 0:
        message = "no picture of the self-test gets a clear answer from this file"
        raise ModelUnusable(message, code="selftest_impossible")
    notice = dict(zip(listed, _sensitivity(predict, images, preprocessing), strict=True))
    chosen = _choose(sorted(clear, key=lambda index: -notice[index]), answers)
    text, kept = _write(chosen, pictures, answers, tolerance)
    member = {
        "format": FORMAT,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "data": text,
    }
    return SelfTest(member, tuple(int(answers[index].argmax()) for index in kept), tolerance)


def enlarge(picture: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Return the picture in the network's size by the nearest neighbour, in whole numbers."""
    height, width = picture.shape[:2]
    rows = np.arange(preprocessing.height) * height // preprocessing.height
    columns = np.arange(preprocessing.width) * width // preprocessing.width
    return picture[np.ix_(rows, columns)]


def draw_picture(number: int) -> Pixels:
    """Return picture ``number``: 16 x 16 pixels of stripes, rings, blocks or a gradient."""
    generator = np.random.default_rng(number)
    return (_stripes, _rings, _blocks, _gradient)[number % 4](generator)


def _grid() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    down, across = np.mgrid[0:_SIDE_PX, 0:_SIDE_PX]
    return down, across


def _two_colours(generator: np.random.Generator, mask: npt.NDArray[np.bool_]) -> Pixels:
    first, second = generator.integers(0, 256, (2, 3), dtype=np.uint8)
    pixels: Pixels = np.where(mask[..., np.newaxis], first, second)
    return pixels


def _stripes(generator: np.random.Generator) -> Pixels:
    down, across = _grid()
    slope, period = generator.integers(-2, 3, 2), int(generator.integers(1, 5))
    place = slope[0] * down + slope[1] * across
    return _two_colours(generator, place // period % 2 == 0)


def _rings(generator: np.random.Generator) -> Pixels:
    down, across = _grid()
    centre, period = generator.integers(0, _SIDE_PX, 2), int(generator.integers(1, 6))
    distance = np.maximum(abs(down - centre[0]), abs(across - centre[1]))
    return _two_colours(generator, distance // period % 2 == 0)


def _blocks(generator: np.random.Generator) -> Pixels:
    count = int(generator.integers(2, 9))
    colours = generator.integers(0, 256, (count, count, 3), dtype=np.uint8)
    place = np.arange(_SIDE_PX) * count // _SIDE_PX
    return colours[np.ix_(place, place)]


def _gradient(generator: np.random.Generator) -> Pixels:
    down, across = _grid()
    ends = generator.integers(0, 256, (2, 3))
    share = (down + across * int(generator.integers(0, 2)))[..., np.newaxis]
    pixels: Pixels = (ends[0] + (ends[1] - ends[0]) * share // int(share.max())).astype(np.uint8)
    return pixels


def _margins(answers: Answers) -> npt.NDArray[np.float32]:
    """Return by how much each first answer leads."""
    if answers.shape[1] < 2:  # noqa: PLR2004
        message = "a file with one output has no first answer to compare"
        raise ModelUnusable(message, code="selftest_impossible")
    ordered = np.sort(answers, axis=1)
    margins: npt.NDArray[np.float32] = ordered[:, -1] - ordered[:, -2]
    return margins


def _shortlist(answers: Answers, margins: npt.NDArray[np.float32]) -> list[int]:
    """Return the clearest pictures, of each label a few."""
    taken: dict[int, int] = {}
    listed = []
    for index in np.argsort(-margins, kind="stable").tolist():
        label = int(answers[index].argmax())
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= _PER_LABEL:
            listed.append(index)
    return listed[:_SHORTLIST]


class _Predict(Protocol):
    """Returns a file's answers to pictures; ``otherwise``, by another way of calculating."""

    def __call__(
        self, images: Sequence[Pixels], preprocessing: Preprocessing, *, otherwise: bool = False
    ) -> Answers: ...


def _tflite(content: bytes) -> _Predict:
    """Run LiteRT's accelerated kernels; otherwise, its plain ones."""

    def predict(
        images: Sequence[Pixels], preprocessing: Preprocessing, *, otherwise: bool = False
    ) -> Answers:
        return predict_tflite(content, images, preprocessing, is_accelerated=not otherwise)[0]

    return predict


def _coreml(content: bytes) -> _Predict:
    """Calculate with float16 where the file has it; otherwise, with float32 throughout."""
    from worker.ml.coreml import CoreMLModel

    model = CoreMLModel(content)

    def predict(
        images: Sequence[Pixels], preprocessing: Preprocessing, *, otherwise: bool = False
    ) -> Answers:
        return predict_coreml(model, images, preprocessing, rounds=not otherwise)

    return predict


def _needed_tolerances(
    predict: _Predict, images: Sequence[Pixels], answers: Answers, preprocessing: Preprocessing
) -> npt.NDArray[np.float32]:
    """Return, per picture, how far a device may be off: several times what other kernels are."""
    others = predict(images, preprocessing, otherwise=True)
    least = _LEAST_TOLERANCE * (answers.max() - answers.min())
    differ = np.abs(others - answers).max(axis=1)
    needed: npt.NDArray[np.float32] = np.maximum(least, _KERNEL_ALLOWANCE * differ)
    return needed


def _sensitivity(
    predict: _Predict, images: Sequence[Pixels], preprocessing: Preprocessing
) -> list[float]:
    """Return, per picture, how much the fault moves the answers that moves them least."""
    right = predict(images, preprocessing)
    moved = []
    for wrong_images, wrong_preprocessing in _faults(images, preprocessing):
        try:
            wrong = predict(wrong_images, wrong_preprocessing)
        except ModelUnusable:
            # Not even a number: nobody can miss it.
            continue
        moved.append(np.abs(wrong - right).max(axis=1))
    return [float(least) for least in np.min(moved, axis=0)] if moved else [math.inf] * len(images)


def _faults(
    images: Sequence[Pixels], preprocessing: Preprocessing
) -> Iterator[tuple[Sequence[Pixels], Preprocessing]]:
    """Yield the usual mistakes: blue before red, and pixels scaled to 0..255, 0..1 and -1..1."""
    yield [image[..., ::-1] for image in images], preprocessing
    for mean, std in ((0.0, 1.0), (0.0, 255.0), (127.5, 127.5)):
        wrong = replace(preprocessing, mean=(mean,) * 3, std=(std,) * 3)
        if wrong != preprocessing:
            yield images, wrong


def _choose(ranked: Sequence[int], answers: Answers) -> list[int]:
    """Return the best of each label first, then the next best."""
    first: dict[int, int] = {}
    for index in ranked:
        first.setdefault(int(answers[index].argmax()), index)
    leaders = list(first.values())
    return [*leaders, *(index for index in ranked if index not in leaders)][:_PICTURES]


def _write(
    chosen: list[int], pictures: Sequence[Pixels], answers: Answers, tolerance: float
) -> tuple[str, list[int]]:
    """Return the text and the pictures in it: fewer of them for files with many labels."""
    decimals = _DIGITS - math.floor(math.log10(tolerance))
    for count in range(len(chosen), 0, -1):
        kept = chosen[:count]
        document = {
            "inputs": [_picture(pictures[index]) for index in kept],
            "outputs": [[_number(value, decimals) for value in answers[index]] for index in kept],
            "tolerance": tolerance,
            "max_latency_ms": MAX_LATENCY_MS,
        }
        text = json.dumps(document, separators=(",", ":"))
        if len(text) <= _MAX_BYTES:
            break
    return text, kept


def _picture(pixels: Pixels) -> dict[str, Any]:
    height, width = pixels.shape[:2]
    rgb = base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode()
    return {"width": width, "height": height, "rgb": rgb}


def _number(value: float, decimals: int) -> float:
    """Return the value as short as the tolerance allows."""
    rounded = round(float(value), decimals)
    return int(rounded) if rounded.is_integer() else rounded

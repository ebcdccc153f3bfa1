"""Pictures as the app will take them: each photo a few more times, a little different.

Limited to the use: a phone in a hand turns by some degrees, never upside down; a fixed camera
does not turn at all. Nothing is mirrored but what a front camera mirrors, since digits and
lettering would not survive it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from worker.ml.errors import MLError
from worker.ml.preprocessing import Pixels

AUGMENTATION_VERSION: Final = 1
"""Raise it when the same photo would give other views: cached views are then made anew."""

_REFERENCE_SIDE_PX: Final = 224
_LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_SHEET_VIEWS: Final = 5
_SHEET_GAP_PX: Final = 4


@dataclass(frozen=True)
class Augmentation:
    """The most that a view may differ from its photo; each view draws uniformly up to that.

    Lengths in pixels are for photos of 224 pixels a side and grow with the photo.
    """

    name: str
    rotation_deg: float = 0.0
    crop: float = 0.0
    """Share of each side that a crop may lose."""
    shift: float = 0.0
    """Share of the side by which a crop may leave the middle, beyond what it lost."""
    is_mirrored: bool = False
    """Half of the views are mirrored, as front cameras do."""
    blur_px: float = 0.0
    """Standard deviation of a blur: out of focus."""
    motion_px: float = 0.0
    """Length of a straight smear: the hand or the object moved."""
    light_ev: float = 0.0
    """Exposure up or down, in stops."""
    contrast: float = 0.0
    warmth: float = 0.0
    """Gain of red against blue, up or down: white balance."""
    saturation: float = 0.0

    @property
    def key(self) -> str:
        """Return what features of a view depend on besides photo, network and number."""
        return f"{self.name}-{AUGMENTATION_VERSION}"


NONE: Final = Augmentation("none")
PRESETS: Final[Mapping[str, Augmentation]] = {
    preset.name: preset
    for preset in (
        NONE,
        Augmentation(
            "hand_held",
            rotation_deg=15,
            crop=0.25,
            shift=0.06,
            blur_px=1.2,
            motion_px=5,
            light_ev=0.5,
            contrast=0.25,
            warmth=0.12,
            saturation=0.3,
        ),
        Augmentation(
            "selfie",
            rotation_deg=8,
            crop=0.15,
            shift=0.05,
            is_mirrored=True,
            blur_px=1.0,
            motion_px=3,
            light_ev=0.5,
            contrast=0.25,
            warmth=0.15,
            saturation=0.25,
        ),
        Augmentation(
            "fixed_camera",
            shift=0.03,
            blur_px=0.8,
            motion_px=4,
            light_ev=0.8,
            contrast=0.25,
            warmth=0.1,
            saturation=0.2,
        ),
        Augmentation(
            "scanned",
            rotation_deg=3,
            crop=0.05,
            shift=0.02,
            blur_px=0.6,
            light_ev=0.2,
            contrast=0.2,
            warmth=0.05,
            saturation=0.1,
        ),
    )
}


def find_augmentation(name: str) -> Augmentation:
    """Return the preset of that name; raises :class:`MLError` (``augmentation_unknown``)."""
    if name not in PRESETS:
        message = f"there is no augmentation '{name}'; there are {', '.join(PRESETS)}"
        raise MLError(message, code="augmentation_unknown")
    return PRESETS[name]


def view_of(image: Pixels, augmentation: Augmentation, number: int) -> Pixels:
    """Return the view of that number: always the same for the same pixels; 0 is the photo."""
    if number == 0 or augmentation.name == NONE.name:
        return image
    digest = hashlib.sha256(f"{augmentation.key}:{number}:".encode())
    digest.update(image.tobytes())
    return augment(image, augmentation, np.random.default_rng(list(digest.digest())))


def augment(image: Pixels, augmentation: Augmentation, generator: np.random.Generator) -> Pixels:
    """Return one more view of a photo, uint8 of the same shape, drawn from ``generator``."""
    if augmentation.name == NONE.name:
        return image
    # Drawn all at once, so that every preset takes the same numbers from the generator.
    draw = generator.uniform(-1, 1, size=12)
    moved = _move(image, augmentation, draw[:5])
    return _light(_smear(moved, augmentation, draw[5:8]), augmentation, draw[8:])


def _move(image: Pixels, wanted: Augmentation, draw: npt.NDArray[np.float64]) -> Pixels:
    """Turn, crop and mirror in one resampling; beyond the edge the photo is continued mirrored."""
    height, width = image.shape[:2]
    angle = np.deg2rad(wanted.rotation_deg * draw[0])
    kept = 1 - wanted.crop * (draw[1] + 1) / 2
    reach = (1 - kept) / 2 + wanted.shift
    flip = -1.0 if wanted.is_mirrored and draw[4] > 0 else 1.0
    margin_y, margin_x = height // 4, width // 4
    padded = np.pad(image, ((margin_y, margin_y), (margin_x, margin_x), (0, 0)), mode="reflect")
    # From a pixel of the result to where in the photo it is taken from, about both centres.
    cosine, sine = kept * np.cos(angle), kept * np.sin(angle)
    a, b, d, e = cosine * flip, -sine, sine * flip, cosine
    centre_x = width / 2 + reach * draw[2] * width + margin_x
    centre_y = height / 2 + reach * draw[3] * height + margin_y
    c = centre_x - a * width / 2 - b * height / 2
    f = centre_y - d * width / 2 - e * height / 2
    moved = Image.fromarray(padded).transform(
        (width, height),
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        resample=Image.Resampling.BILINEAR,
    )
    return np.asarray(moved, dtype=np.uint8)


def _smear(image: Pixels, wanted: Augmentation, draw: npt.NDArray[np.float64]) -> Pixels:
    """Blur half of the views: half of those out of focus, half along a line."""
    scale = max(image.shape[:2]) / _REFERENCE_SIDE_PX
    if draw[0] < 0 or not (wanted.blur_px or wanted.motion_px):
        return image
    if draw[0] < 1 / 2 or not wanted.motion_px:
        blurred = Image.fromarray(image).filter(
            ImageFilter.GaussianBlur(float(wanted.blur_px * scale * (draw[1] + 1) / 2))
        )
        return np.asarray(blurred, dtype=np.uint8)
    length = round(float(wanted.motion_px * scale * (draw[1] + 1) / 2))
    direction = np.pi * draw[2]
    steps = np.linspace(-length / 2, length / 2, max(length, 1) + 1)
    moves = np.stack([np.sin(direction) * steps, np.cos(direction) * steps], axis=1).round()
    total = np.zeros(image.shape, dtype=np.float32)
    reach = length // 2 + 1
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    for down, right in moves.astype(int) + reach:
        total += padded[down : down + height, right : right + width]
    return _to_pixels(total / len(moves))


def _light(image: Pixels, wanted: Augmentation, draw: npt.NDArray[np.float64]) -> Pixels:
    """Change exposure, white balance, contrast and saturation."""
    gains = np.float32(2 ** (wanted.light_ev * draw[0])) * np.array(
        [1 + wanted.warmth * draw[1], 1.0, 1 - wanted.warmth * draw[1]], dtype=np.float32
    )
    pixels = image.astype(np.float32) * gains
    grey = (pixels @ _LUMA)[..., None]
    pixels = grey + (pixels - grey) * np.float32(1 + wanted.saturation * draw[2])
    middle = grey.mean()
    return _to_pixels(middle + (pixels - middle) * np.float32(1 + wanted.contrast * draw[3]))


def _to_pixels(values: npt.NDArray[np.floating[Any]]) -> Pixels:
    rounded: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded


def draw_sheet(images: Sequence[Pixels], augmentation: Augmentation, *, side: int = 112) -> bytes:
    """Return a JPEG: a row for each photo, the photo itself first, then views of it."""
    step = side + _SHEET_GAP_PX
    sheet = Image.new("RGB", (step * (_SHEET_VIEWS + 1), step * len(images)), "white")
    for row, image in enumerate(images):
        for number in range(_SHEET_VIEWS + 1):
            small = Image.fromarray(view_of(image, augmentation, number))
            sheet.paste(
                small.resize((side, side), Image.Resampling.BILINEAR), (number * step, row * step)
            )
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=85)
    return file.getvalue()

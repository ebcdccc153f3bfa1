"""From a photo to the model's input tensor, exactly as the manifest says and training did.

A manifest's ``preprocessing`` looks like this, and every member counts::

    {"color_space": "RGB", "width": 224, "height": 224, "fit": "stretch" | "center_crop",
     "filter": "bilinear", "antialias": true, "dtype": "float32", "range": [0, 255],
     "mean": [127.5, 127.5, 127.5], "std": [127.5, 127.5, 127.5], "layout": "NHWC"}

A member that is missing has the value shown first (mean 0, std 1; the size is required). A value
this version does not know is an error: a guess would give quietly wrong predictions.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from nightferry.errors import PreprocessingError, RuntimeMissingError

try:
    import numpy as np
    from PIL import Image, ImageCms, ImageOps
except ImportError as error:
    raise RuntimeMissingError(
        "Preparing images needs numpy and Pillow: pip install 'nightferry[tflite]'."
    ) from error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import BinaryIO

    from numpy.typing import NDArray

    ImageSource = Image.Image | str | Path | bytes | BinaryIO | NDArray[np.uint8]

_FIXED: dict[str, object] = {
    "color_space": "RGB",
    "filter": "bilinear",
    "antialias": True,
    "dtype": "float32",
    "range": [0, 255],
    "layout": "NHWC",
}
_FITS = ("stretch", "center_crop")
_MAX_SIDE = 8192
_CHANNELS = 3
_RECOGNITION_QUALITY = 50


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The steps for one model: target size in pixels, how to fit, mean and std per channel."""

    width: int
    height: int
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_manifest(cls, document: Mapping[str, object]) -> Preprocessing:
        """Read the manifest's member; raise PreprocessingError where a step is unknown."""
        for member, wanted in _FIXED.items():
            if document.get(member, wanted) != wanted:
                raise PreprocessingError(_unknown(member, document.get(member)))
        fit = document.get("fit", "stretch")
        if fit not in _FITS:
            raise PreprocessingError(_unknown("fit", fit))
        return cls(
            width=_side(document, "width"),
            height=_side(document, "height"),
            fit=str(fit),
            mean=_per_channel(document, "mean", default=0.0),
            std=_per_channel(document, "std", default=1.0),
        )

    def apply(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the tensor of one upright RGB image: float32, shape (1, height, width, 3)."""
        box = self.crop_box(*image.size) if self.fit == "center_crop" else None
        size = (self.width, self.height)
        resized = image.resize(size, Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(resized, dtype=np.float32)
        mean = np.asarray(self.mean, dtype=np.float32)
        std = np.asarray(self.std, dtype=np.float32)
        return ((pixels - mean) / std)[np.newaxis]

    def crop_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the largest centred box with the target's aspect ratio: left, top, right, bottom.

        In pixels of the source, not rounded: the resize samples between pixels.
        """
        shape = self.width / self.height
        crop_width = min(float(width), height * shape)
        crop_height = min(float(height), width / shape)
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
        return left, top, left + crop_width, top + crop_height


def load_image(source: ImageSource) -> Image.Image:
    """Return an upright RGB image: EXIF orientation applied, then as photos for training are.

    That is 8 bits in sRGB by the embedded profile, and what is transparent on white.

    Args:
        source: a path, the bytes of an image file, an open binary file, a Pillow image, or pixels
            as uint8 of shape (height, width, 3), RGB.

    Raises:
        PreprocessingError: it is not a readable image.

    """
    try:
        if isinstance(source, np.ndarray):
            return Image.fromarray(source).convert("RGB")
        if isinstance(source, Image.Image):
            return _upright(source)
        opened = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(opened) as image:
            return _upright(image)
    except Exception as error:  # a hostile file makes Pillow raise nearly anything
        message = f"The image cannot be read: {error}."
        raise PreprocessingError(message) from error


def shrink_for_recognition(image: ImageSource, shorter_side_px: int = 224) -> bytes:
    """Return a JPEG of the upright photo, small enough to send for recognition.

    The shorter side has 224 pixels, scaled as training scales, and is never enlarged; that costs
    recognition little. Never for training photos, which are sent as they were taken, nor for
    anything with small print.

    Raises:
        PreprocessingError: it is not a readable image, or ``shorter_side_px`` is below 1.

    """
    if shorter_side_px < 1:
        raise PreprocessingError(f"No image has a side of {shorter_side_px} pixels.")
    upright = load_image(image)
    share = min(1.0, shorter_side_px / min(upright.size))
    width, height = (max(1, round(side * share)) for side in upright.size)
    small = upright.resize((width, height), Image.Resampling.BILINEAR)
    content = io.BytesIO()
    # Pillow writes nothing of the original's EXIF into a new picture: no place, no camera.
    small.save(content, "JPEG", quality=_RECOGNITION_QUALITY)
    return content.getvalue()


def _upright(image: Image.Image) -> Image.Image:
    return _flatten(ImageOps.exif_transpose(image))


def _flatten(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB, as photos are taken in: sRGB, and what is transparent on white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _from_deep(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if profile and image.mode in {"RGB", "L", "CMYK"}:
        image = _to_srgb(image, profile)
    return image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """Return 8-bit grey from 16-bit samples, or from 32-bit ones stretched over their range."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I;16"):
        values = values / 257
    else:
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        values = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.nan_to_num(values).clip(0, 255).round().astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert through the embedded profile; one that does not fit is left out of account."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError):
        return image
    return converted or image


def _side(document: Mapping[str, object], member: str) -> int:
    value = document.get(member)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MAX_SIDE:
        raise PreprocessingError(_unknown(member, value))
    return value


def _per_channel(
    document: Mapping[str, object], member: str, *, default: float
) -> tuple[float, ...]:
    values = document.get(member, [default] * _CHANNELS)
    if not isinstance(values, list) or len(values) != _CHANNELS:
        raise PreprocessingError(_unknown(member, values))
    for value in cast("Sequence[object]", values):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(cast("float", value)) or (member, value) == ("std", 0):
            raise PreprocessingError(_unknown(member, values))
    return tuple(float(value) for value in values)


def _unknown(member: str, value: object) -> str:
    if value is None:
        return f"The model's preprocessing does not state '{member}'."
    return f"The model's preprocessing states {member} = {value!r}, which this SDK cannot do."

"""From a photo to the pixels that a network is given: one function for every use.

Training, calibration, evaluation and the SDK must give a network the same pixels. Pillow
averages over the area that a pixel shrinks from (antialiasing); ``tf.image.resize`` does not,
and the difference costs accuracy: nobody else may resize.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps

from worker.ml.errors import PhotoUnreadable, PreprocessingUnknown

Fit = Literal["stretch", "center_crop"]
Pixels = npt.NDArray[np.uint8]
"""One photo: (height, width, 3), RGB."""

_FIXED: Final[Mapping[str, Any]] = {
    "color_space": "RGB",
    "filter": "bilinear",
    "antialias": True,
    "dtype": "float32",
    "range": [0, 255],
    "layout": "NHWC",
}
_FITS: Final = ("stretch", "center_crop")
_MAX_SIDE_PX: Final = 4096


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes a network's input; every file that is delivered carries it.

    ``fit`` "stretch" resizes the whole photo to ``width`` x ``height``, whatever its shape;
    "center_crop" takes the largest centred rectangle of the wanted shape first. The network's
    input is float32 (batch, height, width, 3), ``(pixel - mean) / std`` with pixels 0..255;
    networks trained here rescale inside, so their mean is 0 and their std 1.
    """

    width: int
    height: int
    fit: Fit = "stretch"
    filter: str = "bilinear"
    color_space: str = "RGB"
    dtype: str = "float32"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def to_manifest(self) -> dict[str, Any]:
        """Return the JSON form; see :meth:`from_manifest`."""
        return {
            "color_space": self.color_space,
            "width": self.width,
            "height": self.height,
            "fit": self.fit,
            "filter": self.filter,
            "antialias": True,
            "dtype": self.dtype,
            "range": [0, 255],
            "mean": [_plain(value) for value in self.mean],
            "std": [_plain(value) for value in self.std],
            "layout": "NHWC",
        }

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Preprocessing:
        """Read the JSON form; raises :class:`PreprocessingUnknown` rather than guess."""
        for key, expected in _FIXED.items():
            if manifest.get(key, expected) != expected:
                _unknown(key, manifest[key], f"only {expected!r} is known")
        if manifest.get("fit", "stretch") not in _FITS:
            _unknown("fit", manifest["fit"], f"one of {', '.join(_FITS)} is known")
        return cls(
            width=_side(manifest, "width"),
            height=_side(manifest, "height"),
            fit=manifest.get("fit", "stretch"),
            mean=_triple(manifest, "mean", (0.0, 0.0, 0.0)),
            std=_triple(manifest, "std", (1.0, 1.0, 1.0)),
        )


def default_preprocessing(input_size: int) -> Preprocessing:
    """Return what networks trained here use; stretching measured best, see benchmarks."""
    return Preprocessing(width=input_size, height=input_size)


def load_image(source: bytes | Path, preprocessing: Preprocessing) -> Pixels:
    """Return the photo as uint8 (height, width, 3), upright by its EXIF orientation.

    Raises :class:`PhotoUnreadable`.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            upright = _flatten(ImageOps.exif_transpose(opened))
            size = (preprocessing.width, preprocessing.height)
            box = _box(upright.size, preprocessing)
            resized = upright.resize(size, Image.Resampling.BILINEAR, box=box)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = "the photo" if isinstance(source, bytes) else os.fspath(source)
        message = f"{name} cannot be read as a picture: {error}"
        raise PhotoUnreadable(message) from error
    return np.asarray(resized, dtype=np.uint8)


def to_input(images: Iterable[Pixels], preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """Return what the network takes: float32 (batch, height, width, 3)."""
    pixels = np.stack(list(images)).astype(np.float32)
    mean = np.asarray(preprocessing.mean, dtype=np.float32)
    std = np.asarray(preprocessing.std, dtype=np.float32)
    return ((pixels - mean) / std).astype(np.float32)


def _box(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    width, height = float(size[0]), float(size[1])
    if preprocessing.fit == "stretch":
        return (0.0, 0.0, width, height)
    shape = preprocessing.width / preprocessing.height
    kept_width = min(width, height * shape)
    kept_height = min(height, width / shape)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return (left, top, left + kept_width, top + kept_height)


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


def _side(manifest: Mapping[str, Any], key: str) -> int:
    value = manifest.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_SIDE_PX:
        _unknown(key, value, f"a whole number of pixels from 1 to {_MAX_SIDE_PX} is needed")
    return int(value)


def _triple(
    manifest: Mapping[str, Any], key: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    values = manifest.get(key, default)
    try:
        first, second, third = (float(value) for value in values)
    except (TypeError, ValueError):
        _unknown(key, values, "three numbers are needed")
    if key == "std" and 0.0 in (first, second, third):
        _unknown(key, values, "a standard deviation is never 0")
    return (first, second, third)


def _plain(value: float) -> float:
    """Whole numbers are written without a decimal point, so that JSON reads the same anywhere."""
    return int(value) if float(value).is_integer() else float(value)


def _unknown(key: str, value: object, wanted: str) -> NoReturn:
    message = f"preprocessing has {key}={value!r}: {wanted}"
    raise PreprocessingUnknown(message)

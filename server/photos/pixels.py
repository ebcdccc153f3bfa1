"""From an uploaded file to clean pixels: decoding, orientation, quality, fingerprints.

Runs inside the bounded process of ``server.photos.decoder``: it opens hostile files, imports
Pillow and NumPy, and knows neither Django nor the rest of the server.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pi_heif
from PIL import Image, ImageCms

pi_heif.register_heif_opener()
# One thread: the process is bounded, and a thread's stack counts against its address space.
pi_heif.options.DECODE_THREADS = 1
Image.init()
# Bounds are checked here, against the limits that came with the photo.
Image.MAX_IMAGE_PIXELS = None

_SNIFF_BYTES = 64
_ISO_BRANDS = (
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"),
    *(b"mif1", b"msf1", b"avif", b"avis"),
)
_MAGIC: tuple[tuple[bytes, tuple[str, ...]], ...] = (
    (b"\xff\xd8\xff", ("JPEG", "MPO")),
    (b"\x89PNG\r\n\x1a\n", ("PNG",)),
    (b"GIF87a", ("GIF",)),
    (b"GIF89a", ("GIF",)),
    (b"BM", ("BMP",)),
    (b"II*\x00", ("TIFF",)),
    (b"MM\x00*", ("TIFF",)),
)
_ORIENTATION_TAG = 0x0112
_CAMERA_TAGS = (0x010F, 0x0110)
_CAMERA_LENGTH = 40
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

BLURRED_BELOW = 20.0
SOFT_BELOW = 80.0
_BLUR_LONG_SIDE_PX = 512
_DARK_LEVEL, _BRIGHT_LEVEL = 16, 240
# A photo is refused when nearly all of it (99 %) is below or above these levels of 255.
_UNLIT_LEVEL, _WASHED_OUT_LEVEL = 40, 235
_DIM_MEAN, _GLARING_MEAN = 0.2, 0.9
THUMB_SIDE_PX = 16
_JPEG_QUALITY = 90


class Refusal(Exception):
    """The photo is not taken: a stable code, and the facts its sentence names."""

    def __init__(self, code: str, **facts: float | str) -> None:
        """Keep the code and the facts."""
        super().__init__(code)
        self.code = code
        self.facts = facts


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found out about an accepted photo; every member survives JSON."""

    format: str
    width: int
    height: int
    dhash: str
    thumb: str
    blur_variance: float
    exposure: dict[str, float]
    notes: list[str] = field(default_factory=list)
    camera: str = ""


def examine(file: BinaryIO, limits: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Decode, judge and re-encode one photo.

    Args:
        file: the upload, opened for reading, at any position.
        limits: members of ``server.photos.intake.Limits``.

    Returns:
        The members of ``Report``, and a baseline JPEG of RGB pixels without any metadata.

    Raises:
        Refusal: the photo is not taken.

    """
    image = _open(file, limits)
    notes = _notes_on_source(image)
    kind = image.format or ""
    image.draft("RGB", (limits["long_side_px"],) * 2)
    image.load()
    # After load: PNG may carry its EXIF behind the pixels, and TIFF is turned by Pillow itself.
    orientation, camera = _orientation(image), _camera(image)
    image = _flatten(_shrink(image, limits["long_side_px"]))
    image = image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image
    jpeg = _encode(image)
    gray = image.convert("L")
    exposure = measure_exposure(gray)
    variance = laplacian_variance(gray)
    notes += _judge(exposure, variance, refuse_blurred=limits["refuse_blurred"])
    report = Report(
        format=kind,
        width=image.width,
        height=image.height,
        dhash=difference_hash(gray),
        thumb=thumb(gray).hex(),
        blur_variance=round(variance, 2),
        exposure=exposure,
        notes=notes,
        camera=camera,
    )
    return asdict(report), jpeg


def sniff(head: bytes) -> tuple[str, ...]:
    """Return Pillow's names for what the first bytes announce; empty for any other format."""
    for magic, formats in _MAGIC:
        if head.startswith(magic):
            return formats
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ("WEBP",)
    if head[4:8] == b"ftyp":
        brands = [head[at : at + 4] for at in (8, *range(16, len(head), 4))]
        if any(brand in _ISO_BRANDS for brand in brands):
            return ("HEIF", "AVIF")
    return ()


def _open(file: BinaryIO, limits: dict[str, Any]) -> Image.Image:
    """Read the header only, and hold it against the limits."""
    file.seek(0)
    head = file.read(_SNIFF_BYTES)
    if not head:
        raise Refusal("empty_file")
    formats = sniff(head)
    if not formats:
        raise Refusal("unsupported_format")
    file.seek(0)
    image = Image.open(file, formats=formats)
    width, height = image.size
    if width * height > limits["max_pixels"]:
        raise Refusal("too_many_pixels", width=width, height=height)
    if min(width, height) < limits["min_side_px"]:
        raise Refusal("too_small", width=width, height=height, min_side_px=limits["min_side_px"])
    return image


def _notes_on_source(image: Image.Image) -> list[str]:
    # An MPO's further pictures are other views or a gain map, not an animation.
    animated = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    return ["first_frame_only"] if animated else []


def _orientation(image: Image.Image) -> int:
    """Return the EXIF (or XMP) orientation, 1 where the tags cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001 - tags are written by anyone; the pixels still count
        return 1


def _camera(image: Image.Image) -> str:
    """Return make and model as the file says them; no serial number, no lens, no time, no place."""
    try:
        exif = image.getexif()
        make, model = (_plain_text(exif.get(tag)) for tag in _CAMERA_TAGS)
    except Exception:  # noqa: BLE001 - tags are written by anyone; the pixels still count
        return ""
    # Many write the make into the model again.
    first = make.split(" ")[0].lower()
    return model if not make or model.lower().startswith(first) else f"{make} {model}".strip()


def _plain_text(value: object) -> str:
    """Return printable ASCII on one line, or nothing."""
    text = value.decode("ascii", "ignore") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        return ""
    kept = "".join(letter if " " <= letter <= "~" else " " for letter in text)
    return " ".join(kept.split())[:_CAMERA_LENGTH]


def _shrink(image: Image.Image, long_side_px: int) -> Image.Image:
    """Reduce to the long side; palettes are resolved first, since they cannot be averaged."""
    if "transparency" in image.info and image.mode in {"1", "L", "P", "RGB"}:
        image = image.convert("RGBA")
    elif image.mode in {"P", "PA"}:
        image = image.convert("RGBA" if image.mode == "PA" else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    scale = long_side_px / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _flatten(image: Image.Image) -> Image.Image:
    """Return 8-bit sRGB without alpha; what was transparent becomes white."""
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
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return converted or image


def _encode(image: Image.Image) -> bytes:
    """Return a JPEG of the pixels alone: Pillow would copy comments and profiles from ``info``."""
    image.info = {}
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def _judge(exposure: dict[str, float], variance: float, *, refuse_blurred: bool) -> list[str]:
    """Refuse what nobody could label; note what is merely poor."""
    low, high = exposure["p01"], exposure["p99"]
    if high < _UNLIT_LEVEL:
        raise Refusal("too_dark")
    if low > _WASHED_OUT_LEVEL:
        raise Refusal("too_bright")
    if refuse_blurred and variance < BLURRED_BELOW:
        raise Refusal("blurred", variance=round(variance, 1))
    notes = []
    if variance < SOFT_BELOW:
        notes.append("slightly_blurred" if variance >= BLURRED_BELOW else "blurred")
    if exposure["mean"] < _DIM_MEAN:
        notes.append("dark")
    if exposure["mean"] > _GLARING_MEAN:
        notes.append("bright")
    return notes


def measure_exposure(gray: Image.Image) -> dict[str, float]:
    """Return mean luminance (0 to 1), shares of very dark and bright pixels, and percentiles."""
    counts = np.asarray(gray.histogram(), dtype=np.float64)
    cumulated = np.cumsum(counts) / counts.sum()
    return {
        "mean": round(float((counts * np.arange(256)).sum() / counts.sum() / 255), 4),
        "dark_share": round(float(cumulated[_DARK_LEVEL - 1]), 4),
        "bright_share": round(float(1 - cumulated[_BRIGHT_LEVEL - 1]), 4),
        "p01": int(np.searchsorted(cumulated, 0.01)),
        "p99": int(np.searchsorted(cumulated, 0.99)),
    }


def laplacian_variance(gray: Image.Image) -> float:
    """Return the variance of the 4-neighbour Laplacian at a long side of at most 512 px.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (ICPR 2000). Smaller
    photos are measured as they are: enlarging one would blur it by itself.
    """
    scale = _BLUR_LONG_SIDE_PX / max(gray.size)
    if scale < 1:
        size = (max(3, round(gray.width * scale)), max(3, round(gray.height * scale)))
        gray = gray.resize(size, Image.Resampling.BOX)
    values = np.asarray(gray, dtype=np.float32)
    inner = values[1:-1, 1:-1]
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((around - 4 * inner).var()) if inner.size else 0.0


def difference_hash(gray: Image.Image) -> str:
    """Return 64 bits as 16 hex digits: is each of 8 × 8 cells brighter than its left neighbour.

    After N. Krawetz, "Kind of Like That" (2013).
    """
    cells = np.asarray(gray.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes().hex()


def thumb(gray: Image.Image) -> bytes:
    """Return 16 × 16 grey levels, row by row: what tells two photos of one hash apart."""
    return gray.resize((THUMB_SIDE_PX,) * 2, Image.Resampling.BOX).tobytes()

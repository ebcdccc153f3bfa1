"""Makes ``tests/vectors/preprocessing``: pictures, and the pixels that every client makes of them.

``python -m tests.support.preprocessing_vectors`` writes the folder again. The pictures are drawn,
not photographed. What is expected is calculated by the plain arithmetic below, which
``docs/preprocessing.md`` describes for those who write another client, and not by Pillow, which
may differ by one step of 255: of two axes it takes now this one first, now that one.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

FOLDER: Final = Path(__file__).resolve().parents[1] / "vectors" / "preprocessing"
SIZES: Final = {"wide": (50, 11), "tall": (9, 40), "tiny": (2, 1), "odd": (23, 17), "one": (1, 1)}
TARGETS: Final = ((12, 12), (10, 6))
MODES: Final = ("1", "L", "LA", "P", "P-transparent", "RGBA", "I;16", "CMYK")
_EXIF_ORIENTATION: Final = 0x0112
_PRECISION: Final = 22

Pixels = npt.NDArray[np.uint8]


def draw(width: int, height: int) -> Pixels:
    """Return a picture without any symmetry: gradients, a grid and a corner."""
    down, across = np.mgrid[0:height, 0:width]
    red = across * 255 // max(width - 1, 1)
    green = (down * 197 + across * 31) % 256
    blue = np.where((across // 3 + down // 2) % 2, 230, 20)
    pixels = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    pixels[: max(1, height // 4), : max(1, width // 4)] = (250, 240, 5)
    return pixels


def sources() -> Iterator[tuple[str, bytes, Pixels]]:
    """Yield a file's name, its content, and the upright RGB pixels that it shows."""
    for shape, (width, height) in SIZES.items():
        pixels = draw(width, height)
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[_EXIF_ORIENTATION] = orientation
            stored = Image.fromarray(turn_back(pixels, orientation))
            yield f"{shape}-{orientation}.png", _encode(stored, "PNG", exif=exif), pixels
    for mode in MODES:
        image, shown = _in_mode(mode)
        kind = "TIFF" if mode == "CMYK" else "PNG"
        yield f"mode-{mode.replace(';', '')}.{kind.lower()}", _encode(image, kind), shown


def turn_back(pixels: Pixels, orientation: int) -> Pixels:
    """Return how a camera stores what is upright, by EXIF 2.32's values of the orientation."""
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }
    return np.ascontiguousarray(turned[orientation])


def _in_mode(mode: str) -> tuple[Image.Image, Pixels]:
    """Return a picture as it is stored, and the RGB that it shows."""
    pixels = draw(*SIZES["odd"])
    height, width = pixels.shape[:2]
    grey = pixels[..., 1]
    alpha = (np.arange(height * width).reshape(height, width) * 7 % 256).astype(np.uint8)
    if mode == "1":
        return Image.fromarray(grey > 127), _grey(np.where(grey > 127, 255, 0))
    if mode == "L":
        return Image.fromarray(grey), _grey(grey)
    if mode == "LA":
        return Image.fromarray(np.dstack([grey, alpha])), _on_white(_grey(grey), alpha)
    if mode == "RGBA":
        return Image.fromarray(np.dstack([pixels, alpha])), _on_white(pixels, alpha)
    if mode == "I;16":
        deep = grey.astype(np.uint16) * 257 + 100
        return Image.fromarray(np.minimum(deep, 65535)), _grey(
            np.round(np.minimum(deep.astype(np.int64), 65535) / 257)
        )
    if mode == "CMYK":
        return Image.fromarray(np.dstack([255 - pixels, 0 * grey]), mode="CMYK"), pixels
    indexes = (np.arange(height * width).reshape(height, width) % 5).astype(np.uint8)
    palette = np.array([[9, 8, 7], [250, 0, 0], [0, 250, 0], [0, 0, 250], [200, 200, 10]], np.uint8)
    image = Image.fromarray(indexes, mode="P")
    image.putpalette(palette.tobytes())
    if mode == "P":
        return image, palette[indexes]
    image.info["transparency"] = 2
    return image, _on_white(palette[indexes], np.where(indexes == 2, 0, 255))


def _grey(values: npt.NDArray[Any]) -> Pixels:
    return np.repeat(values.astype(np.uint8)[..., np.newaxis], 3, axis=-1)


def _on_white(pixels: Pixels, alpha: npt.NDArray[Any]) -> Pixels:
    """Lay the pixels on white: Porter and Duff's "over", rounded to the nearest."""
    a = alpha.astype(np.int64)[..., np.newaxis]
    mixed = pixels.astype(np.int64) * a + 255 * (255 - a)
    return np.round(mixed / 255).astype(np.uint8)


def _encode(image: Image.Image, kind: str, **more: Any) -> bytes:
    content = io.BytesIO()
    if "transparency" in image.info:
        more["transparency"] = image.info["transparency"]
    image.save(content, kind, **more)
    return content.getvalue()


def resize(pixels: Pixels, width: int, height: int, fit: str) -> Pixels:
    """Return the picture in the network's size, by the arithmetic of docs/preprocessing.md."""
    left, top, right, bottom = crop_box(pixels.shape[1], pixels.shape[0], width, height, fit)
    across = _shrink(pixels.astype(np.int64), left, right, width, axis=1)
    return _shrink(across, top, bottom, height, axis=0).astype(np.uint8)


def crop_box(
    width: int, height: int, target_width: int, target_height: int, fit: str
) -> tuple[float, float, float, float]:
    """Return what is kept of the picture: left, top, right, bottom, not rounded."""
    if fit == "stretch":
        return 0.0, 0.0, float(width), float(height)
    shape = target_width / target_height
    kept_width, kept_height = min(float(width), height * shape), min(float(height), width / shape)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return left, top, left + kept_width, top + kept_height


def _shrink(
    values: npt.NDArray[np.int64], first: float, last: float, size: int, *, axis: int
) -> npt.NDArray[np.int64]:
    """Resample one axis by a triangle as wide as two target pixels, in whole numbers."""
    length = values.shape[axis]
    if size == length and first == 0 and last == length:
        return values
    moved = np.moveaxis(values, axis, 0)
    scale = (last - first) / size
    support = max(scale, 1.0)
    rows = []
    for place in range(size):
        centre = first + (place + 0.5) * scale
        low = max(0, int(centre - support + 0.5))
        high = min(length, int(centre + support + 0.5))
        inverse = 1.0 / support
        weights = [max(0.0, 1 - abs((x - centre + 0.5) * inverse)) for x in range(low, high)]
        share = 1.0 / sum(weights)
        whole = [int(0.5 + weight * share * (1 << _PRECISION)) for weight in weights]
        total = np.tensordot(np.array(whole), moved[low:high], axes=1) + (1 << (_PRECISION - 1))
        rows.append(np.clip(total >> _PRECISION, 0, 255))
    return np.moveaxis(np.stack(rows), 0, axis)


def cases() -> Iterator[dict[str, Any]]:
    """Yield every case as it stands in ``index.json``, with its file's content beside it."""
    for name, content, pixels in sources():
        targets = TARGETS if "-1." in name or name.startswith("mode") else TARGETS[:1]
        for width, height in targets:
            for fit in ("stretch", "center_crop"):
                expected = resize(pixels, width, height, fit)
                yield {
                    "file": name,
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "content": content,
                    "preprocessing": {"width": width, "height": height, "fit": fit},
                    "rgb": base64.b64encode(expected.tobytes()).decode(),
                }


def write() -> None:
    """Write the folder."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    index = []
    for case in cases():
        (FOLDER / case["file"]).write_bytes(case.pop("content"))
        index.append(case)
    lines = ",\n".join(json.dumps(case) for case in index)
    (FOLDER / "index.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    write()

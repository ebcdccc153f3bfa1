"""Device and server make the same pixels of every photo, and so can any other client."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from typing import Any

import nightferry
import numpy as np
import pytest
from nightferry.preprocessing import Preprocessing as DevicePreprocessing
from nightferry.preprocessing import load_image as load_on_device
from PIL import Image

from tests.support import preprocessing_vectors
from tests.support.preprocessing_vectors import FOLDER, SIZES, draw, turn_back
from worker.ml.preprocessing import Preprocessing, load_image, to_input

VECTORS = json.loads((FOLDER / "index.json").read_text())
NORMALISED = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


def _both(content: bytes, steps: dict[str, Any]) -> tuple[Any, Any]:
    device = DevicePreprocessing.from_manifest(steps).apply(load_on_device(content))
    server = Preprocessing.from_manifest(steps)
    return device, to_input([load_image(content, server)], server)


@pytest.mark.parametrize(
    "vector", VECTORS, ids=lambda one: f"{one['file']}-{one['preprocessing']['fit']}"
)
def test_every_vector_is_met_by_device_and_server_alike(vector: dict[str, Any]) -> None:
    content = (FOLDER / vector["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == vector["sha256"]
    device, server = _both(content, vector["preprocessing"])
    np.testing.assert_array_equal(device, server)
    height, width = vector["preprocessing"]["height"], vector["preprocessing"]["width"]
    expected = np.frombuffer(base64.b64decode(vector["rgb"]), np.uint8)
    # Pillow chooses which axis comes first, and rounds in between.
    assert np.abs(device[0] - expected.reshape(height, width, 3)).max() <= 1
    normalised = _both(content, {**vector["preprocessing"], **NORMALISED})
    np.testing.assert_array_equal(*normalised)


def test_the_vectors_are_those_that_the_code_makes() -> None:
    made = list(preprocessing_vectors.cases())
    assert [(one["file"], one["preprocessing"], one["rgb"]) for one in made] == [
        (one["file"], one["preprocessing"], one["rgb"]) for one in VECTORS
    ]
    files = {name for name, *_ in preprocessing_vectors.sources()}
    assert files == {path.name for path in FOLDER.iterdir()} - {"index.json"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("fit", ["stretch", "center_crop"])
def test_a_jpeg_of_any_orientation_and_shape_gives_the_same_on_both_sides(
    orientation: int, shape: str, fit: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored, content = turn_back(draw(*SIZES[shape]), orientation), io.BytesIO()
    Image.fromarray(stored).save(content, "JPEG", quality=90, subsampling=0, exif=exif)
    device, server = _both(content.getvalue(), {"width": 24, "height": 20, "fit": fit})
    np.testing.assert_array_equal(device, server)


def test_a_photo_is_shrunk_for_recognition_and_never_enlarged() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    content = io.BytesIO()
    Image.fromarray(draw(1200, 900)).save(content, "JPEG", exif=exif)
    small = nightferry.shrink_for_recognition(content.getvalue())
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.size) == ("JPEG", (224, 299))
        assert not image.getexif()
    assert len(small) < len(content.getvalue()) / 4
    with Image.open(io.BytesIO(nightferry.shrink_for_recognition(draw(100, 50)))) as image:
        assert image.size == (100, 50)
    with pytest.raises(nightferry.PreprocessingError):
        nightferry.shrink_for_recognition(b"no picture")

"""One function turns photos into pixels, and its manifest says all that another needs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.data import data_folder
from worker.ml.errors import PhotoUnreadable, PreprocessingUnknown
from worker.ml.preprocessing import Preprocessing, load_image, to_input

SIDES = st.integers(1, 4096)
NUMBERS = st.floats(-1e4, 1e4, allow_nan=False)


@given(
    st.builds(
        Preprocessing,
        width=SIDES,
        height=SIDES,
        fit=st.sampled_from(["stretch", "center_crop"]),
        mean=st.tuples(NUMBERS, NUMBERS, NUMBERS),
        std=st.tuples(*[NUMBERS.filter(bool)] * 3),
    )
)
def test_a_manifest_read_back_is_the_same_preprocessing(preprocessing: Preprocessing) -> None:
    assert Preprocessing.from_manifest(preprocessing.to_manifest()) == preprocessing


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fit", "pad"),
        ("filter", "lanczos"),
        ("color_space", "BGR"),
        ("width", 0),
        ("std", [1, 0, 1]),
    ],
)
def test_an_unknown_manifest_is_refused_by_name(key: str, value: object) -> None:
    manifest = {**Preprocessing(8, 8).to_manifest(), key: value}
    with pytest.raises(PreprocessingUnknown, match=key):
        Preprocessing.from_manifest(manifest)


def test_a_centre_crop_keeps_shapes_and_a_stretch_keeps_everything() -> None:
    wide = np.zeros((40, 80, 3), dtype=np.uint8)
    wide[:, :20, 0] = wide[:, 60:, 2] = 255
    photo = _png(wide)
    cropped = load_image(photo, Preprocessing(40, 40, fit="center_crop"))
    assert cropped.max() == 0
    stretched = load_image(photo, Preprocessing(40, 40))
    assert stretched[:, :9, 0].min() == 255
    assert stretched[:, 31:, 2].min() == 255


def test_shrinking_averages_over_all_pixels() -> None:
    board = np.indices((64, 64)).sum(axis=0)[..., None] % 2 * 255 * np.ones(3)
    small = load_image(_png(board.astype(np.uint8)), Preprocessing(8, 8))
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_photos_are_turned_upright_by_their_exif_orientation() -> None:
    folder = data_folder("nasty_images") / "exif-samples"
    samples = sorted(folder.glob("*landscape_[1-8].jpg"))
    assert len(samples) == 8
    photos = [load_image(sample, Preprocessing(60, 40)).ravel() for sample in samples]
    # The copies differ in exposure, and hardly in what they show.
    likeness = np.atleast_2d(np.corrcoef(photos))[0]
    assert likeness.min() > 0.9
    upside_down = load_image(samples[0], Preprocessing(60, 40))[::-1].ravel()
    assert np.atleast_2d(np.corrcoef([photos[0], upside_down]))[0, 1] < 0.5


def test_what_is_no_picture_is_said_to_be_none() -> None:
    with pytest.raises(PhotoUnreadable, match="cannot be read"):
        load_image(b"GIF89a and then nothing", Preprocessing(8, 8))


def test_the_network_input_is_normalised_by_channel() -> None:
    image = np.full((2, 2, 3), 100, dtype=np.uint8)
    batch = to_input([image], Preprocessing(2, 2, mean=(100, 0, 50), std=(1, 2, 50)))
    assert batch.dtype == np.float32
    assert batch[0, 0, 0].tolist() == [0, 50, 1]


def _png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()

"""Every hostile, odd or turned file through the real endpoint, and the process that opens them."""

from __future__ import annotations

import io
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.photos import intake
from server.photos.refusals import REASONS
from tests.photos.people import picture
from tests.support.data import data_folder

ALLOWED_SEGMENTS = {0xC0, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0}


def nasty_files() -> list[Path]:
    folder = data_folder("nasty_images")
    files = [path for part in ("pillow", "exif-samples") for path in (folder / part).iterdir()]
    return sorted(path for path in files if path.suffix not in {".rst", ".txt"})


def segments(jpeg: bytes) -> set[int]:
    """Return the markers of a JPEG's segments up to the scan, walking them as a decoder does."""
    assert jpeg[:2] == b"\xff\xd8"
    at, found = 2, set()
    while True:
        assert jpeg[at] == 0xFF
        marker = jpeg[at + 1]
        found.add(marker)
        if marker == 0xDA:
            return found
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])


def gray(jpeg: bytes, size: tuple[int, int] = (40, 30)) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("L").resize(size), dtype=np.float32)


def test_every_nasty_file_is_taken_or_refused_with_a_reason(person):
    files = nasty_files()
    assert len(files) == 222
    outcomes: Counter[int] = Counter()
    for path in files:
        answer = person.send(path)
        outcomes[answer.status_code] += 1
        body = answer.json()
        if answer.status_code == 201:
            jpeg = person.image(body["id"])
            assert segments(jpeg) <= ALLOWED_SEGMENTS, path.name
            assert b"Exif" not in jpeg
            assert b"ns.adobe.com" not in jpeg
            with Image.open(io.BytesIO(jpeg)) as image:
                assert (image.mode, image.size) == ("RGB", (body["width"], body["height"]))
                assert not image.getexif()
            # Many of these are one picture in many files: the next must not be its duplicate.
            assert person.call("delete", f"/photos/{body['id']}").status_code == 204
        else:
            assert answer.status_code in {413, 415, 422}, (path.name, body)
            assert answer["Content-Type"] == "application/problem+json"
            assert body["code"] in REASONS
            assert body["detail"]
            assert body["tip"]
    assert set(outcomes) == {201, 413, 415, 422}
    assert outcomes[201] > 90


@pytest.mark.parametrize("series", ["landscape", "portrait"])
def test_turned_photos_come_out_upright_and_alike(person, series):
    folder = data_folder("nasty_images") / "exif-samples"
    images = []
    for orientation in range(1, 9):
        body = person.send(folder / f"jpg__orientation__{series}_{orientation}.jpg").json()
        images.append((body["width"], body["height"], gray(person.image(body["id"]))))
        person.call("delete", f"/photos/{body['id']}")
    width, height, first = images[0]
    assert (width, height) == ((600, 450) if series == "landscape" else (450, 600))
    for other_width, other_height, other in images[1:]:
        assert (other_width, other_height) == (width, height)
        assert np.abs(first - other).mean() < 6
        assert np.abs(first - other[::-1]).mean() > 20


@pytest.mark.parametrize(
    "name",
    [
        "heic__IMG_5195.HEIC",
        "heic__mobile__HMD_Nokia_8.3_5G_hdr.heif",
        "heic__samplefilehub.heif",
    ],
)
def test_photos_of_iphones_are_taken(person, name):
    answer = person.send(data_folder("nasty_images") / "exif-samples" / name)
    assert answer.status_code == 201
    assert max(answer.json()["width"], answer.json()["height"]) <= 2048


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
)
def test_every_kind_of_pixels_becomes_plain_rgb(mode):
    source = Image.open(io.BytesIO(picture(1)))
    kind = "PNG" if mode in {"1", "L", "LA", "P", "RGBA", "I;16"} else "TIFF"
    if mode in {"I;16", "I", "F"}:
        levels = np.asarray(source.convert("L")).astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode])
        image = Image.fromarray(levels * 257)
    else:
        image = source.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    found = intake.examine(buffer, limits=intake.Limits())
    with Image.open(io.BytesIO(found.jpeg_bytes)) as result:
        assert result.mode == "RGB"
    if mode not in {"1", "P", "PA"}:
        assert np.abs(gray(found.jpeg_bytes) - gray(picture(1))).mean() < 8


def test_what_is_transparent_becomes_white():
    image = Image.open(io.BytesIO(picture(1))).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 160, 240))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    found = intake.examine(buffer, limits=intake.Limits())
    assert gray(found.jpeg_bytes)[:, :18].min() > 240


@pytest.mark.parametrize(
    ("code", "content"),
    [
        ("empty_file", b""),
        ("unsupported_format", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("unsupported_format", b"%PDF-1.7"),
        ("damaged_image", picture(1)[:3000]),
        ("too_small", picture(1, size=(80, 50))),
    ],
)
def test_each_reason_has_its_code(person, code, content):
    answer = person.send(content)
    assert answer.json()["code"] == code


def flat(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (200, 200), (level,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def test_poor_light_and_blur_are_refused_with_a_tip(person, model):
    assert person.send(flat(3)).json()["code"] == "too_dark"
    assert person.send(flat(253)).json()["code"] == "too_bright"
    blurred = person.send(flat(120)).json()
    assert blurred["code"] == "blurred"
    assert "focus" in blurred["tip"]
    model.training_policy = {"refuse_blurred": False}
    model.save()
    taken = person.send(flat(120)).json()
    assert (taken["state"], taken["notes"]) == ("pending", ["blurred"])


@pytest.mark.parametrize(
    "bound",
    [{"wall_s": 0.3}, {"cpu_s": 1}, {"memory_bytes": 300 * 2**20}],
    ids=lambda b: next(iter(b)),
)
def test_a_photo_that_takes_too_much_costs_only_itself(bound):
    side = np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.tile(side, (8, 8, 1))).save(buffer, "PNG", compress_level=9)
    with pytest.raises(intake.PhotoRejected) as refused:
        intake.examine(buffer, limits=intake.Limits(max_bytes=2**30, **bound))
    assert refused.value.code == "too_complex"
    assert intake.examine(io.BytesIO(picture(1)), limits=intake.Limits()).width == 320


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the helper through /proc")
def test_a_killed_helper_is_replaced():
    intake.examine(io.BytesIO(picture(1)), limits=intake.Limits())
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    helpers = [
        pid
        for pid in children
        if b"server.photos.decoder" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert helpers
    for pid in helpers:
        assert b"SECRET_KEY" not in Path(f"/proc/{pid}/environ").read_bytes()
        os.kill(int(pid), signal.SIGKILL)
    assert intake.examine(io.BytesIO(picture(2)), limits=intake.Limits()).width == 320

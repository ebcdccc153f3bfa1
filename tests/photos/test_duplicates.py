"""Near-duplicates: real copies are found, honest photos are left alone."""

from __future__ import annotations

import csv
import io
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.photos import fingerprints, pixels, queries
from server.photos.models import Photo
from tests.photos.people import encoded, picture, register
from tests.support.data import data_folder


def look_of(content: bytes) -> tuple[str, bytes]:
    with Image.open(io.BytesIO(content)) as image:
        gray = image.convert("L")
        return pixels.difference_hash(gray), pixels.thumb(gray)


def look_alike_share(photos: list[tuple[str, bytes]]) -> int:
    """Return how many of one person's photos look like another of theirs."""
    return len(
        {
            second
            for first, second in combinations(range(len(photos)), 2)
            if fingerprints.look_alike(photos[first], photos[second])
        }
    )


@given(
    st.integers(0, 2**64 - 1),
    st.sets(st.integers(0, 63), max_size=fingerprints.MAX_DISTANCE_BITS),
)
def test_the_bands_find_every_hash_within_reach(value, flips):
    other = value
    for bit in flips:
        other ^= 1 << bit
    one, two = f"{value:016x}", f"{other:016x}"
    assert fingerprints.distance_bits(one, two) == len(flips)
    near = fingerprints.near_bands(one)
    assert any(
        band in values for band, values in zip(fingerprints.split_hash(two), near, strict=True)
    )


def test_honest_photos_of_one_person_are_not_duplicates():
    folder = data_folder("sign_digits")
    with (folder / "files.csv").open() as file:
        rows = list(csv.DictReader(file))
    everything = [look_of((folder / row["file"]).read_bytes()) for row in rows]
    # Even if a single person had sent all of them: the hash alone would refuse 466 of the 600.
    assert look_alike_share(everything) == 0


def test_honest_photos_of_things_are_not_duplicates():
    folder = data_folder("recyclables")
    paths = sorted(folder.glob("*/*.jpg"))
    looks = [look_of(path.read_bytes()) for path in paths]
    alike = [
        {paths[first].name, paths[second].name}
        for first, second in combinations(range(len(looks)), 2)
        if fingerprints.look_alike(looks[first], looks[second])
    ]
    # One photo lies in two of the set's folders, byte for byte.
    assert alike == [{"glass176.jpg", "plastic152.jpg"}]


def every_tenth() -> list[Path]:
    return sorted(data_folder("recyclables").glob("*/*.jpg"))[::10]


@pytest.mark.parametrize(
    "change",
    [
        {"quality": 30},
        {"scale": 0.5},
        {"scale": 0.25},
        {"scale": 1.7},
        {"name": "WEBP", "quality": 50},
    ],
    ids=str,
)
def test_the_same_photo_in_another_file_is_found(change):
    for path in every_tenth():
        content = path.read_bytes()
        assert fingerprints.look_alike(look_of(content), look_of(encoded(content, **change)))


def test_ones_own_copy_is_refused_and_anothers_is_flagged(client, person):
    assert person.send(picture(1)).status_code == 201
    own = person.send(encoded(picture(1), scale=0.8))
    assert (own.status_code, own.json()["code"]) == (422, "near_duplicate")
    copied = register(client, "magpie").send(encoded(picture(1), scale=0.8))
    assert (copied.status_code, copied.json()["notes"]) == (201, ["resembles_another"])
    assert Photo.objects.exclude(resembles=None).get().resembles.contributor == person.id


def test_another_try_after_a_rejection_is_taken(person):
    person.send(picture(1))
    Photo.objects.update(state=Photo.State.REJECTED)
    assert person.send(encoded(picture(1), scale=0.8)).status_code == 201


def test_the_search_reads_only_what_may_match(model, django_assert_max_num_queries):
    label = model.labels.first()
    for number in range(300):
        dhash, thumb = look_of(picture(number, size=(64, 48)))
        Photo.objects.create(
            model=model, label=label, dhash=dhash, thumb=thumb, source_digest=str(number)
        )
    with django_assert_max_num_queries(2):
        dhash, thumb = look_of(picture(7, size=(64, 48)))
        found = list(queries.look_alikes(model, dhash=dhash, thumb=thumb))
    assert [Photo.objects.get(pk=pk).source_digest for pk, _ in found] == ["7"]

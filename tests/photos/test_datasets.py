"""MNIST's and CIFAR's own files become photos; damaged ones a sentence with a code."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.domain.errors import Unprocessable
from server.photos.datasets import Tile, read_dataset
from server.photos.models import Photo
from server.registry.models import Model
from tests.support.data import data_folder

IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


def write_idx(folder: Path, pictures: Any, labels: list[int], *, stem: str = "train") -> None:
    header = struct.pack(">4I", 0x0803, *pictures.shape)
    (folder / f"{stem}-images-idx3-ubyte").write_bytes(header + pictures.tobytes())
    content = struct.pack(">2I", 0x0801, len(labels)) + bytes(labels)
    (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))


def pictures(count: int, *shape: int) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_real_digits_are_read() -> None:
    dataset = read_dataset(data_folder("mnist"))
    assert dataset is not None
    assert dataset.labels == [str(digit) for digit in range(10)]
    assert (len(dataset.tiles), dataset.side_px) == (10_000, 28)
    # The first test digit is the well-known seven.
    assert dataset.tiles[0].label == "7"
    assert [sum(tile.label == label for tile in dataset.tiles) for label in "01"] == [980, 1135]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.randoms())
def test_a_png_holds_the_pixels(width: int, height: int, channels: int, chance: Any) -> None:
    rows = chance.randbytes(width * height * channels)
    with Image.open(io.BytesIO(Tile("x", "y", width, height, channels, rows).png())) as opened:
        assert opened.size == (width, height)
        assert opened.tobytes() == rows


def test_plain_idx_files_with_names_for_labels(tmp_path: Path) -> None:
    write_idx(tmp_path, pictures(4, 20, 30), [2, 0, 0, 2])
    (tmp_path / "labels.txt").write_text("shirt\ntrousers\nboot\n")
    dataset = read_dataset(tmp_path)
    assert dataset is not None
    assert [tile.label for tile in dataset.tiles] == ["boot", "shirt", "shirt", "boot"]
    assert (dataset.labels, dataset.side_px) == (["shirt", "boot"], 20)


@pytest.mark.parametrize("hundred", [False, True])
@pytest.mark.parametrize("form", ["python", "binary"])
def test_cifar_batches(tmp_path: Path, form: str, hundred: bool) -> None:
    planes = pictures(3, 3072)
    labels, names = [1, 9, 0], [f"kind-{number}" for number in range(100 if hundred else 10)]
    if form == "binary":
        prefix = b"\x05" if hundred else b""
        entries = [
            prefix + bytes([label]) + row.tobytes()
            for label, row in zip(labels, planes, strict=True)
        ]
        (tmp_path / ("train.bin" if hundred else "data_batch_1.bin")).write_bytes(b"".join(entries))
        file = "fine_label_names.txt" if hundred else "batches.meta.txt"
        (tmp_path / file).write_text("\n".join(names) + "\n\n")
    else:
        kind = b"fine_labels" if hundred else b"labels"
        batch = {b"data": planes, kind: labels, b"filenames": [b"a.png", b"b.png", b"c.png"]}
        # As Python 2 wrote them, whose text is bytes.
        (tmp_path / ("train" if hundred else "data_batch_1")).write_bytes(pickle.dumps(batch, 2))
        meta = {"fine_label_names" if hundred else "label_names": names}
        (tmp_path / ("meta" if hundred else "batches.meta")).write_bytes(pickle.dumps(meta, 2))
    dataset = read_dataset(tmp_path)
    assert dataset is not None
    assert (dataset.kind, dataset.labels) == (f"CIFAR-{len(names)}", names)
    assert [tile.label for tile in dataset.tiles] == ["kind-1", "kind-9", "kind-0"]
    with Image.open(io.BytesIO(dataset.tiles[1].png())) as opened:
        assert (np.asarray(opened).transpose(2, 0, 1).ravel() == planes[1]).all()


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("a pickle ran",))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _garble(path: Path) -> None:
    path.write_bytes(b"\0" * 40)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize("change", [_cut, _garble, Path.unlink])
def test_damaged_idx_files_are_named(tmp_path: Path, name: str, change: Any) -> None:
    write_idx(tmp_path, pictures(4, 8, 8), [0, 1, 2, 3])
    change(tmp_path / name)
    if name.startswith("train-images") and change is Path.unlink:
        assert read_dataset(tmp_path) is None
        return
    with pytest.raises(Unprocessable) as caught:
        read_dataset(tmp_path)
    assert caught.value.code == f"dataset_{'incomplete' if change is Path.unlink else 'damaged'}"
    assert "train-" in caught.value.detail


def test_labels_and_pictures_have_to_agree(tmp_path: Path) -> None:
    write_idx(tmp_path, pictures(4, 8, 8), [0, 1, 2])
    with pytest.raises(Unprocessable, match="3 labels for 4 pictures"):
        read_dataset(tmp_path)


def test_no_program_in_a_pickle_runs(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": Evil(), "labels": [0]}))
    with pytest.raises(Unprocessable, match="which no picture needs") as caught:
        read_dataset(tmp_path)
    assert caught.value.code == "dataset_damaged"
    assert capsys.readouterr().out == ""


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["data_batch_1", "data_batch_1.bin", "meta"]))
def test_nonsense_is_damage_whatever_its_bytes(
    tmp_path_factory: Any, content: bytes, name: str
) -> None:
    folder = tmp_path_factory.mktemp("nonsense")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    (folder / "train").write_bytes(b"")
    (folder / name).write_bytes(content)
    with pytest.raises(Unprocessable):
        read_dataset(folder)


@pytest.mark.django_db
def test_digits_become_a_model(tmp_path: Path) -> None:
    out = io.StringIO()
    arguments = ["digits", str(data_folder("mnist")), "--accept", "--per-label", "2"]
    call_command("import_photos", *arguments, stdout=out, stderr=out)
    assert "Made the model digits with 10 labels." in out.getvalue()
    assert "digits: 20 imported." in out.getvalue()
    model = Model.objects.get(slug="digits")
    assert model.training_policy == {"min_side_px": 28}
    assert {(photo.width, photo.height) for photo in Photo.objects.all()} == {(28, 28)}
    out.truncate(0)
    call_command("import_photos", *arguments, stdout=out, stderr=out)
    assert "20 already there" in out.getvalue()


@pytest.mark.django_db
def test_a_damaged_set_imports_nothing(tmp_path: Path) -> None:
    write_idx(tmp_path, pictures(4, 8, 8), [0, 1, 2, 3])
    _cut(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(CommandError, match=r"train-images-idx3-ubyte.*\(dataset_damaged\)"):
        call_command("import_photos", "digits", str(tmp_path))
    assert not Model.objects.exists()


@pytest.mark.django_db
def test_a_model_that_takes_no_small_photos_says_so() -> None:
    call_command("import_photos", "digits", str(data_folder("mnist")), "--per-label", "1")
    Model.objects.update(training_policy={})
    with pytest.raises(CommandError, match="set min_side_px to 28"):
        call_command("import_photos", "digits", str(data_folder("mnist")), "--per-label", "1")

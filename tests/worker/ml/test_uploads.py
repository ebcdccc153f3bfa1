"""Models that people bring come in when they are sound, and are refused by name when not."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.data import data_folder
from tests.worker.ml.conftest import LABELS, SMALL_SIDE
from worker.ml import compilers, training
from worker.ml.compilers import mlpackage
from worker.ml.errors import UploadRejected
from worker.ml.preprocessing import default_preprocessing
from worker.ml.uploads import inspect_upload

if TYPE_CHECKING:
    import keras

Made = dict[tuple[str, str], compilers.CompiledFile]
ml = pytest.mark.ml


def _refusal(tmp_path: Path, name: str, content: bytes, labels: list[str] | None = None) -> str:
    path = tmp_path / "upload"
    path.write_bytes(content)
    with pytest.raises(UploadRejected) as caught:
        inspect_upload(path, name, labels=labels)
    assert caught.value.sentence[0].isupper() or caught.value.sentence.startswith(name)
    return caught.value.code


def _zip(entries: dict[str, bytes], **changes: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            for key, value in changes.items():
                setattr(entry, key, value)
            archive.writestr(entry, content)
    return file.getvalue()


@ml
def test_a_keras_model_comes_in(small_model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(training.save_keras(small_model))
    found = inspect_upload(path, "mine.keras", labels=LABELS)
    assert (found.kind, found.runtime, found.parameters) == (
        "keras", None, small_model.count_params(),
    )  # fmt: skip
    assert found.inputs[0]["shape"] == [None, SMALL_SIDE, SMALL_SIDE, 3]
    # It rescales pixels itself, so that nothing has to be stated.
    assert found.preprocessing == default_preprocessing(SMALL_SIDE)


@ml
@pytest.mark.parametrize(("variant", "kind"), [
    (("tflite", "int8"), "tflite"), (("tflite", "float16"), "tflite"),
    (("coreml", "palette8"), "mlpackage"),
])  # fmt: skip
def test_our_own_files_come_in_with_what_they_say(
    made: Made, variant: tuple[str, str], kind: str, tmp_path: Path
) -> None:
    file = made[variant]
    path = tmp_path / "upload"
    path.write_bytes(file.data)
    found = inspect_upload(path, file.filename, labels=LABELS)
    assert (found.kind, found.runtime, found.labels) == (kind, variant[0], LABELS)
    assert found.preprocessing == default_preprocessing(SMALL_SIDE)
    assert found.requires == file.requires
    assert found.outputs[-1]["shape"] == [1, len(LABELS)]


@ml
def test_a_file_of_google_s_says_its_labels(tmp_path: Path) -> None:
    folder = data_folder("weights")
    found = inspect_upload(folder / "tf2_mobilenet_v2_1.0_224_ptq.tflite", "theirs.tflite")
    assert found.labels == (folder / "imagenet_labels.txt").read_text().splitlines()
    assert found.preprocessing is not None
    assert found.preprocessing.mean == (127.5, 127.5, 127.5)
    assert found.precision == "int8"
    assert 3_000_000 < (found.parameters or 0) < 4_000_000


@ml
def test_a_zipped_package_from_a_mac_is_put_in_order(made: Made, tmp_path: Path) -> None:
    file = made["coreml", "float16"]
    package = mlpackage.unpack(file.data)
    content = {f"My Model.mlpackage/Data/{path}": data for path, data in package.files.items()}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {f"RANDOM-{i}": {**item, "path": path}
                            for i, (path, item) in enumerate(package.items.items())},
        "rootModelIdentifier": f"RANDOM-{list(package.items).index(package.root)}",
    }  # fmt: skip
    content["My Model.mlpackage/Manifest.json"] = json.dumps(manifest).encode()
    content["__MACOSX/._Manifest.json"] = b"finder"
    path = tmp_path / "upload"
    path.write_bytes(_zip(content))
    found = inspect_upload(path, "recyclables.mlpackage.zip", labels=LABELS)
    assert found.content == file.data


@ml
def test_a_bare_mlmodel_comes_in(tmp_path: Path) -> None:
    from worker.ml.compilers import coreml

    with coreml.quiet() as ct:
        specification = ct.proto.Model_pb2.Model()
    specification.specificationVersion = 1
    description = specification.description
    photo = description.input.add(name="photo")
    photo.type.imageType.width = photo.type.imageType.height = 64
    photo.type.imageType.colorSpace = 20
    description.output.add(name="probabilities").type.dictionaryType.stringKeyType.SetInParent()
    network = specification.neuralNetworkClassifier
    network.stringClassLabels.vector[:] = ["cat", "dog"]
    path = tmp_path / "upload"
    path.write_bytes(specification.SerializeToString())
    found = inspect_upload(path, "old.mlmodel", labels=["cat", "dog"])
    assert (found.kind, found.runtime, found.labels) == ("mlmodel", "coreml", ["cat", "dog"])
    assert _refusal(tmp_path, "old.mlmodel", b"\x08" * 50) == "mlmodel_damaged"


@ml
def test_labels_that_do_not_fit_are_refused(made: Made, tmp_path: Path) -> None:
    data = made["tflite", "float32"].data
    swapped = [LABELS[1], LABELS[0], *LABELS[2:]]
    assert _refusal(tmp_path, "a.tflite", data, swapped) == "labels_mismatch"
    assert _refusal(tmp_path, "a.tflite", data, LABELS[:5]) == "label_count_mismatch"


@ml
def test_damaged_files_are_refused_without_harm(
    made: Made, small_model: keras.Model, tmp_path: Path
) -> None:
    tflite = made["tflite", "float32"].data
    assert _refusal(tmp_path, "a.tflite", tflite[:3000]) == "tflite_damaged"
    wild = bytearray(tflite)
    wild[16:64] = b"\xff" * 48
    assert _refusal(tmp_path, "a.tflite", bytes(wild)) == "tflite_damaged"
    package = made["coreml", "float16"].data
    assert _refusal(tmp_path, "a.zip", package[:-200]) == "archive_damaged"
    saved = training.save_keras(small_model)
    assert _refusal(tmp_path, "a.keras", saved[: len(saved) // 2]) == "archive_damaged"
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    short = {**parts, "model.weights.h5": parts["model.weights.h5"][:2000]}
    assert _refusal(tmp_path, "a.keras", _zip(short)) == "keras_damaged"


@ml
def test_a_package_without_all_its_weights_is_refused(made: Made, tmp_path: Path) -> None:
    package = mlpackage.unpack(made["coreml", "float16"].data)
    files = {**package.files, mlpackage.WEIGHTS_PATH: b"\0" * 100}
    broken = mlpackage.pack(mlpackage.Package(package.root, files, package.items), "x")
    assert _refusal(tmp_path, "a.zip", broken) == "package_invalid"


@ml
def test_a_network_that_is_no_classifier_is_none_and_nonsense_is_refused(tmp_path: Path) -> None:
    import keras

    numbers = keras.Input((7,))
    table = keras.Model(numbers, keras.layers.Dense(2, activation="softmax")(numbers))
    path = tmp_path / "table"
    path.write_bytes(training.save_keras(table))
    assert inspect_upload(path, "a.keras").task == "other"
    with pytest.raises(UploadRejected) as caught:
        inspect_upload(path, "a.keras", labels=["a", "b"], task="classification")
    assert caught.value.code == "not_classifier"
    photo = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(photo)
    broken = keras.Model(photo, keras.layers.Dense(2)(pooled))
    broken.set_weights([np.full_like(array, np.nan) for array in broken.get_weights()])
    assert _refusal(tmp_path, "a.keras", training.save_keras(broken)) == "outputs_not_finite"


def _keras_zip(config: dict[str, Any]) -> bytes:
    return _zip({"config.json": json.dumps(config).encode(), "model.weights.h5": b"x",
                 "metadata.json": b"{}"})  # fmt: skip


@pytest.mark.parametrize(("layer", "code"), [
    ({"module": "keras.layers", "class_name": "Lambda", "config": {}}, "keras_code_inside"),
    ({"module": "keras", "class_name": "__lambda__", "config": {}}, "keras_code_inside"),
    ({"module": "keras.layers", "class_name": "TFSMLayer", "config": {}}, "keras_code_inside"),
    ({"module": "os", "class_name": "system", "config": {}}, "keras_code_inside"),
    ({"module": "builtins", "class_name": "function", "config": "eval"}, "keras_code_inside"),
    ({"module": None, "class_name": "Mine", "registered_name": "x>Mine"}, "keras_code_inside"),
    ({"module": "keras.layers", "class_name": "StringLookup", "config": {}}, "keras_layer_refused"),
    ({"module": "keras.layers", "class_name": "Dense", "config": {"units": 10**9}},
     "keras_too_large"),
])  # fmt: skip
def test_keras_files_with_more_than_a_network_are_refused(
    layer: dict[str, Any], code: str, tmp_path: Path
) -> None:
    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": [layer]}}
    assert _refusal(tmp_path, "a.keras", _keras_zip(config)) == code


MANIFEST = b'{"itemInfoEntries": {}, "rootModelIdentifier": "x"}'


@pytest.mark.parametrize(("name", "content", "code"), [
    ("a.keras", b"", "upload_empty"),
    ("a.txt", b"just some words", "kind_unknown"),
    ("a.keras", b"just some words", "archive_damaged"),
    ("a.tflite", b"just some words", "tflite_damaged"),
    ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "kind_unknown"),
    ("a.zip", _zip({"readme.txt": b"hello"}), "kind_unknown"),
    ("a.zip", _zip({"Manifest.json": MANIFEST}), "package_incomplete"),
    ("a.zip", _zip({"Manifest.json": b"[]"}), "package_incomplete"),
    ("a.zip", _zip({"Manifest.json": MANIFEST, "Data/bomb": bytes(40 << 20)}), "archive_too_large"),
    ("a.zip", _zip({"Manifest.json": MANIFEST, "../../etc/passwd": b"x"}), "archive_path_unsafe"),
    ("a.zip", _zip({"Manifest.json": MANIFEST, "C:\\windows": b"x"}), "archive_path_unsafe"),
    ("a.zip", _zip({"Manifest.json": MANIFEST}, external_attr=(stat.S_IFLNK | 0o777) << 16),
     "archive_path_unsafe"),
    ("a.keras", _zip({"config.json": b"{" * 5000, "model.weights.h5": b""}), "keras_damaged"),
    ("a.keras", _zip({"config.json": b"{}"}), "keras_damaged"),
    ("a.keras", _zip({"config.json": b" " * (20 << 20)}), "archive_too_large"),
])  # fmt: skip
def test_files_that_are_no_models_are_refused_by_name(
    name: str, content: bytes, code: str, tmp_path: Path
) -> None:
    assert _refusal(tmp_path, name, content) == code


def test_an_archive_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    content = _zip({"Manifest.json": MANIFEST, "Data/x": bytes(5000)})
    lie = content.replace((5000).to_bytes(4, "little"), (500).to_bytes(4, "little"))
    assert lie != content
    assert _refusal(tmp_path, "a.zip", lie) == "archive_damaged"

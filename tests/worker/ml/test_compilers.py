"""Every compiled file says what the Keras network says, and is the same bytes each time."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from server.domain.variants import COREML_TARGETS, MENU
from tests.worker.ml.conftest import LABELS, SMALL_SIDE, Photos
from worker.ml import compilers, evaluation
from worker.ml.compilers import mlpackage
from worker.ml.compilers.coreml_check import check_package
from worker.ml.compression import RECIPES
from worker.ml.compression.palettes import find_palette
from worker.ml.errors import CompilationFailed
from worker.ml.preprocessing import default_preprocessing

if TYPE_CHECKING:
    import keras

REPOSITORY = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.ml


def test_two_processes_make_the_same_bytes(
    load_photos: Callable[[int, int], Photos], weights_folder: Path, tmp_path: Path
) -> None:
    large, small = load_photos(5, 224), load_photos(5, SMALL_SIDE)
    stored = tmp_path / "photos.npz"
    np.savez(stored, large=large.images, small=small.images, indexes=small.indexes)
    processes = []
    for order in ("forwards", "backwards"):
        folder = tmp_path / order
        folder.mkdir()
        command = ["-m", "tests.worker.ml.compile_all", stored, weights_folder, folder, order]
        processes.append(
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outcomes = [(*process.communicate(), process.returncode) for process in processes]
    assert [status for _, _, status in outcomes] == [0, 0], outcomes[0][1][-2000:]
    first, second = (json.loads(output.splitlines()[-1]) for output, _, _ in outcomes)
    assert len(first) == 3 + len(compilers.VARIANTS)
    assert first == second


def test_the_menu_is_what_the_compilers_make() -> None:
    assert [f"{runtime}:{precision}" for runtime, precision in compilers.VARIANTS] == [*MENU]
    assert compilers.COREML_TARGETS == COREML_TARGETS
    trained = {":".join(kind) for kind, recipe in RECIPES.items() if recipe.is_tuned}
    assert trained == {name for name, kind in MENU.items() if kind.is_trained}


def test_every_variant_passes_its_own_checks(
    made: dict[tuple[str, str], compilers.CompiledFile],
) -> None:
    assert [file.failures for file in made.values()] == [[]] * len(made)
    assert made["tflite", "float16"].requires["operators"]["CONV_2D"] >= 1
    assert made["coreml", "float16"].requires["ios"] == "15.0"
    # Palettes raise the oldest system without a word: it is read from the finished file.
    assert made["coreml", "palette8"].requires["ios"] == "16.0"


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_tflite_files_agree_with_keras_on_photos(
    made: dict[tuple[str, str], compilers.CompiledFile],
    small_model: keras.Model,
    small_photos: Photos,
    precision: str,
) -> None:
    exact = evaluation.predict_keras(small_model, small_photos.images)
    # A guard: where all answers are alike, everything agrees.
    spread = exact.std(axis=0).max()
    assert spread > 0.01
    answers, latency = evaluation.predict_tflite(
        made["tflite", precision].data, small_photos.images
    )
    tolerance = {"float32": 1e-4, "float16": 0.05, "int8": 0.5}[precision]
    assert np.sqrt(((answers - exact) ** 2).mean()) < tolerance * spread
    assert latency["p95"] >= latency["p50"] > 0


def test_the_labels_file_stands_where_other_readers_look(
    made: dict[tuple[str, str], compilers.CompiledFile],
) -> None:
    with zipfile.ZipFile(io.BytesIO(made["tflite", "int8"].data)) as archive:
        assert archive.read("labels.txt").decode().splitlines() == LABELS


def test_precision_is_worth_its_bytes(
    made: dict[tuple[str, str], compilers.CompiledFile],
) -> None:
    sizes = {variant: len(file.data) for variant, file in made.items()}
    assert sizes["tflite", "float32"] > sizes["tflite", "float16"] > sizes["tflite", "int8"]
    assert sizes["coreml", "float16"] > sizes["coreml", "palette8"]


def test_a_package_is_a_plain_archive_with_stable_ids(
    made: dict[tuple[str, str], compilers.CompiledFile],
) -> None:
    data = made["coreml", "float16"].data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
        assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
        assert [entry.filename for entry in entries] == [
            "recyclables.mlpackage/Manifest.json",
            "recyclables.mlpackage/Data/com.apple.CoreML/model.mlmodel",
            "recyclables.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
        ]
    assert mlpackage.pack(mlpackage.unpack(data), "recyclables") == data


def _tampered(data: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    package = mlpackage.unpack(data)
    files = dict(package.files)
    change(files)
    return mlpackage.pack(mlpackage.Package(package.root, files, package.items), "x")


def _failing(data: bytes, model: keras.Model, labels: list[str] = LABELS) -> set[str]:
    checks = check_package(data, labels=labels, keras_model=model)
    return {check["name"] for check in checks if not check["passed"]}


@pytest.mark.parametrize("precision", ["float16", "palette8"])
def test_a_package_that_says_something_else_is_caught(
    made: dict[tuple[str, str], compilers.CompiledFile], small_model: keras.Model, precision: str
) -> None:
    data = made["coreml", precision].data
    assert _failing(data, small_model) == set()

    def swap_labels(files: dict[str, bytes]) -> None:
        _edit(files, lambda text: text.replace(b"glass", b"@@@@@").replace(b"metal", b"glass")
              .replace(b"@@@@@", b"metal"))  # fmt: skip

    def scale_a_weight(files: dict[str, bytes]) -> None:
        content = bytearray(files[mlpackage.WEIGHTS_PATH])
        # High byte of a float16 or index of a palette, near the end: inside the largest layer.
        content[len(content) * 3 // 4 | 1] ^= 0b1000
        files[mlpackage.WEIGHTS_PATH] = bytes(content)

    def cut_short(files: dict[str, bytes]) -> None:
        files[mlpackage.WEIGHTS_PATH] = files[mlpackage.WEIGHTS_PATH][: 1 << 10]

    def lose_weights(files: dict[str, bytes]) -> None:
        del files[mlpackage.WEIGHTS_PATH]

    assert _failing(_tampered(data, swap_labels), small_model) == {"labels"}
    assert _failing(_tampered(data, scale_a_weight), small_model) == {"weights"}
    assert _failing(_tampered(data, cut_short), small_model) == {"structure"}
    assert _failing(_tampered(data, lose_weights), small_model) == {"structure"}
    assert _failing(data[:-100], small_model) == {"structure"}
    assert _failing(data, small_model, LABELS[::-1]) == {"labels"}


def test_a_package_of_another_network_is_caught(
    made: dict[tuple[str, str], compilers.CompiledFile], small_model: keras.Model
) -> None:
    import keras

    other = keras.models.clone_model(small_model)
    other.set_weights([array * 1.01 for array in small_model.get_weights()])
    assert _failing(made["coreml", "float16"].data, other) == {"weights", "execution"}


def _edit(files: dict[str, bytes], change: Callable[[bytes], bytes]) -> None:
    files[mlpackage.MODEL_PATH] = change(files[mlpackage.MODEL_PATH])


def test_a_palette_is_the_nearest_and_hardly_coarser_than_rounding() -> None:
    weights = np.random.default_rng(2).standard_t(4, size=(64, 80)).astype(np.float16)
    palette, indexes = find_palette(weights, 256)
    assert palette.shape == (256,)
    assert palette.dtype == np.float16
    errors = palette[indexes].astype(float) - weights.reshape(-1)
    assert np.sqrt((errors**2).mean()) < 0.02 * weights.astype(float).std()
    nearest = np.abs(weights.reshape(-1, 1).astype(float) - palette.astype(float)).min(axis=1)
    assert np.abs(errors) == pytest.approx(nearest)


def test_few_different_weights_survive_a_palette_exactly() -> None:
    weights = np.resize(np.array([0.5, -1.25, 3], dtype=np.float16), (60, 60))
    palette, indexes = find_palette(weights, 256)
    assert (palette[indexes] == weights.reshape(-1)).all()


def test_int8_without_photos_is_refused(small_model: keras.Model) -> None:
    with pytest.raises(CompilationFailed) as caught:
        compilers.compile_variant(
            small_model,
            "tflite",
            "int8",
            labels=LABELS,
            preprocessing=default_preprocessing(SMALL_SIDE),
            name="recyclables",
            version="3",
        )
    assert caught.value.code == "calibration_missing"


def test_labels_have_to_fit_the_network(small_model: keras.Model) -> None:
    with pytest.raises(CompilationFailed) as caught:
        compilers.compile_variant(
            small_model,
            "tflite",
            "float32",
            labels=LABELS[:5],
            preprocessing=default_preprocessing(SMALL_SIDE),
            name="recyclables",
            version="3",
        )
    assert caught.value.code == "label_count_mismatch"

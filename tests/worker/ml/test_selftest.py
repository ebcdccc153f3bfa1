"""A file's own answers to drawn pictures tell it from the same network with a fault in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nightferry
import numpy as np
import pytest
from nightferry.selftest import SelfTestReport, run_selftest

from server import blobs
from server.registry import actions as registry
from server.registry.models import ModelVersion
from tests.support.factories import make_model
from tests.worker.ml.conftest import BACKBONE, LABELS, SMALL_SIDE, Photos
from worker.ml import compilers, training
from worker.ml.architectures import find_architecture
from worker.ml.embeddings import Embedder
from worker.ml.errors import ModelUnusable
from worker.ml.preprocessing import Preprocessing, default_preprocessing
from worker.ml.selftest import SelfTest, draw_picture, enlarge, make_selftest
from worker.ml.weights import find_weights
from worker.pipelines import variants

if TYPE_CHECKING:
    import keras

pytestmark = pytest.mark.ml
PREPROCESSING = default_preprocessing(224)


@dataclass(frozen=True)
class Trained:
    """A MobileNetV2 with a head for real photos, and its file with its self-test."""

    network: keras.Model
    images: list[Any]
    content: bytes
    selftest: SelfTest


@pytest.fixture(scope="module")
def trained(
    load_photos: Callable[[int, int], Photos],
    weights_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    photos = load_photos(10, 224)
    architecture = find_architecture(BACKBONE)
    weights = find_weights(BACKBONE, weights_folder, allow_download=False)
    features = Embedder(architecture, weights, tmp_path_factory.mktemp("embedder")).embed(
        photos.images
    )
    head = training.train_head(
        features, photos.indexes, label_count=len(LABELS), seed=1, progress=lambda *_: None
    )
    network = training.assemble(architecture, weights, head, LABELS)
    content = _compile(network)
    return Trained(network, photos.images, content, make_selftest(content, PREPROCESSING))


def _compile(network: keras.Model, precision: str = "float32", images: Any = ()) -> bytes:
    return compilers.compile_variant(
        network,
        "tflite",
        precision,
        labels=LABELS,
        preprocessing=PREPROCESSING,
        calibration_images=images,
        name="recyclables",
        version="3",
    ).data


def _try(
    folder: Path, content: bytes, selftest: SelfTest, steps: Preprocessing = PREPROCESSING
) -> SelfTestReport | str:
    """Return a device's report on a file, or the code of its refusal."""
    path = folder / "model.tflite"
    path.write_bytes(content)
    try:
        return run_selftest(
            path,
            preprocessing=steps.to_manifest(),
            selftest=selftest.member,
            expected_sha256=selftest.member["sha256"],
        )
    except nightferry.SelfTestError as error:
        return error.code


def test_a_device_gets_the_server_s_answers(trained: Trained, tmp_path: Path) -> None:
    report = _try(tmp_path, trained.content, trained.selftest)
    assert isinstance(report, SelfTestReport)
    assert report.max_difference < 1e-3
    document = json.loads(trained.selftest.member["data"])
    assert len(trained.selftest.member["data"]) <= 6000
    assert len(document["inputs"]) == 4
    # Clear answers, and not always the same one.
    ordered = np.sort(document["outputs"], axis=1)
    assert (ordered[:, -1] - ordered[:, -2]).min() > 2 * document["tolerance"]
    assert len(set(trained.selftest.labels)) >= 3
    assert make_selftest(trained.content, PREPROCESSING) == trained.selftest


def _exchange_two_outputs(network: keras.Model) -> None:
    order = [0, 2, 1, 3, 4, 5]
    kernel, bias = network.layers[-1].get_weights()
    network.layers[-1].set_weights([kernel[:, order], bias[order]])


def _swap_channels(network: keras.Model) -> None:
    first = _first_convolution(network)
    kernel, *others = first.get_weights()
    first.set_weights([kernel[:, :, ::-1, :], *others])


def _scale_pixels(network: keras.Model) -> None:
    first = _first_convolution(network)
    kernel, *others = first.get_weights()
    first.set_weights([kernel / 127.5, *others])


def _forget_the_head(network: keras.Model) -> None:
    network.layers[-1].set_weights([0 * array for array in network.layers[-1].get_weights()])


def _first_convolution(network: keras.Model) -> Any:
    layers = [one for layer in network.layers for one in getattr(layer, "layers", [layer])]
    return next(layer for layer in layers if type(layer).__name__ == "Conv2D")


@pytest.mark.parametrize(
    "damage",
    [_exchange_two_outputs, _swap_channels, _scale_pixels, _forget_the_head],
    ids=lambda damage: damage.__name__.strip("_"),
)
def test_a_network_with_a_fault_is_refused(
    trained: Trained, tmp_path: Path, damage: Callable[[keras.Model], None]
) -> None:
    network = training.load_keras(training.save_keras(trained.network))
    damage(network)
    refusal = _try(tmp_path, _compile(network), trained.selftest)
    assert refusal in {"selftest_wrong_top1", "selftest_differs"}


@pytest.mark.parametrize(
    "steps",
    [
        Preprocessing(224, 224, std=(255.0,) * 3),
        Preprocessing(224, 224, mean=(127.5,) * 3, std=(127.5,) * 3),
    ],
    ids=["0..1", "-1..1"],
)
def test_pixels_scaled_another_way_are_noticed(
    trained: Trained, tmp_path: Path, steps: Preprocessing
) -> None:
    assert _try(tmp_path, trained.content, trained.selftest, steps) == "selftest_wrong_top1"


def test_damaged_weights_are_noticed(trained: Trained, tmp_path: Path) -> None:
    middle = len(trained.content) // 2
    damaged = bytearray(trained.content)
    damaged[middle : middle + 4096] = bytes(4096)
    assert str(_try(tmp_path, bytes(damaged), trained.selftest)).startswith("selftest_")


def test_an_int8_file_has_answers_of_its_own(trained: Trained, tmp_path: Path) -> None:
    content = _compile(trained.network, "int8", trained.images)
    own = make_selftest(content, PREPROCESSING)
    assert own.member["data"] != trained.selftest.member["data"]
    assert isinstance(_try(tmp_path, content, own), SelfTestReport)
    network = training.load_keras(training.save_keras(trained.network))
    _swap_channels(network)
    swapped = _compile(network, "int8", trained.images)
    assert _try(tmp_path, swapped, own) == "selftest_wrong_top1"


def test_a_file_without_a_clear_answer_has_no_self_test(small_model: keras.Model) -> None:
    import keras

    flat = keras.models.clone_model(small_model)
    flat.set_weights([0 * array for array in small_model.get_weights()])
    content = compilers.compile_variant(
        flat,
        "tflite",
        "float32",
        labels=LABELS,
        preprocessing=default_preprocessing(SMALL_SIDE),
        name="recyclables",
        version="3",
    ).data
    with pytest.raises(ModelUnusable) as caught:
        make_selftest(content, default_preprocessing(SMALL_SIDE))
    assert caught.value.code == "selftest_impossible"


def test_pictures_are_enlarged_as_the_format_says() -> None:
    picture = draw_picture(2)
    large = enlarge(picture, Preprocessing(width=50, height=33))
    assert large.shape == (33, 50, 3)
    for y, x in ((0, 0), (32, 49), (17, 3), (2, 31)):
        assert (large[y, x] == picture[y * 16 // 33, x * 16 // 50]).all()


@pytest.mark.django_db
def test_a_night_records_it_with_each_file(trained: Trained) -> None:
    class Log:
        """What a run's log is told."""

        lines: list[str] = []

        def progress(self, *_: object) -> None:
            pass

        def say(self, stage: str, text: str, level: str = "info") -> None:
            self.lines.append(f"{stage} {level}: {text}")

    version = registry.draft_version(
        model=make_model(labels=LABELS),
        source=ModelVersion.Source.TRAINED,
        labels=LABELS,
        lineage={},
        preprocessing=PREPROCESSING.to_manifest(),
    )
    reference = variants.Reference(
        trained.network,
        images=(),
        targets=np.zeros(0, np.int64),
        probabilities=np.zeros((0, len(LABELS)), np.float32),
        calibration=(),
        preprocessing=PREPROCESSING,
    )
    kinds = ["tflite:float32", "coreml:float16"]
    log: Any = Log()
    tflite, coreml = variants.compile_variants(
        version,
        reference,
        kinds=kinds,
        tolerance=1.0,
        min_agreement=0.0,
        store=blobs.store(),
        reporter=log,
    )
    for variant in (tflite, coreml):
        text = variant.selftest["data"]
        assert variant.selftest["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    # Two ways of calculating the same network: their answers differ by rounding, not in kind.
    ours, theirs = (json.loads(one.selftest["data"]) for one in (tflite, coreml))
    shared = [place for place in theirs["inputs"] if place in ours["inputs"]]
    for picture in shared:
        exact = ours["outputs"][ours["inputs"].index(picture)]
        rounded = theirs["outputs"][theirs["inputs"].index(picture)]
        assert rounded == pytest.approx(exact, abs=theirs["tolerance"])
    assert sum("self-test of 4 pictures" in line for line in log.lines) == 2

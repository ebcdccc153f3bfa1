"""From an image to labels, with a real quantised network and real photos."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import nightferry
import nightferry.usage
import numpy as np
import pytest
from nightferry import ModelClient
from nightferry.prediction import dequantise, quantise
from nightferry.preprocessing import Preprocessing, load_image
from nightferry.testing import DEFAULT_PREPROCESSING, FakeServer
from PIL import Image

from tests.support.data import data_folder

from .conftest import ClientFactory
from .support import LABELS, NAME

TOP_1 = {
    "cat_1080p.jpg": "Egyptian cat",
    "parrot.jpg": "macaw",
    "hot_dog.jpg": "hotdog, hot dog, red hot",
    "grace_hopper.bmp": "military uniform",
}


@pytest.fixture
def weights() -> Path:
    return data_folder("weights")


@pytest.fixture
def imagenet(server: FakeServer, client: ModelClient, weights: Path) -> ModelClient:
    """Publish a real uint8 MobileNetV2 and bring it in."""
    labels = (weights / "imagenet_labels.txt").read_text().splitlines()
    content = (weights / "tf2_mobilenet_v2_1.0_224_ptq.tflite").read_bytes()
    server.publish(NAME, content, labels)
    client.get_model(NAME)
    return client


@pytest.mark.parametrize("photo", TOP_1)
def test_known_photos_are_recognised(imagenet: ModelClient, weights: Path, photo: str) -> None:
    ranked = imagenet.load(NAME, num_threads=1).predict(weights / "check_photos" / photo)
    assert ranked[0][0] == TOP_1[photo]
    assert len(ranked) == 1001
    probabilities = [probability for _, probability in ranked]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0.5 < sum(probabilities) < 1.1, "steps of 1/256 leave small ones out"


def test_one_photo_in_every_form_and_orientation(imagenet: ModelClient, weights: Path) -> None:
    path = weights / "check_photos" / "cat_1080p.jpg"
    predictor = imagenet.load(NAME, num_threads=1)
    reference = predictor.predict(path, top=5)
    with Image.open(path) as image, path.open("rb") as file:
        assert predictor.predict(image, top=5) == reference
        assert predictor.predict(np.asarray(image.convert("RGB")), top=5) == reference
        assert predictor.predict(path.read_bytes(), top=5) == reference
        assert predictor.predict(file, top=5) == reference
        assert predictor.predict(str(path), top=5) == reference
        turned, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        image.rotate(90, expand=True).save(turned, "PNG", exif=exif)
    assert predictor.predict(turned.getvalue(), top=5) == reference


def test_the_first_prediction_is_told_once(
    imagenet: ModelClient, weights: Path, server: FakeServer
) -> None:
    for _ in range(2):
        imagenet.load(NAME, num_threads=1).predict(weights / "check_photos" / "parrot.jpg")
    imagenet.flush_events()
    first = [event for event in server.events if event["type"] == "first_inference"]
    assert len(first) == 1
    assert first[0]["data"]["latency_ms"] > 0
    (timed,) = [event for event in server.events if event["type"] == "latency"]
    assert timed["data"]["count"] == sum(timed["data"]["histogram"].values()) == 2


def test_an_arm_given_while_a_model_is_loaded_is_told_by_its_next_prediction(
    imagenet: ModelClient, weights: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nightferry.usage, "_LOOK_AGAIN_S", 0)
    predictor = imagenet.load(NAME, num_threads=1)
    predictor.predict(weights / "check_photos" / "parrot.jpg")
    server.enrol(NAME, {"rollout": "7", "arm": "control"})
    imagenet.sync(NAME)
    predictor.predict(weights / "check_photos" / "parrot.jpg")
    imagenet.flush_events()
    first = [event["enrolment"] for event in server.events if event["type"] == "first_inference"]
    assert first == [None, {"rollout": "7", "arm": "control"}]


def test_a_model_that_cannot_be_loaded_or_run_is_told_once(
    server: FakeServer, client: ModelClient, weights: Path
) -> None:
    content = (weights / "tf2_mobilenet_v2_1.0_224_ptq.tflite").read_bytes()
    server.publish(NAME, content, LABELS)
    client.get_model(NAME)
    with pytest.raises(nightferry.PredictionError):
        client.load(NAME)
    client.flush_events()
    (failed,) = [event for event in server.events if event["type"] == "failed"]
    assert failed["data"]["code"] == "load"


def test_a_loaded_model_outlives_its_file(imagenet: ModelClient, weights: Path) -> None:
    predictor = imagenet.load(NAME, num_threads=1)
    imagenet.delete_model(NAME)
    assert predictor.predict(weights / "check_photos" / "parrot.jpg", top=1)[0][0] == "macaw"


def test_a_changed_file_is_not_run(imagenet: ModelClient) -> None:
    path = imagenet.list_models()[0].path
    path.chmod(0o644)
    damaged = bytearray(path.read_bytes())
    damaged[1_000_000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(nightferry.IntegrityError, match="nightferry verify"):
        imagenet.load(NAME)


@pytest.mark.parametrize(
    ("members", "error", "word"),
    [
        ({"labels": ["a", "b"]}, nightferry.PredictionError, "there are 2 labels"),
        ({"preprocessing": {}}, nightferry.PredictionError, "not known"),
        (
            {"preprocessing": {**DEFAULT_PREPROCESSING, "width": 96}},
            nightferry.PredictionError,
            r"takes \(1, 224, 224, 3\)",
        ),
        (
            {"preprocessing": {**DEFAULT_PREPROCESSING, "fit": "letterbox"}},
            nightferry.PreprocessingError,
            "fit = 'letterbox'",
        ),
        (
            {"preprocessing": {**DEFAULT_PREPROCESSING, "color_space": "BGR"}},
            nightferry.PreprocessingError,
            "color_space",
        ),
        (
            {"preprocessing": {**DEFAULT_PREPROCESSING, "std": [1, 0, 1]}},
            nightferry.PreprocessingError,
            "std",
        ),
    ],
)
def test_what_does_not_fit_is_told(
    server: FakeServer, imagenet: ModelClient, members: dict[str, object], error, word: str
) -> None:
    server.amend(NAME, label="v9", **members)
    imagenet.sync(NAME)
    with pytest.raises(error, match=word):
        imagenet.load(NAME)


def test_a_file_that_is_no_model(server: FakeServer, client: ModelClient) -> None:
    server.publish(NAME, b"TFL3" * 100, LABELS)
    with pytest.raises(nightferry.PredictionError, match="not a model"):
        client.load(NAME)


def test_a_runtime_that_is_missing(imagenet: ModelClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(nightferry.RuntimeMissingError, match="pip install"):
        imagenet.load(NAME)


def test_a_coreml_model_is_a_file_and_no_more(
    server: FakeServer, make_client: ClientFactory
) -> None:
    server.publish(NAME, b"zip", LABELS)
    _, manifest, _ = server.answer_update(NAME, None)
    server.amend(NAME, artifact={**manifest["artifact"], "runtime": "coreml"})
    client = make_client(runtime="coreml")
    assert client.get_model(NAME).runtime == "coreml"
    with pytest.raises(nightferry.PredictionError, match="coreml"):
        client.load(NAME)


@pytest.mark.parametrize("source", [b"", b"no image", "nowhere.jpg", io.BytesIO(b"\xff\xd8\xff")])
def test_what_is_no_image_is_told(source: object) -> None:
    with pytest.raises(nightferry.PreprocessingError, match="cannot be read"):
        load_image(source)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL", "ignore::Warning:PIL")
def test_nasty_images_are_an_image_or_an_error() -> None:
    """Every third file of the collection: no crash, no other exception."""
    files = sorted(p for p in data_folder("nasty_images").rglob("*") if p.is_file())
    assert len(files) > 200
    small = Preprocessing.from_manifest({**DEFAULT_PREPROCESSING, "width": 32, "height": 32})
    read = 0
    for path in files[::3]:
        if path.stat().st_size > 2_000_000:
            continue
        try:
            tensor = small.apply(load_image(path))
        except nightferry.PreprocessingError:
            continue
        read += 1
        assert tensor.shape == (1, 32, 32, 3)
        assert np.isfinite(tensor).all()
    assert read > 15


# The numbers


def _pixels(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_preprocessing_is_resize_then_mean_and_std_in_float32() -> None:
    document = {
        **DEFAULT_PREPROCESSING,
        "width": 20,
        "height": 10,
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
    }
    image = _pixels(64, 48)
    tensor = Preprocessing.from_manifest(document).apply(image)
    resized = np.asarray(image.resize((20, 10), Image.Resampling.BILINEAR), dtype=np.float32)
    mean, std = np.array(document["mean"], "f4"), np.array(document["std"], "f4")
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, ((resized - mean) / std)[None])


@pytest.mark.parametrize(
    ("size", "target", "box"),
    [
        ((100, 50), (10, 10), (25, 0, 75, 50)),
        ((50, 100), (10, 10), (0, 25, 50, 75)),
        ((101, 50), (10, 10), (25.5, 0, 75.5, 50)),
        ((64, 64), (20, 10), (0, 16, 64, 48)),
        ((20, 10), (20, 10), (0, 0, 20, 10)),
    ],
)
def test_the_centre_crop_keeps_the_target_s_shape(
    size: tuple[int, int], target: tuple[int, int], box: tuple[float, ...]
) -> None:
    width, height = target
    document = {**DEFAULT_PREPROCESSING, "width": width, "height": height, "fit": "center_crop"}
    steps = Preprocessing.from_manifest(document)
    assert steps.crop_box(*size) == box
    image = _pixels(*size)
    cropped = image.resize(target, Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(cropped, dtype=np.float32)
    np.testing.assert_array_equal(steps.apply(image)[0], (pixels - 127.5) / np.float32(127.5))


def test_missing_steps_have_their_defaults() -> None:
    steps = Preprocessing.from_manifest({"width": 8, "height": 8})
    assert (steps.fit, steps.mean, steps.std) == ("stretch", (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantised_tensors_go_there_and_back(dtype: type) -> None:
    details = {"dtype": dtype, "quantization": (0.5, 3), "name": "x"}
    values = np.array([[-1000.0, -1.5, 0.0, 0.26, 10.0, 1000.0]], dtype=np.float32)
    quantised = quantise(values, details)
    limits = np.iinfo(dtype)
    expected = np.clip([-1997, 0, 3, 4, 23, 2003], limits.min, limits.max)
    np.testing.assert_array_equal(quantised[0], expected)
    back = dequantise(quantised, details)[0]
    np.testing.assert_array_equal(back[1:5], [-1.5, 0.0, 0.5, 10.0])
    with pytest.raises(nightferry.PredictionError, match="no scale"):
        quantise(values, {**details, "quantization": (0.0, 0)})

"""Models that are no classifiers come in, keep their signature, and are tried on drawn inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nightferry
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nightferry.selftest import run_selftest
from nightferry.tensors import fill

from tests.support.data import data_folder
from worker.ml import signatures, training, vectors
from worker.ml.compilers import About
from worker.ml.compilers.tensors import compile_tensors
from worker.ml.errors import CompilationFailed, ModelUnusable, UploadRejected
from worker.ml.signatures import Tensor, TFLiteRunner
from worker.ml.uploads import Inspected, inspect_upload

if TYPE_CHECKING:
    import keras

SIDE = 32
ABOUT = About("mine", "1")


def detector() -> keras.Model:
    """Like an SSD: boxes and scores at two scales."""
    from keras import Input, Model, layers

    photo = Input((SIDE, SIDE, 3), name="photo")
    fine = layers.Conv2D(8, 3, 4, "same", activation="relu")(layers.Rescaling(1 / 127.5, -1)(photo))
    coarse = layers.Conv2D(16, 3, 2, "same", activation="relu")(fine)
    boxes = [layers.Reshape((-1, 4))(layers.Conv2D(8, 1)(one)) for one in (fine, coarse)]
    scores = [layers.Reshape((-1, 3))(layers.Conv2D(6, 1)(one)) for one in (fine, coarse)]
    return Model(
        photo,
        {
            "boxes": layers.Concatenate(1)(boxes),
            "scores": layers.Activation("sigmoid")(layers.Concatenate(1)(scores)),
        },
    )


def segmenter() -> keras.Model:
    """Like a U-Net: down, up, and a short cut, for photos of any size."""
    from keras import Input, Model, layers

    photo = Input((None, None, 3), name="photo")
    near = layers.Conv2D(6, 3, padding="same", activation="relu")(layers.Rescaling(1 / 255)(photo))
    far = layers.Conv2D(12, 3, 2, "same", activation="relu")(near)
    up = layers.Concatenate()([near, layers.UpSampling2D()(far)])
    return Model(photo, layers.Conv2D(2, 1, activation="softmax", name="mask")(up))


def regressor() -> keras.Model:
    """One number from a row of measurements and two flags."""
    from keras import Input, Model, layers

    row, flags = Input((6,), name="row"), Input((2,), dtype="int32", name="flags")
    both = layers.Concatenate()([row, layers.Rescaling(1.0)(flags)])
    return Model([row, flags], layers.Dense(1, name="weight")(layers.Dense(8, "relu")(both)))


def _answer(model: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda values: {
        name: np.asarray(one) for name, one in signatures.run_keras(model, values).items()
    }


def _settled(model: Any) -> tuple[list[Tensor], list[vectors.Range]]:
    inputs = signatures.settle(signatures.keras_signature(model)[0], _answer(model))
    return inputs, [vectors.choose_range(one) for one in inputs]


def _compile(model: Any, kind: str) -> bytes:
    inputs, ranges = _settled(model)
    drawn = vectors.draw_candidates(inputs)
    calibration = [vectors.draw(case, inputs, ranges) for case in drawn]
    return compile_tensors(model, kind, inputs, calibration=calibration, about=ABOUT).data


def _inspect(tmp_path: Path, name: str, content: bytes, **more: Any) -> Inspected:
    path = tmp_path / "upload"
    path.write_bytes(content)
    return inspect_upload(path, name, **more)


def _passes(tmp_path: Path, content: bytes, member: dict[str, Any]) -> None:
    path = tmp_path / "file.tflite"
    path.write_bytes(content)
    run_selftest(path, preprocessing={}, selftest=member, expected_sha256=member["sha256"])


@pytest.mark.ml
@pytest.mark.parametrize(
    ("make", "inputs", "outputs"),
    [
        (detector, {"photo": [1, SIDE, SIDE, 3]}, {"boxes": [1, 160, 4], "scores": [1, 160, 3]}),
        (segmenter, {"photo": [1, 64, 64, 3]}, {"mask": [1, 64, 64, 2]}),
        (regressor, {"flags": [1, 2], "row": [1, 6]}, {"weight": [1, 1]}),
    ],
)
def test_a_file_that_is_no_classifier_is_tried_like_on_a_device(
    make: Callable[[], Any], inputs: dict[str, Any], outputs: dict[str, Any], tmp_path: Path
) -> None:
    content = _compile(make(), "tflite:float32")
    found = _inspect(tmp_path, "mine.tflite", content, known_labels=["a", "b"])
    assert found.task == "other"
    assert {one["name"]: one["shape"] for one in found.inputs} == inputs
    assert {one["name"]: one["shape"] for one in found.outputs} == outputs
    assert not found.unchecked
    assert found.latency_ms["p50"] > 0
    assert len(found.selftest["data"]) < 8000
    _passes(tmp_path, content, found.selftest)
    document = json.loads(found.selftest["data"])
    for case in document["cases"]:
        case["values"][0] = [value + 3 * _spread(document) for value in case["values"][0]]
    text = json.dumps(document)
    wrong = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(nightferry.SelfTestDiffersError):
        _passes(tmp_path, content, {"format": 1, "sha256": wrong, "data": text})


def _spread(document: dict[str, Any]) -> float:
    return float(document["outputs"][0]["tolerance"])


@pytest.mark.ml
@pytest.mark.parametrize("make", [detector, segmenter, regressor])
def test_a_network_is_compiled_and_agrees_with_itself(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    model = make()
    inputs, ranges = _settled(model)
    values = [vectors.draw(one, inputs, ranges) for one in vectors.draw_candidates(inputs)]
    answers = [_answer(model)(one) for one in values]
    found = _inspect(tmp_path, "mine.keras", training.save_keras(model))
    assert (found.task, found.kind) == ("other", "keras")
    for kind, limit in (("float32", 1e-4), ("float16", 0.01), ("int8", 0.06)):
        content = _compile(model, f"tflite:{kind}")
        assert content == _compile(model, f"tflite:{kind}")
        runner = TFLiteRunner(content)
        assert {one.name for one in runner.inputs} == {one.name for one in inputs}
        compared = vectors.compare([runner.run(one) for one in values], answers)
        # A network that answers everything alike would agree with anything.
        assert all(one["moves"] > 0.02 * one["spread"] for one in compared["outputs"].values())
        assert compared["mean"] < limit
    with pytest.raises(CompilationFailed):
        _compile(model, "coreml:joint")


@pytest.mark.ml
def test_a_package_that_is_no_classifier_is_calculated_here(tmp_path: Path) -> None:
    model = detector()
    content = _compile(model, "coreml:float16")
    found = _inspect(tmp_path, "mine.mlpackage.zip", content)
    assert (found.task, found.unchecked) == ("other", "")
    assert {one["name"] for one in found.outputs} == {"boxes", "scores"}
    document = json.loads(found.selftest["data"])
    inputs, _ = _settled(model)
    (one,) = document["inputs"]
    for case in document["cases"]:
        drawn = vectors.fill(inputs[0], case["seeds"][0], case["cells"][0], (0, 255))
        answers = _answer(model)({one["name"]: drawn})
        for output, values in zip(document["outputs"], case["values"], strict=True):
            ours = answers[output["name"]].reshape(-1)[output["at"]]
            assert np.abs(ours - values).max() < output["tolerance"]


@pytest.mark.ml
@pytest.mark.parametrize("name", ["FlexErfc", "MyOperator"])
def test_operators_that_an_app_has_to_bring_are_named_and_nothing_is_run(
    name: str, tmp_path: Path
) -> None:
    from ai_edge_litert import schema_py_generated as schema

    from worker.ml.compilers import tflite

    model = schema.ModelT.InitFromPackedBuf(_compile(regressor(), "tflite:float32"), 0)
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = name
    found = _inspect(tmp_path, "mine.tflite", tflite._pack(model))
    assert found.foreign_operators == [name]
    assert name in found.unchecked
    assert ("Flex delegate" in found.unchecked) == name.startswith("Flex")
    assert (found.task, found.selftest) == ("other", {})
    assert {tuple(one["shape"]) for one in found.inputs} == {(1, 6), (1, 2)}


def test_a_real_quantised_file_is_a_classifier_unless_it_is_said_not_to_be(tmp_path: Path) -> None:
    folder = data_folder("weights")
    content = (folder / "tf2_mobilenet_v2_1.0_224_ptq.tflite").read_bytes()
    labels = (folder / "imagenet_labels.txt").read_text().splitlines()
    found = _inspect(tmp_path, "theirs.tflite", content, labels=labels)
    assert found.task == "classification"
    other = _inspect(tmp_path, "theirs.tflite", content, task="other")
    assert other.task == "other"
    assert other.inputs[0]["dtype"] == "uint8"
    assert float(other.inputs[0]["scale"]) > 0
    _passes(tmp_path, content, other.selftest)
    with pytest.raises(UploadRejected) as refused:
        _inspect(tmp_path, "theirs.tflite", content, labels=["a", "b"])
    assert refused.value.code == "label_count_mismatch"


DTYPES = st.sampled_from(["float32", "float16", "uint8", "int8", "int32", "bool", "image"])


@given(
    st.data(),
    st.lists(st.integers(1, 9), max_size=4),
    DTYPES,
    st.integers(1, 2**32 - 1),
    st.sampled_from([(0, 1), (-1, 1), (0, 255), (-128, 127)]),
)
@settings(max_examples=60, deadline=None)
def test_device_and_server_draw_the_same(
    data: st.DataObject, shape: list[int], dtype: str, seed: int, limits: tuple[float, float]
) -> None:
    whole = {"uint8": (0, 255), "image": (0, 255), "bool": (0, 1), "int8": (-128, 127)}
    limits = whole.get(dtype, limits)
    cells = [data.draw(st.integers(1, side)) for side in shape]
    ours = vectors.fill(Tensor("x", tuple(shape), dtype), seed, cells, limits)
    theirs = fill(shape, dtype, cells, seed, *limits)
    assert ours.dtype == theirs.dtype
    assert ours.shape == tuple(shape)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.min() >= limits[0]
    assert ours.max() <= limits[1]


def test_what_answers_nothing_finite_or_comparable_gets_no_self_test() -> None:
    inputs = [Tensor("x", (1, 3), "float32")]
    with pytest.raises(ModelUnusable) as refused:
        vectors.record(lambda _: {"y": np.full((1, 2), np.nan)}, inputs, [(-1, 1)])
    assert refused.value.code == "outputs_not_finite"
    constant = vectors.record(lambda _: {"y": np.ones((1, 2))}, inputs, [(-1, 1)])
    assert "hardly depend" in constant.notes[0]

"""What an Edge TPU takes and what runtime a file asks for, read from the file itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tests.support.data import data_folder
from tests.worker.ml.conftest import LABELS, SMALL_SIDE
from worker.ml import compilers
from worker.ml.compilers import tflite
from worker.ml.compilers.tflite_check import inspect_edgetpu, minimum_runtime
from worker.ml.compilers.tflite_versions import oldest_runtime
from worker.ml.errors import ModelUnusable
from worker.ml.preprocessing import default_preprocessing

if TYPE_CHECKING:
    import keras

pytestmark = pytest.mark.ml


def _photos() -> list[Any]:
    generator = np.random.default_rng(5)
    return list(generator.integers(0, 256, (4, SMALL_SIDE, SMALL_SIDE, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def edgetpu(small_model: keras.Model) -> compilers.CompiledFile:
    return compilers.compile_variant(
        small_model,
        "tflite",
        "edgetpu",
        labels=LABELS,
        preprocessing=default_preprocessing(SMALL_SIDE),
        calibration_images=_photos(),
        name="recyclables",
        version="3",
    )


def test_a_file_for_the_edge_tpu_says_what_it_needs(edgetpu: compilers.CompiledFile) -> None:
    assert edgetpu.failures == []
    assert "edgetpu" in {check["name"] for check in edgetpu.checks}
    assert edgetpu.requires["edgetpu_runtime"] == "13"
    report = inspect_edgetpu(edgetpu.data)
    assert report.is_ready
    assert report.operators > 8


def test_a_file_that_runs_on_one_is_found_ready() -> None:
    published = data_folder("weights") / "tf2_mobilenet_v2_1.0_224_ptq.tflite"
    report = inspect_edgetpu(published.read_bytes())
    assert report.is_ready
    assert report.operators == 68


def test_floats_are_refused(small_model: keras.Model) -> None:
    report = inspect_edgetpu(tflite.convert(small_model, "float32"))
    assert any("float32" in reason for reason in report.refused)
    with pytest.raises(ModelUnusable):
        inspect_edgetpu(b"TFL3" * 9)


def _edited(content: bytes, edit: Callable[[Any], None]) -> bytes:
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    edit(model)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _first(model: Any, code: int) -> Any:
    return next(
        operator
        for operator in model.subgraphs[0].operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode == code
    )


def _dilate_across(model: Any) -> None:
    _first(model, schema.BuiltinOperator.CONV_2D).builtinOptions.dilationWFactor = 2


def _activate_in_pooling(model: Any) -> None:
    _first(model, schema.BuiltinOperator.MAX_POOL_2D).builtinOptions.fusedActivationFunction = 1


def _leave_a_side_open(model: Any) -> None:
    graph = model.subgraphs[0]
    tensor = graph.tensors[_first(model, schema.BuiltinOperator.MAX_POOL_2D).outputs[0]]
    tensor.shapeSignature = [-1, *tensor.shape[1:]]


def _take_two_photos(model: Any) -> None:
    graph = model.subgraphs[0]
    tensor = graph.tensors[_first(model, schema.BuiltinOperator.MAX_POOL_2D).outputs[0]]
    tensor.shape = [2, *tensor.shape[1:]]


def _use_another_operator(model: Any) -> None:
    pooling = _first(model, schema.BuiltinOperator.MAX_POOL_2D)
    model.operatorCodes[pooling.opcodeIndex].builtinCode = schema.BuiltinOperator.LEAKY_RELU


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_dilate_across, "CONV_2D, with different dilations"),
        (_activate_in_pooling, "MAX_POOL_2D, with an activation inside"),
        (_leave_a_side_open, "MAX_POOL_2D, whose sizes are not fixed"),
        (_take_two_photos, "has more than three long sides"),
        (_use_another_operator, "LEAKY_RELU, which is not on its list"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_it_does_not_take_is_named(
    edgetpu: compilers.CompiledFile, edit: Callable[[Any], None], said: str
) -> None:
    report = inspect_edgetpu(_edited(edgetpu.data, edit))
    assert not report.is_ready
    assert said in report.sentence


@pytest.mark.parametrize("precision", ["float32", "dynamic_int8", "edgetpu"])
def test_the_oldest_runtime_is_the_converter_s(small_model: keras.Model, precision: str) -> None:
    photos = [photo[np.newaxis].astype(np.float32) for photo in _photos()]
    content = tflite.convert(small_model, precision, calibration=photos)
    model = schema.Model.GetRootAsModel(content, 0)
    stated = (tflite.read_buffer(model, b"min_runtime_version") or b"").rstrip(b"\0").decode()
    operators = tflite.read_requires(content)["operators"]
    assert oldest_runtime(operators) == (stated, [])
    # A file that says nothing, or too little, needs the same.
    assert minimum_runtime(operators, None) == stated
    assert minimum_runtime(operators, "1.5.0") == stated
    assert minimum_runtime(operators, "2.99.0") == "2.99.0"


def test_an_unknown_version_is_named() -> None:
    assert oldest_runtime({"ADD": 99, "RESHAPE": 1}) == ("1.5.0", ["ADD 99"])
    assert oldest_runtime({"MyOwn": 1}) == (None, ["MyOwn 1"])
    assert minimum_runtime({"MyOwn": 1}, "2.3.0") == "2.3.0"

"""TFLite files: floats and integers of several widths, with labels and normalisation inside."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.compilers import tflite_check, tflite_metadata
from worker.ml.compilers.base import INPUT_NAME, OUTPUT_NAME, About, CompiledFile, check
from worker.ml.determinism import pin_tensorflow
from worker.ml.errors import CompilationFailed
from worker.ml.preprocessing import Pixels, Preprocessing, to_input

if TYPE_CHECKING:
    import keras

MEDIA_TYPE: Final = "application/vnd.tflite"
_FILE_IDENTIFIER: Final = b"TFL3"
_MIN_RUNTIME: Final = b"min_runtime_version"
_BUFFER_ALIGNMENT: Final = 16
_FLOAT_SHARE: Final = 0.01
_CALIBRATED: Final = ("int8", "int16x8", "edgetpu")
# What training steps leave is stored as float16, which has all their values.
_HALVED: Final = ("float16", "pruned50", "clustered16", "filter_pruned50")


def compile_file(
    model: keras.Model,
    precision: str,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    calibration_images: Sequence[Pixels],
    about: About,
) -> CompiledFile:
    """Return the finished file; see :func:`worker.ml.compilers.compile_variant`."""
    if precision in _CALIBRATED and not len(calibration_images):
        message = f"{precision} needs photos to calibrate with, and got none"
        raise CompilationFailed(message, code="calibration_missing")
    calibration = [to_input([image], preprocessing) for image in calibration_images]
    raw = convert(model, precision, calibration=calibration)
    content = _finish(raw, labels, preprocessing, about)
    requires, checks = read_requires(content), _check(content, labels, preprocessing)
    if precision == "edgetpu":
        requires["edgetpu_runtime"] = str(tflite_check.inspect_edgetpu(content).runtime)
        checks.append(tflite_check.check_edgetpu(content))
    return CompiledFile(
        runtime="tflite",
        precision=precision,
        filename=f"{about.name}-{about.version}-{precision}.tflite",
        media_type=MEDIA_TYPE,
        data=content,
        requires=requires,
        checks=checks,
    )


def convert(
    model: keras.Model,
    precision: str,
    *,
    calibration: Sequence[npt.NDArray[np.float32]] = (),
) -> bytes:
    """Return the network as TFLite takes it, for one photo at a time, with nothing added.

    By way of a SavedModel of the frozen graph: the converter's shorter way, from a function,
    writes a file without weights and says nothing; a SavedModel of the Keras network says the
    same at five times the cost.
    """
    tf = pin_tensorflow(0)
    frozen = freeze(model)
    module = tf.Module()
    module.serve = frozen
    with tempfile.TemporaryDirectory() as folder:
        # Nothing is trained from it, and a gradient of somebody's own (swish) cannot be saved.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, folder, signatures=frozen, options=options)
        try:
            if precision == "int8":
                return _quantise(folder, calibration)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            _set_up(converter, precision, calibration)
            with warnings.catch_warnings():
                # Of statistics that only training aware of quantisation would have.
                warnings.simplefilter("ignore", UserWarning)
                return bytes(converter.convert())
        except (ValueError, RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0][:300]
            message = f"the network cannot become a TFLite {precision} file: {reason}"
            raise CompilationFailed(message) from error


def _set_up(converter: Any, precision: str, calibration: Sequence[npt.NDArray[np.float32]]) -> None:
    """Tell the converter what numbers the file is to calculate with."""
    import tensorflow as tf

    if precision == "float32":
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision in _HALVED:
        converter.target_spec.supported_types = [tf.float16]
    if precision in _CALIBRATED:
        converter.representative_dataset = lambda: ([photo] for photo in calibration)
    if precision == "int16x8":
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
            tf.lite.OpsSet.TFLITE_BUILTINS,
        ]
    if precision == "edgetpu":
        # Everything in integers, or the compiler for the accelerator leaves it to the CPU.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8


def _quantise(folder: str, calibration: Sequence[npt.NDArray[np.float32]]) -> bytes:
    """Return an int8 file with float32 input and output, as all variants share a preprocessing.

    The first operators stay in float32: they hold hardly any weights, and what they get wrong
    everything after them inherits. On a narrow MobileNetV2 and hand signs that is the difference
    between nine points of accuracy lost and less than two (benchmarks/accuracy.py).
    """
    import tensorflow as tf

    plain = bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())

    def photos() -> Iterator[list[npt.NDArray[np.float32]]]:
        for photo in calibration:
            yield [photo]

    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = photos
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
        tf.lite.OpsSet.TFLITE_BUILTINS,
    ]
    options = tf.lite.experimental.QuantizationDebugOptions(
        denylisted_nodes=_first_operators(plain)
    )
    with warnings.catch_warnings():
        # It opens an interpreter of TensorFlow's, which tells of its coming end.
        warnings.simplefilter("ignore", UserWarning)
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=photos, debug_options=options
        )
        return bytes(debugger.get_nondebug_quantized_model())


def _first_operators(content: bytes) -> list[str]:
    """Return the outputs of the operators that come first and share ``_FLOAT_SHARE`` of weights."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]

    def count(operator: Any) -> int:
        tensors = [graph.tensors[index] for index in operator.inputs if index >= 0]
        held = [one for one in tensors if model.buffers[one.buffer].data is not None]
        return sum(int(np.prod(one.shape)) for one in held)

    budget = _FLOAT_SHARE * sum(count(operator) for operator in graph.operators)
    names = []
    for operator in graph.operators:
        budget -= count(operator)
        if budget < 0:
            break
        names += [graph.tensors[index].name.decode() for index in operator.outputs]
    return names


def freeze(model: keras.Model) -> Any:
    """Return the network for one photo as a TensorFlow function with its weights as constants."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    photo = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name=INPUT_NAME)
    traced = tf.function(lambda image: {OUTPUT_NAME: model(image, training=False)})
    return convert_variables_to_constants_v2(traced.get_concrete_function(photo))


def read_requires(content: bytes) -> dict[str, Any]:
    """Return what a device must have to run the file: runtime version and operator versions."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAsModel(content, 0)
    operators: dict[str, int] = {}
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        # Files from before 2020 hold the operator in the older field only.
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        custom = code.CustomCode()
        name = custom.decode() if custom else _operator_names(schema).get(builtin, str(builtin))
        operators[name] = max(code.Version(), operators.get(name, 0))
    stated = (read_buffer(model, _MIN_RUNTIME) or b"").rstrip(b"\0").decode(errors="replace")
    return {
        "min_runtime": tflite_check.minimum_runtime(operators, stated),
        "operators": dict(sorted(operators.items())),
    }


def read_buffer(model: Any, name: bytes) -> bytes | None:
    """Return the content of the metadata entry ``name`` of a model read by the LiteRT schema."""
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == name:
            buffer = model.Buffers(entry.Buffer())
            return bytes(buffer.DataAsNumpy()) if buffer.DataLength() else b""
    return None


def _finish(raw: bytes, labels: Sequence[str], preprocessing: Preprocessing, about: About) -> bytes:
    """Add metadata and labels; give tensors names that do not tell what ran before."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(raw, 0)
    _rename_tensors(model)
    model.description = about.description or about.name
    runtime = [entry for entry in model.metadata or [] if entry.name == _MIN_RUNTIME]
    added = schema.MetadataT()
    added.name, added.buffer = tflite_metadata.METADATA_NAME, len(model.buffers)
    buffer = schema.BufferT()
    written = tflite_metadata.write_metadata(preprocessing, about)
    buffer.data = np.frombuffer(written, dtype=np.uint8)
    model.buffers.append(buffer)
    model.metadata = [*runtime, added]
    return tflite_metadata.append_labels(_pack(model), labels)


def _rename_tensors(model: Any) -> None:
    graph = model.subgraphs[0]
    for index, tensor in enumerate(graph.tensors):
        tensor.name = f"t{index}"
    graph.tensors[graph.inputs[0]].name = INPUT_NAME
    graph.tensors[graph.outputs[0]].name = OUTPUT_NAME


def _pack(model: Any) -> bytes:
    """Serialise, with every buffer where the schema wants it: at a multiple of 16 bytes.

    The generated code forgets that, and some processors cannot read weights elsewhere.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    class AlignedBuffer(schema.BufferT):
        def Pack(self, builder: Any) -> int:  # noqa: N802 - the generated code calls it so
            data = b"" if self.data is None else bytes(self.data)
            vector = None
            if data:
                builder.StartVector(1, len(data), _BUFFER_ALIGNMENT)
                builder.head -= len(data)
                builder.Bytes[builder.head : builder.head + len(data)] = data
                builder.vectorNumElems = len(data)
                vector = builder.EndVector()
            schema.BufferStart(builder)
            if vector is not None:
                schema.BufferAddData(builder, vector)
            return int(schema.BufferEnd(builder))

    for buffer in model.buffers:
        buffer.__class__ = AlignedBuffer
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
    return bytes(builder.Output())


def _check(
    content: bytes, labels: Sequence[str], preprocessing: Preprocessing
) -> list[dict[str, Any]]:
    from ai_edge_litert import schema_py_generated as schema

    from worker.ml import evaluation

    model = schema.Model.GetRootAsModel(content, 0)
    metadata = read_buffer(model, tflite_metadata.METADATA_NAME.encode())
    found = tflite_metadata.read_metadata(content, metadata)
    interpreter = evaluation.open_tflite(content)
    details = (interpreter.get_input_details()[0], interpreter.get_output_details()[0])
    shapes = [[int(side) for side in one["shape"]] for one in details]
    wanted = [[1, preprocessing.height, preprocessing.width, 3], [1, len(labels)]]
    side = (preprocessing.height, preprocessing.width, 3)
    noise = np.random.default_rng(0).integers(0, 256, side, dtype=np.uint8)
    answers, _ = evaluation.predict_tflite(content, [noise, noise[::-1] // 2], preprocessing)
    return [
        check(
            "labels",
            passed=found.labels == list(labels),
            detail=f"the file holds the labels {found.labels}",
        ),
        check("shapes", passed=shapes == wanted, detail=f"input and output are {shapes}"),
        check(
            "probabilities",
            passed=bool(np.abs(answers.sum(axis=1) - 1).max() < 0.05),  # noqa: PLR2004 - int8 steps
            detail=f"probabilities add up to {answers.sum(axis=1).round(3).tolist()}",
        ),
    ]


def _operator_names(schema: Any) -> dict[int, str]:
    return {
        value: name
        for name, value in vars(schema.BuiltinOperator).items()
        if not name.startswith("_")
    }

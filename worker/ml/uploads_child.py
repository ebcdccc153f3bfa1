"""Opens one uploaded model and prints, as JSON, what it is and what it answers.

``python -m … KIND PATH BYTES PREPROCESSING``: a process that may be killed by what it opens; see
:mod:`worker.ml.uploads`. ``PREPROCESSING`` is JSON, of what was stated at the upload.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from worker.ml import signatures
from worker.ml.determinism import THREADS
from worker.ml.errors import MLError, ModelUnusable, UploadRejected
from worker.ml.preprocessing import Preprocessing
from worker.ml.signatures import Tensor

_RESCALING: Final = ("Rescaling", "Normalization")
# For recording a self-test, which runs the file twice on each input.
_BUDGET_MS: Final = 15_000
# The types of the TFLite schema that have a name here; see its TensorType.
_SCHEMA_TYPES: Final = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16",
    9: "int8", 15: "uint32", 16: "uint16",
}  # fmt: skip
# Of Core ML's ArrayFeatureType.ArrayDataType.
_COREML_TYPES: Final = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32"}


def main(kind: str, path: Path, memory_bytes: int, stated: dict[str, Any]) -> None:
    """Print the facts, or ``{"code", "sentence"}``."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = _READERS[kind](path, stated)
    except MLError as error:
        answer = {"code": error.code, "sentence": error.sentence}
    except MemoryError:
        answer = {"code": "upload_too_large", "sentence": "The model needs too much memory."}
    except Exception as error:  # noqa: BLE001 - a stranger's file may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        answer = {"code": f"{kind}_damaged", "sentence": f"The model cannot be opened ({reason})."}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


# --- Keras ------------------------------------------------------------------------------------


def _read_keras(path: Path, stated: dict[str, Any]) -> dict[str, Any]:
    from worker.ml.determinism import pin_tensorflow

    _check_hdf5(path)
    pin_tensorflow(0)
    import keras

    with tempfile.TemporaryDirectory() as folder:
        # Keras goes by the ending.
        named = Path(folder, "model.keras")
        named.symlink_to(path.resolve())
        model = keras.models.load_model(named, compile=False, safe_mode=True)
    inputs, outputs = signatures.keras_signature(model)
    rescales = any(type(layer).__name__ in _RESCALING for layer in model._flatten_layers())  # noqa: SLF001
    preprocessing = _plain_preprocessing(inputs) if rescales else None
    warnings = []
    if not rescales and any(one.is_photo for one in inputs):
        warnings = ["The model does not rescale pixels itself: its preprocessing has to be stated."]
    _check_keras_runs(model, inputs, stated or preprocessing)
    return {
        "inputs": [one.to_json() for one in inputs],
        "outputs": [one.to_json() for one in outputs],
        "parameters": int(model.count_params()),
        "preprocessing": preprocessing,
        "warnings": warnings,
    }


def _check_hdf5(path: Path) -> None:
    """Refuse weights that point to other files."""
    import h5py

    with (
        zipfile.ZipFile(path) as archive,
        archive.open("model.weights.h5") as file,
        h5py.File(file, "r") as weights,
    ):
        waiting = [weights]
        while waiting:
            group = waiting.pop()
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    _reject("keras_damaged", "The weights hold a link to somewhere else.")
                part = group[name]
                if isinstance(part, h5py.Group):
                    waiting.append(part)
                elif part.external or part.is_virtual:
                    _reject("keras_damaged", "The weights point to other files.")


def _check_keras_runs(
    model: Any, inputs: list[Tensor], preprocessing: dict[str, Any] | None
) -> None:
    """Run the network on two drawn inputs; a network that answers neither with numbers is out."""
    from worker.ml import vectors

    def run(values: Any) -> dict[str, Any]:
        try:
            return {n: np.asarray(v) for n, v in signatures.run_keras(model, values).items()}
        except (ValueError, TypeError, RuntimeError) as error:
            raise ModelUnusable(str(error).splitlines()[0][:200]) from error

    settled = signatures.settle(inputs, run)
    ranges = [_range(one, preprocessing) for one in settled]
    answers = [
        run(vectors.draw(case, settled, ranges)) for case in vectors.draw_candidates(settled, 2)
    ]
    if not any(_are_finite(answer) for answer in answers):
        _reject("outputs_not_finite", "The model answers with numbers that are not finite.")


# --- TFLite -----------------------------------------------------------------------------------


def _read_tflite(path: Path, stated: dict[str, Any]) -> dict[str, Any]:
    from ai_edge_litert import schema_py_generated as schema

    from worker.ml.compilers import tflite, tflite_metadata

    content = path.read_bytes()
    model = schema.Model.GetRootAsModel(content, 0)
    try:
        runner = signatures.TFLiteRunner(content)
    except MLError as error:
        foreign = _foreign_operators(model)
        if not foreign:
            raise UploadRejected(error.sentence, code="tflite_damaged") from error
        return _unrun_tflite(content, model, foreign)
    found = tflite_metadata.read_metadata(
        content, tflite.read_buffer(model, tflite_metadata.METADATA_NAME.encode())
    )
    preprocessing = _tflite_preprocessing(runner.inputs, found)
    return {
        **_tflite_facts(content, model, schema),
        "inputs": [one.to_json() for one in runner.inputs],
        "outputs": [one.to_json() for one in runner.outputs],
        "labels": found.labels,
        "preprocessing": preprocessing,
        **_record_tflite(content, runner, stated or preprocessing),
    }


def _tflite_facts(content: bytes, model: Any, schema: Any) -> dict[str, Any]:
    from worker.ml.compilers import tflite

    constants = list(_constants(model, schema))
    kinds = {tensor["dtype"] for tensor in constants}
    return {
        "requires": tflite.read_requires(content),
        "parameters": sum(tensor["count"] for tensor in constants),
        "precision": next((kind for kind in ("int8", "float16") if kind in kinds), "float32"),
    }


def _record_tflite(
    content: bytes, runner: signatures.TFLiteRunner, preprocessing: dict[str, Any] | None
) -> dict[str, Any]:
    """Run the file on drawn inputs and keep its answers; or say why it was not run."""
    from worker.ml import vectors

    try:
        inputs = runner.settle()
        ranges = [_range(one, preprocessing) for one in inputs]
        candidates = _affordable(runner, inputs, ranges)
        other = signatures.TFLiteRunner(content, is_accelerated=False)
        recorded = vectors.record(
            runner.run, inputs, ranges, other_run=other.run, candidates=candidates
        )
    except ModelUnusable as error:
        if error.code == "outputs_not_finite":
            _reject(error.code, "The model answers with numbers that are not finite.")
        return {"unchecked": error.sentence}
    return {
        "selftest": recorded.member,
        "selftest_sentence": recorded.sentence,
        "latency_ms": {
            "p50": round(float(np.percentile(runner.durations_ms, 50)), 3),
            "p95": round(float(np.percentile(runner.durations_ms, 95)), 3),
            "threads": THREADS,
        },
        "notes": recorded.notes,
    }


def _affordable(runner: signatures.TFLiteRunner, inputs: Any, ranges: Any) -> int:
    """Return how many inputs may be tried: fewer for a file that takes long."""
    from worker.ml import vectors

    runner.run(vectors.draw(vectors.draw_candidates(inputs, 1)[0], inputs, ranges))
    return int(np.clip(_BUDGET_MS / max(runner.durations_ms[-1], 1.0), 4, 12))


def _foreign_operators(model: Any) -> list[str]:
    """Return the names of operators that the runtime does not bring along."""
    codes = (
        model.OperatorCodes(index).CustomCode() for index in range(model.OperatorCodesLength())
    )
    return sorted({code.decode(errors="replace")[:80] for code in codes if code})


def _unrun_tflite(content: bytes, model: Any, foreign: list[str]) -> dict[str, Any]:
    """Return what can be told of a file that needs operators which an app has to bring."""
    from ai_edge_litert import schema_py_generated as schema

    graph = model.Subgraphs(0)
    names = ", ".join(foreign)
    what = (
        "TensorFlow's own operators (the Flex delegate)"
        if all(name.startswith("Flex") for name in foreign)
        else "operators that an app has to register with its runtime"
    )
    return {
        **_tflite_facts(content, model, schema),
        "inputs": [_schema_tensor(graph.Tensors(i)) for i in graph.InputsAsNumpy().tolist()],
        "outputs": [_schema_tensor(graph.Tensors(i)) for i in graph.OutputsAsNumpy().tolist()],
        "unchecked": f"it needs {what}: {names}",
        "foreign_operators": foreign,
    }


def _schema_tensor(tensor: Any) -> dict[str, Any]:
    stated = tensor.ShapeSignatureAsNumpy() if tensor.ShapeSignatureLength() else None
    sides = tensor.ShapeAsNumpy() if stated is None else stated
    shape = [None if side < 0 else int(side) for side in sides] if tensor.ShapeLength() else []
    name = signatures.plain_name((tensor.Name() or b"").decode(errors="replace"))
    return {"name": name, "shape": shape, "dtype": _SCHEMA_TYPES.get(tensor.Type(), "other")}


def _constants(model: Any, schema: Any) -> Iterator[dict[str, Any]]:
    names = {0: "float32", 1: "float16", 3: "int8", 9: "int8"}
    for graph in (model.Subgraphs(index) for index in range(model.SubgraphsLength())):
        for tensor in (graph.Tensors(index) for index in range(graph.TensorsLength())):
            if model.Buffers(tensor.Buffer()).DataLength():
                count = int(np.prod([tensor.Shape(i) for i in range(tensor.ShapeLength())]))
                yield {"count": count, "dtype": names.get(tensor.Type(), "other")}
    del schema


def _tflite_preprocessing(inputs: list[Tensor], found: Any) -> dict[str, Any] | None:
    plain = _plain_preprocessing(inputs)
    if plain is None or found.mean is None or found.std is None:
        return None
    # One number stands for all channels.
    mean, std = (values * 3 if len(values) == 1 else values for values in (found.mean, found.std))
    return {**plain, "mean": mean, "std": std}


# --- Core ML ----------------------------------------------------------------------------------


def _read_coreml(path: Path, stated: dict[str, Any]) -> dict[str, Any]:
    # Core ML Tools load whatever they could convert from, which takes longer than all the rest.
    for unneeded in ("tensorflow", "sklearn", "torch", "xgboost"):
        sys.modules.setdefault(unneeded, None)  # type: ignore[arg-type]
    from worker.ml.compilers import coreml, coreml_check

    with coreml.quiet() as ct:
        specification = ct.proto.Model_pb2.Model()
    specification.ParseFromString(path.read_bytes())
    kind = specification.WhichOneof("Type")
    if kind is None or not specification.description.input:
        _reject("mlmodel_damaged", "The file holds no Core ML model.")
    if kind == "mlProgram":
        # Weights that are cut short or missing show only when they are decoded.
        coreml_check.decode(specification, path.parent / "weights")
    told = specification.description.metadata.userDefined
    inputs = [_feature(feature) for feature in specification.description.input]
    preprocessing = (
        json.loads(told[coreml.PREPROCESSING_KEY])
        if coreml.PREPROCESSING_KEY in told
        else _plain_preprocessing(inputs)
    )
    labels = _coreml_labels(specification, kind)
    return {
        "inputs": [one.to_json() for one in inputs],
        "outputs": [one.to_json() for one in _coreml_outputs(specification, labels)],
        "labels": labels,
        "preprocessing": preprocessing,
        "requires": coreml.read_requires(specification),
        "parameters": _coreml_parameters(specification),
        "precision": _coreml_precision(specification),
        **_record_coreml(path, inputs, specification, stated or preprocessing),
    }


def _record_coreml(
    path: Path, inputs: list[Tensor], specification: Any, preprocessing: dict[str, Any] | None
) -> dict[str, Any]:
    """Calculate the file's answers to drawn inputs by Core ML's definitions; or say why not."""
    from worker.ml import vectors
    from worker.ml.coreml import CoreMLModel

    folder = path.parents[2] if path.parent.parent.name == "Data" else None
    try:
        model = CoreMLModel(folder if folder is not None else path.read_bytes())
        settled = _coreml_settled(inputs, specification)
        ranges = [_range(one, preprocessing) for one in settled]

        def run(values: Mapping[str, Any]) -> dict[str, Any]:
            # A picture has no batch here.
            return model.run({
                one.name: values[one.name][0] if one.dtype == "image" else values[one.name]
                for one in settled
            })  # fmt: skip

        begun = time.perf_counter()
        run(vectors.draw(vectors.draw_candidates(settled, 1)[0], settled, ranges))
        spent_ms = (time.perf_counter() - begun) * 1000
        candidates = int(np.clip(_BUDGET_MS / max(spent_ms, 1.0), 4, 12))
        recorded = vectors.record(run, settled, ranges, candidates=candidates)
    except MLError as error:
        if error.code == "outputs_not_finite":
            _reject(error.code, "The model answers with numbers that are not finite.")
        return {"unchecked": error.sentence}
    return {
        "selftest": recorded.member,
        "selftest_sentence": recorded.sentence,
        "notes": recorded.notes,
    }


def _feature(feature: Any) -> Tensor:
    kind = str(feature.type.WhichOneof("Type"))
    if kind == "imageType":
        image = feature.type.imageType
        channels = 1 if image.ColorSpace.Name(image.colorSpace).startswith("GRAY") else 3
        return Tensor(feature.name, (1, int(image.height), int(image.width), channels), "image")
    if kind != "multiArrayType":
        return Tensor(feature.name, (), kind)
    array = feature.type.multiArrayType
    shape: list[int | None] = [int(side) for side in array.shape]
    if array.WhichOneof("ShapeFlexibility") == "shapeRange":
        ranges = array.shapeRange.sizeRanges
        shape = [r.lowerBound if r.lowerBound == r.upperBound else None for r in ranges]
    elif array.WhichOneof("ShapeFlexibility") == "enumeratedShapes":
        shapes = [list(one.shape) for one in array.enumeratedShapes.shapes]
        shape = [sides[0] if len({*sides}) == 1 else None for sides in zip(*shapes, strict=True)]
    return Tensor(feature.name, tuple(shape), _COREML_TYPES.get(int(array.dataType), "float32"))


def _coreml_settled(inputs: list[Tensor], specification: Any) -> list[Tensor]:
    """Return the inputs with their default sizes."""
    described = {one.name: one.type.multiArrayType for one in specification.description.input}
    return [
        one
        if one.dtype == "image"
        else replace(one, shape=tuple(int(side) for side in described[one.name].shape))
        for one in inputs
    ]


def _coreml_outputs(specification: Any, labels: list[str] | None) -> list[Tensor]:
    outputs = [_feature(feature) for feature in specification.description.output]
    return [
        replace(one, shape=(1, len(labels)))
        if one.dtype == "dictionaryType" and labels is not None
        else one
        for one in outputs
    ]


def _coreml_labels(specification: Any, kind: str) -> list[str] | None:
    if kind != "mlProgram":
        classifier = getattr(specification, kind, None)
        named = getattr(classifier, "stringClassLabels", None)
        return [str(label) for label in named.vector] if named and named.vector else None
    constants = {
        operation.outputs[0].name: operation
        for operation in _coreml_operations(specification)
        if operation.type == "const"
    }
    for operation in _coreml_operations(specification):
        if operation.type == "classify":
            binding = operation.inputs["classes"].arguments[0]
            value = (
                constants[binding.name].attributes["val"]
                if binding.WhichOneof("binding") == "name"
                else binding.value
            )
            return [
                str(text)
                for one in value.immediateValue.list.values
                for text in one.immediateValue.tensor.strings.values
            ]
    return None


def _coreml_operations(specification: Any) -> Iterator[Any]:
    for function in specification.mlProgram.functions.values():
        for block in function.block_specializations.values():
            yield from block.operations


def _coreml_parameters(specification: Any) -> int | None:
    if specification.WhichOneof("Type") != "mlProgram":
        return None
    total = 0
    for operation in _coreml_operations(specification):
        if operation.type == "const" or operation.type.startswith("constexpr"):
            kind = operation.outputs[0].type.tensorType
            sides = [int(dimension.constant.size) for dimension in kind.dimensions]
            total += int(np.prod(sides)) if sides else 0
    return total


def _coreml_precision(specification: Any) -> str:
    kinds = {operation.type for operation in _coreml_operations(specification)}
    if any("lut" in kind for kind in kinds):
        return "palette"
    if any(kind.startswith("constexpr") for kind in kinds):
        return "int8"
    float16 = 10  # MIL's DataType.FLOAT16
    types = {
        output.type.tensorType.dataType
        for operation in _coreml_operations(specification)
        for output in operation.outputs
        if operation.type in {"conv", "linear", "matmul"}
    }
    return "float16" if float16 in types else "float32"


_READERS: Final[dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]]] = {
    "keras": _read_keras,
    "tflite": _read_tflite,
    "mlpackage": _read_coreml,
    "mlmodel": _read_coreml,
}


def _plain_preprocessing(inputs: list[Tensor]) -> dict[str, Any] | None:
    """Return the preprocessing of a model that takes a photo's pixels as they are, and only it."""
    if len(inputs) != 1 or not inputs[0].is_photo:
        return None
    _, height, width, _ = inputs[0].shape
    return Preprocessing(width=width or 1, height=height or 1).to_manifest()


def _range(tensor: Tensor, preprocessing: dict[str, Any] | None) -> tuple[float, float]:
    """Return between what an input is drawn; a photo by its preprocessing, where it is known."""
    from worker.ml import vectors

    known = preprocessing or {}
    mean, std = known.get("mean") or [0.0], known.get("std") or [1.0]
    return vectors.choose_range(tensor, float(mean[0]), float(std[0]))


def _are_finite(answers: dict[str, Any]) -> bool:
    return all(np.isfinite(np.asarray(one, dtype=np.float64)).all() for one in answers.values())


def _reject(code: str, sentence: str) -> NoReturn:
    raise UploadRejected(sentence, code=code)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))

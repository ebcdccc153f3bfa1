"""Opens one uploaded model and prints, as JSON, what it is: ``python -m … KIND PATH BYTES``.

A process that may be killed by what it opens; see :mod:`worker.ml.uploads`.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from worker.ml.errors import MLError, UploadRejected
from worker.ml.preprocessing import Preprocessing

_RESCALING: Final = ("Rescaling", "Normalization")


def main(kind: str, path: Path, memory_bytes: int) -> None:
    """Print the facts, or ``{"code", "sentence"}``."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = _READERS[kind](path)
    except MLError as error:
        answer = {"code": error.code, "sentence": error.sentence}
    except MemoryError:
        answer = {"code": "upload_too_large", "sentence": "The model needs too much memory."}
    except Exception as error:  # noqa: BLE001 - a stranger's file may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        answer = {"code": f"{kind}_damaged", "sentence": f"The model cannot be opened ({reason})."}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


# --- Keras ------------------------------------------------------------------------------------


def _read_keras(path: Path) -> dict[str, Any]:
    from worker.ml.determinism import pin_tensorflow

    _check_hdf5(path)
    pin_tensorflow(0)
    import keras

    with tempfile.TemporaryDirectory() as folder:
        # Keras goes by the ending.
        named = Path(folder, "model.keras")
        named.symlink_to(path.resolve())
        model = keras.models.load_model(named, compile=False, safe_mode=True)
    inputs = [_keras_tensor(tensor) for tensor in model.inputs]
    outputs = [_keras_tensor(tensor) for tensor in model.outputs]
    rescales = any(type(layer).__name__ in _RESCALING for layer in model._flatten_layers())  # noqa: SLF001
    _check_keras_runs(model, inputs)
    return {
        "inputs": inputs,
        "outputs": outputs,
        "parameters": int(model.count_params()),
        "preprocessing": _plain_preprocessing(inputs) if rescales else None,
        "warnings": []
        if rescales
        else ["The model does not rescale pixels itself: its preprocessing has to be stated."],
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


def _keras_tensor(tensor: Any) -> dict[str, Any]:
    shape = [None if side is None else int(side) for side in tensor.shape]
    return {"name": tensor.name, "shape": shape, "dtype": str(tensor.dtype)}


def _check_keras_runs(model: Any, inputs: list[dict[str, Any]]) -> None:
    if len(inputs) != 1 or None in inputs[0]["shape"][1:]:
        return
    noise = np.random.default_rng(0).uniform(0, 255, (2, *inputs[0]["shape"][1:]))
    answers = np.asarray(model(noise.astype(np.float32), training=False))
    _check_finite(answers)


# --- TFLite -----------------------------------------------------------------------------------


def _read_tflite(path: Path) -> dict[str, Any]:
    from ai_edge_litert import schema_py_generated as schema

    from worker.ml import evaluation
    from worker.ml.compilers import tflite, tflite_metadata

    content = path.read_bytes()
    try:
        interpreter = evaluation.open_tflite(content)
    except MLError as error:
        raise UploadRejected(error.sentence, code="tflite_damaged") from error
    details = interpreter.get_input_details()
    inputs = [_tflite_tensor(one) for one in details]
    for one in details:
        interpreter.set_tensor(one["index"], np.ones(one["shape"], one["dtype"]))
    interpreter.invoke()
    outputs = interpreter.get_output_details()
    for one in outputs:
        _check_finite(interpreter.get_tensor(one["index"]))
    model = schema.Model.GetRootAsModel(content, 0)
    found = tflite_metadata.read_metadata(
        content, tflite.read_buffer(model, tflite_metadata.METADATA_NAME.encode())
    )
    kinds = [tensor["dtype"] for tensor in _constants(model, schema)]
    return {
        "inputs": inputs,
        "outputs": [_tflite_tensor(one) for one in outputs],
        "labels": found.labels,
        "preprocessing": _tflite_preprocessing(inputs, found),
        "requires": tflite.read_requires(content),
        "parameters": sum(tensor["count"] for tensor in _constants(model, schema)),
        "precision": next((kind for kind in ("int8", "float16") if kind in kinds), "float32"),
    }


def _tflite_tensor(details: dict[str, Any]) -> dict[str, Any]:
    shape = [int(side) for side in details["shape"]]
    name = str(details["name"])
    return {"name": name, "shape": shape, "dtype": np.dtype(details["dtype"]).name}


def _constants(model: Any, schema: Any) -> Iterator[dict[str, Any]]:
    names = {0: "float32", 1: "float16", 3: "int8", 9: "int8"}
    for graph in (model.Subgraphs(index) for index in range(model.SubgraphsLength())):
        for tensor in (graph.Tensors(index) for index in range(graph.TensorsLength())):
            if model.Buffers(tensor.Buffer()).DataLength():
                count = int(np.prod([tensor.Shape(i) for i in range(tensor.ShapeLength())]))
                yield {"count": count, "dtype": names.get(tensor.Type(), "other")}
    del schema


def _tflite_preprocessing(inputs: list[dict[str, Any]], found: Any) -> dict[str, Any] | None:
    plain = _plain_preprocessing(inputs)
    if plain is None or found.mean is None or found.std is None:
        return None
    # One number stands for all channels.
    mean, std = (values * 3 if len(values) == 1 else values for values in (found.mean, found.std))
    return {**plain, "mean": mean, "std": std}


# --- Core ML ----------------------------------------------------------------------------------


def _read_coreml(path: Path) -> dict[str, Any]:
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
        "inputs": inputs,
        "outputs": _coreml_outputs(specification, labels),
        "labels": labels,
        "preprocessing": preprocessing,
        "requires": coreml.read_requires(specification),
        "parameters": _coreml_parameters(specification),
        "precision": _coreml_precision(specification),
    }


def _feature(feature: Any) -> dict[str, Any]:
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        image = feature.type.imageType
        channels = 1 if image.ColorSpace.Name(image.colorSpace).startswith("GRAY") else 3
        shape: list[int] = [1, int(image.height), int(image.width), channels]
        return {"name": feature.name, "shape": shape, "dtype": "image"}
    shape = list(feature.type.multiArrayType.shape) if kind == "multiArrayType" else []
    return {"name": feature.name, "shape": [int(side) for side in shape], "dtype": str(kind)}


def _coreml_outputs(specification: Any, labels: list[str] | None) -> list[dict[str, Any]]:
    outputs = [_feature(feature) for feature in specification.description.output]
    for output in outputs:
        if output["dtype"] == "dictionaryType" and labels is not None:
            output["shape"] = [1, len(labels)]
    return outputs


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


_READERS: Final[dict[str, Callable[[Path], dict[str, Any]]]] = {
    "keras": _read_keras,
    "tflite": _read_tflite,
    "mlpackage": _read_coreml,
    "mlmodel": _read_coreml,
}


def _plain_preprocessing(inputs: list[dict[str, Any]]) -> dict[str, Any] | None:
    shape = inputs[0]["shape"] if len(inputs) == 1 else []
    if len(shape) != 4 or None in shape[1:]:  # noqa: PLR2004 - batch, height, width, channels
        return None
    return Preprocessing(width=shape[2], height=shape[1]).to_manifest()


def _check_finite(answers: Any) -> None:
    if not np.isfinite(np.asarray(answers, dtype=np.float64)).all():
        _reject("outputs_not_finite", "The model answers with numbers that are not finite.")


def _reject(code: str, sentence: str) -> None:
    raise UploadRejected(sentence, code=code)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

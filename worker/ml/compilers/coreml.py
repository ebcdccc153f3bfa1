"""Core ML packages: ML Program in float16, or with palettes of 256 weights."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.compilers import mlpackage
from worker.ml.compilers.base import INPUT_NAME, OUTPUT_NAME, About, CompiledFile
from worker.ml.determinism import pin_tensorflow
from worker.ml.errors import CompilationFailed
from worker.ml.preprocessing import Preprocessing

if TYPE_CHECKING:
    import keras

MEDIA_TYPE: Final = "application/vnd.apple.mlpackage+zip"
LABEL_NAME: Final = "label"
PREPROCESSING_KEY: Final = "nightferry.preprocessing"
LABELS_KEY: Final = "nightferry.labels"
PALETTE_SIZE: Final = 256

_PALETTE_LEAST_WEIGHTS: Final = 2048
_PALETTE_ROUNDS: Final = 40
_OLDEST_SYSTEMS: Final = {
    6: {"ios": "15.0", "macos": "12.0"},
    7: {"ios": "16.0", "macos": "13.0"},
    8: {"ios": "17.0", "macos": "14.0"},
    9: {"ios": "18.0", "macos": "15.0"},
    10: {"ios": "26.0", "macos": "26.0"},
}


def compile_file(
    model: keras.Model,
    precision: str,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    about: About,
) -> CompiledFile:
    """Return the finished file; see :func:`worker.ml.compilers.compile_variant`."""
    from worker.ml.compilers.coreml_check import check_package

    if any((*preprocessing.mean, *(scale - 1 for scale in preprocessing.std))):
        message = "Core ML packages are made of networks that rescale inside only"
        raise CompilationFailed(message, code="preprocessing_unsupported")
    converted = _convert(model, labels)
    if precision == "palette8":
        converted = _palettise(converted)
    specification, weights = _parts(converted)
    _canonicalise(specification)
    _describe(specification, labels, preprocessing, about)
    package = mlpackage.make_package(specification.SerializeToString(deterministic=True), weights)
    content = mlpackage.pack(package, about.name)
    return CompiledFile(
        runtime="coreml",
        precision=precision,
        filename=f"{about.name}-{about.version}-{precision}.mlpackage.zip",
        media_type=MEDIA_TYPE,
        data=content,
        requires=read_requires(specification),
        checks=check_package(content, labels=labels, keras_model=model),
    )


def read_requires(specification: Any) -> dict[str, Any]:
    """Return the specification version and the oldest systems that read it.

    From the finished file: compressing raises the version without a word.
    """
    version = int(specification.specificationVersion)
    return {"specification_version": version, **_OLDEST_SYSTEMS.get(version, {})}


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """Import Core ML Tools and keep it from telling the log what every worker knows.

    It warns of versions it was not tested with, and of parts that only a Mac has.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        # It leaves temporary folders to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        import coremltools

        yield coremltools


def _convert(model: keras.Model, labels: Sequence[str]) -> Any:
    tf = pin_tensorflow(0)
    shape = (1, *model.input_shape[1:])
    traced = tf.function(lambda image: {OUTPUT_NAME: model(image, training=False)})
    function = traced.get_concrete_function(tf.TensorSpec(shape, tf.float32, name=INPUT_NAME))
    with quiet() as ct:
        try:
            return ct.convert(
                [function],
                source="tensorflow",
                inputs=[
                    ct.ImageType(name=INPUT_NAME, shape=shape, color_layout=ct.colorlayout.RGB)
                ],
                classifier_config=ct.ClassifierConfig(
                    list(labels), predicted_feature_name=LABEL_NAME
                ),
                minimum_deployment_target=ct.target.iOS15,
                compute_precision=ct.precision.FLOAT16,
                skip_model_load=True,
            )
        except (ValueError, RuntimeError, NotImplementedError, TypeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0][:300]
            message = f"the network cannot become a Core ML package: {reason}"
            raise CompilationFailed(message) from error


def _palettise(converted: Any) -> Any:
    with quiet():
        from coremltools.optimize import coreml as optimize

        config = optimize.OptimizationConfig(
            global_config=optimize.OpPalettizerConfig(
                mode="custom",
                lut_function=find_palette,
                weight_threshold=_PALETTE_LEAST_WEIGHTS,
            )
        )
        return optimize.palettize_weights(converted, config)


def find_palette(
    weights: npt.NDArray[np.floating[Any]],
) -> tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.uint8]]:
    """Return 256 values, and for each weight (flattened) the index of the nearest.

    Lloyd's algorithm (1982) in one dimension, from evenly spread quantiles: where values are
    sorted, a cluster is an interval, and a round costs a search. No chance is involved, so it
    gives the same palette everywhere.
    """
    flat = weights.reshape(-1).astype(np.float64)
    values, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    if len(values) <= PALETTE_SIZE:
        palette = np.full(PALETTE_SIZE, values[-1])
        palette[: len(values)] = values
        return palette.astype(weights.dtype), inverse.astype(np.uint8).reshape(-1)
    mass = np.concatenate([[0.0], np.cumsum(counts)])
    total = np.concatenate([[0.0], np.cumsum(counts * values)])
    # Half of the first guesses by rank, half by value: outliers need entries of their own.
    ranks = np.linspace(0, len(values) - 1, PALETTE_SIZE // 2).round().astype(int)
    steps = np.linspace(values[0], values[-1], PALETTE_SIZE // 2)
    palette = np.sort(np.concatenate([values[ranks], steps]))
    for _ in range(_PALETTE_ROUNDS):
        cuts = np.searchsorted(values, (palette[1:] + palette[:-1]) / 2)
        edges = np.concatenate([[0], cuts, [len(values)]])
        weight = np.diff(mass[edges])
        means = np.diff(total[edges]) / np.maximum(weight, 1.0)
        palette = np.sort(np.where(weight > 0, means, palette))
    rounded = palette.astype(weights.dtype).astype(np.float64)
    nearest = np.searchsorted((rounded[1:] + rounded[:-1]) / 2, values)
    return rounded.astype(weights.dtype), nearest[inverse].astype(np.uint8).reshape(-1)


def _parts(converted: Any) -> tuple[Any, bytes | None]:
    """Return the specification (protobuf) and the bytes of the weights."""
    with tempfile.TemporaryDirectory() as folder, quiet() as ct:
        path = Path(folder, "model.mlpackage")
        converted.save(str(path))
        weights = path / mlpackage.DATA / mlpackage.WEIGHTS_PATH
        specification = ct.utils.load_spec(str(path))
        return specification, weights.read_bytes() if weights.is_file() else None


def _canonicalise(specification: Any) -> None:
    """Rename inner values by their place: the converter's names tell what ran before."""
    probabilities = specification.description.predictedProbabilitiesName
    names = {name: name for name in (INPUT_NAME, LABEL_NAME)} | {probabilities: OUTPUT_NAME}
    for function in specification.mlProgram.functions.values():
        for block in function.block_specializations.values():
            _rename_block(block, names)
    for feature in specification.description.output:
        feature.name = names[feature.name]
    specification.description.predictedProbabilitiesName = OUTPUT_NAME


def _rename_block(block: Any, names: dict[str, str]) -> None:
    for operation in block.operations:
        for output in operation.outputs:
            names.setdefault(output.name, f"v{len(names)}")
    for operation in block.operations:
        for output in operation.outputs:
            output.name = names[output.name]
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    binding.name = names.get(binding.name, binding.name)
        if "name" in operation.attributes and operation.outputs:
            label = operation.attributes["name"].immediateValue.tensor.strings.values
            label[:] = [operation.outputs[0].name]
        for inner in operation.blocks:
            _rename_block(inner, names)
    block.outputs[:] = [names.get(name, name) for name in block.outputs]


def _describe(
    specification: Any, labels: Sequence[str], preprocessing: Preprocessing, about: About
) -> None:
    metadata = specification.description.metadata
    metadata.shortDescription = about.description or about.name
    metadata.versionString = about.version
    metadata.author = about.author
    metadata.license = about.license
    # Drops the day of the conversion with the rest.
    metadata.userDefined.clear()
    metadata.userDefined[PREPROCESSING_KEY] = json.dumps(
        preprocessing.to_manifest(), sort_keys=True
    )
    metadata.userDefined[LABELS_KEY] = json.dumps(list(labels), ensure_ascii=False)

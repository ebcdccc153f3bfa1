"""Core ML packages: ML Programs of several widths, and networks for older systems.

What a recipe of :mod:`worker.ml.compression` left in the weights (noughts, few values, whole
steps) is stored here in less, without any further loss.
"""

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

from worker.ml.compilers import mlpackage
from worker.ml.compilers.base import (
    COREML_TARGETS,
    INPUT_NAME,
    OUTPUT_NAME,
    About,
    CompiledFile,
)
from worker.ml.compilers.grouped import without_xla
from worker.ml.compression.palettes import find_palette
from worker.ml.compression.recipes import RECIPES
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

_LEAST_WEIGHTS: Final = 2048
# Fewer noughts than this take more room as a mask than they save.
_LEAST_SPARSITY: Final = 0.3
_OLDEST_SYSTEMS: Final = {
    1: {"ios": "11.0", "macos": "10.13"},
    2: {"ios": "11.2", "macos": "10.13.2"},
    3: {"ios": "12.0", "macos": "10.14"},
    4: {"ios": "13.0", "macos": "10.15"},
    5: {"ios": "14.0", "macos": "11.0"},
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
    *,
    target: str = COREML_TARGETS[0],
) -> CompiledFile:
    """Return the finished file; see :func:`worker.ml.compilers.compile_variant`."""
    from worker.ml.compilers.coreml_check import check_package

    if target not in COREML_TARGETS:
        message = f"there is no Core ML target {target}; there are {', '.join(COREML_TARGETS)}"
        raise CompilationFailed(message, code="target_unknown")
    if any((*preprocessing.mean, *(scale - 1 for scale in preprocessing.std))):
        message = "Core ML packages are made of networks that rescale inside only"
        raise CompilationFailed(message, code="preprocessing_unsupported")
    if precision == "neuralnetwork":
        from worker.ml.compilers import neuralnetwork

        return neuralnetwork.compile_file(model, labels, preprocessing, about)
    converted = _convert(model, labels, precision, target)
    converted = _store_in_less(converted, precision)
    specification, weights = _parts(converted)
    _canonicalise(specification)
    describe(specification, labels, preprocessing, about)
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


def _convert(model: keras.Model, labels: Sequence[str], precision: str, target: str) -> Any:
    if precision == "joint":
        # No older system reads weights that are pruned and have a palette.
        target = COREML_TARGETS[-1]
    with quiet() as ct:
        widths = ct.precision.FLOAT32 if precision == "float32" else ct.precision.FLOAT16
        return convert(
            model,
            labels,
            minimum_deployment_target=ct.target[target],
            compute_precision=widths,
        )


def convert(model: keras.Model, labels: Sequence[str], **form: Any) -> Any:
    """Return what Core ML Tools make of the network; ``form`` says which kind of it."""
    tf = pin_tensorflow(0)
    shape = (1, *model.input_shape[1:])
    traced = tf.function(lambda image: {OUTPUT_NAME: model(image, training=False)})
    with without_xla():
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
                skip_model_load=True,
                **form,
            )
        except (ValueError, RuntimeError, NotImplementedError, TypeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0][:300]
            message = f"the network cannot become a Core ML package: {reason}"
            raise CompilationFailed(message) from error


def _store_in_less(converted: Any, precision: str) -> Any:
    recipe = RECIPES.get(("coreml", precision))
    if precision == "palette8":
        return _palettise(converted, PALETTE_SIZE)
    if recipe is None:
        return converted
    if recipe.sparsity:
        converted = _make_sparse(converted)
    if recipe.palette:
        # Nought is an entry of its own, besides those of the weights that stayed.
        size = recipe.palette + bool(recipe.sparsity)
        converted = _palettise(converted, size, after_pruning=bool(recipe.sparsity))
    return _make_linear(converted) if recipe.linear_bits else converted


def _palettise(converted: Any, size: int, *, after_pruning: bool = False) -> Any:
    with quiet():
        from coremltools.optimize import coreml as optimize

        config = optimize.OptimizationConfig(
            global_config=optimize.OpPalettizerConfig(
                mode="custom",
                lut_function=lambda weights: find_palette(weights, size),
                weight_threshold=_LEAST_WEIGHTS,
            ),
            op_name_configs=_spared(converted, size),
        )
        return optimize.palettize_weights(converted, config, joint_compression=after_pruning)


def _spared(converted: Any, size: int) -> dict[str, None]:
    """Return the weights that the recipe left alone: they have more values than the palette."""
    if size == PALETTE_SIZE:
        return {}
    with quiet():
        from coremltools.optimize import coreml as optimize

        found = optimize.get_weights_metadata(converted, weight_threshold=_LEAST_WEIGHTS)
        # As float32: NumPy's sorting of float16 leaves values twice on some processors.
        values = {name: weight.val.astype(np.float32) for name, weight in found.items()}
        return {
            name: None
            for name, weights in values.items()
            if len(np.unique(weights[weights != 0])) > size
        }


def _make_sparse(converted: Any) -> Any:
    with quiet():
        from coremltools.optimize import coreml as optimize

        config = optimize.OptimizationConfig(
            global_config=optimize.OpThresholdPrunerConfig(
                threshold=0.0,
                minimum_sparsity_percentile=_LEAST_SPARSITY,
                weight_threshold=_LEAST_WEIGHTS,
            )
        )
        return optimize.prune_weights(converted, config)


def _make_linear(converted: Any) -> Any:
    with quiet():
        from coremltools.optimize import coreml as optimize

        config = optimize.OptimizationConfig(
            global_config=optimize.OpLinearQuantizerConfig(
                mode="linear_symmetric", dtype="int8", weight_threshold=_LEAST_WEIGHTS
            )
        )
        return optimize.linear_quantize_weights(converted, config)


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


def describe(
    specification: Any, labels: Sequence[str], preprocessing: Preprocessing, about: About
) -> None:
    """Write what the file says of itself into its own metadata."""
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

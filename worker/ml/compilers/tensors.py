"""Files of networks with any inputs and outputs, by name: detectors, segmentation, regression.

What :mod:`worker.ml.compilers.tflite` and ``coreml`` make is for classifiers of photos. Here a
file keeps the network's own signature, and is compared with the network on the same inputs.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from worker.ml import signatures
from worker.ml.compilers import coreml, mlpackage, tflite
from worker.ml.compilers.base import About, CompiledFile
from worker.ml.determinism import pin_tensorflow
from worker.ml.errors import CompilationFailed
from worker.ml.signatures import Array, Tensor

if TYPE_CHECKING:
    import keras

KINDS: Final = (
    "tflite:float32", "tflite:float16", "tflite:dynamic_int8", "tflite:int8",
    "coreml:float32", "coreml:float16",
)  # fmt: skip
"""What can be made of a network whose signature is its own."""


def compile_tensors(
    model: keras.Model,
    kind: str,
    inputs: Sequence[Tensor],
    *,
    calibration: Sequence[Mapping[str, Array]],
    about: About,
) -> CompiledFile:
    """Return the network as one file, for one set of inputs at a time.

    ``inputs`` are :func:`~worker.ml.signatures.keras_signature`'s with all sides known, and
    ``calibration`` some of their values; only int8 uses them. Raises :class:`CompilationFailed`.
    """
    if kind not in KINDS:
        message = f"{kind} is made of classifiers of photos only; there are {', '.join(KINDS)}"
        raise CompilationFailed(message, code="variant_unsupported")
    runtime, precision = kind.split(":")
    stem = f"{about.name}-{about.version}-{precision}"
    if runtime == "tflite":
        content = _make_tflite(model, precision, inputs, calibration)
        return CompiledFile(
            runtime=runtime,
            precision=precision,
            filename=f"{stem}.tflite",
            media_type=tflite.MEDIA_TYPE,
            data=content,
            requires=tflite.read_requires(content),
        )
    content, requires = _make_package(model, precision, inputs, about)
    return CompiledFile(
        runtime=runtime,
        precision=precision,
        filename=f"{stem}.mlpackage.zip",
        media_type=coreml.MEDIA_TYPE,
        data=content,
        requires=requires,
    )


def _trace(model: keras.Model, inputs: Sequence[Tensor]) -> tuple[Any, list[str]]:
    """Return the network as a TensorFlow function, and the names of its outputs in order."""
    tf = pin_tensorflow(0)
    specs = [
        tf.TensorSpec(one.shape, tf.as_dtype(one.dtype), name=f"x{place}")
        for place, one in enumerate(inputs)
    ]
    names = sorted(one.name for one in signatures.keras_signature(model)[1])

    def answer(*values: Any) -> dict[str, Any]:
        given = {one.name: value for one, value in zip(inputs, values, strict=True)}
        found = signatures.run_keras(model, given)
        return {f"y{place:04}": found[name] for place, name in enumerate(names)}

    return tf.function(answer).get_concrete_function(*specs), names


def _make_tflite(
    model: keras.Model,
    precision: str,
    inputs: Sequence[Tensor],
    calibration: Sequence[Mapping[str, Array]],
) -> bytes:
    tf = pin_tensorflow(0)
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    function, names = _trace(model, inputs)
    frozen = convert_variables_to_constants_v2(function)
    module = tf.Module()
    module.serve = frozen
    with tempfile.TemporaryDirectory() as folder:
        try:
            # As in worker.ml.compilers.tflite: a gradient of somebody's own cannot be saved.
            options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
            tf.saved_model.save(module, folder, signatures=frozen, options=options)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            _set_up(converter, precision, inputs, calibration)
            with warnings.catch_warnings():
                # Calibration opens an interpreter of TensorFlow's, which tells of its coming end.
                warnings.simplefilter("ignore", UserWarning)
                raw = bytes(converter.convert())
        except (ValueError, RuntimeError, TypeError) as error:
            raise CompilationFailed(_sentence("TFLite", error)) from error
    return _rename(raw, [one.name for one in inputs], names)


def _set_up(
    converter: Any,
    precision: str,
    inputs: Sequence[Tensor],
    calibration: Sequence[Mapping[str, Array]],
) -> None:
    import tensorflow as tf

    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":

        def values() -> Iterator[dict[str, Array]]:
            # By name: the converter puts inputs in an order of its own.
            for one in calibration:
                yield {f"x{place}": one[tensor.name] for place, tensor in enumerate(inputs)}

        converter.representative_dataset = values
        # Inputs and outputs stay as they are, so that all variants share a signature.
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            tf.lite.OpsSet.TFLITE_BUILTINS,
        ]


def _rename(raw: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Give inputs and outputs the network's names; converters number them in order."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(raw, 0)
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    for index, tensor in enumerate(graph.tensors):
        tensor.name = f"t{index}"
    for maps, names in ((signature.inputs, inputs), (signature.outputs, outputs)):
        ordered = sorted(maps, key=lambda one: _place(one.name))
        for one, name in zip(ordered, names, strict=True):
            one.name = name
            graph.tensors[one.tensorIndex].name = name
    return tflite._pack(model)  # noqa: SLF001 - of the same package


def _place(name: bytes | str) -> int:
    text = name.decode() if isinstance(name, bytes) else name
    return int("".join(letter for letter in text if letter.isdigit()) or 0)


def _make_package(
    model: keras.Model, precision: str, inputs: Sequence[Tensor], about: About
) -> tuple[bytes, dict[str, Any]]:
    function, names = _trace(model, inputs)
    with coreml.quiet() as ct:
        try:
            converted = ct.convert(
                [function],
                source="tensorflow",
                inputs=[
                    ct.TensorType(name=f"x{place}", shape=one.shape)
                    for place, one in enumerate(inputs)
                ],
                minimum_deployment_target=ct.target.iOS15,
                compute_precision=ct.precision.FLOAT32
                if precision == "float32"
                else ct.precision.FLOAT16,
                skip_model_load=True,
            )
        except (ValueError, RuntimeError, NotImplementedError, TypeError, KeyError) as error:
            raise CompilationFailed(_sentence("a Core ML package", error)) from error
        specification, weights = coreml._parts(converted)  # noqa: SLF001
        outputs = sorted(specification.description.output, key=lambda one: _place(one.name))
        renamed = {f"x{place}": one.name for place, one in enumerate(inputs)}
        renamed |= {feature.name: name for feature, name in zip(outputs, names, strict=True)}
        for old, new in renamed.items():
            ct.utils.rename_feature(specification, old, new)
    specification.description.metadata.shortDescription = about.description or about.name
    specification.description.metadata.versionString = about.version
    # Drops the day of the conversion with the rest.
    specification.description.metadata.userDefined.clear()
    package = mlpackage.make_package(specification.SerializeToString(deterministic=True), weights)
    return mlpackage.pack(package, about.name), coreml.read_requires(specification)


def _sentence(what: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the network cannot become {what}: {lines[0][:300]}"

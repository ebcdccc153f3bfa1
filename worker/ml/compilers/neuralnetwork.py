"""Core ML before ML Programs: one ``.mlmodel`` file, which systems since 2018 run.

Its weights are float32, or the oldest of those systems could not read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from worker.ml.compilers import coreml
from worker.ml.compilers.base import INPUT_NAME, OUTPUT_NAME, About, CompiledFile

if TYPE_CHECKING:
    import keras

    from worker.ml.preprocessing import Preprocessing

MEDIA_TYPE: Final = "application/vnd.apple.mlmodel"
_KIND: Final = "neuralNetworkClassifier"


def compile_file(
    model: keras.Model, labels: Sequence[str], preprocessing: Preprocessing, about: About
) -> CompiledFile:
    """Return the finished file; see :func:`worker.ml.compilers.compile_variant`."""
    from worker.ml.compilers.coreml_check import check_package

    converted = coreml.convert(model, labels, convert_to="neuralnetwork")
    specification = converted.get_spec()
    _canonicalise(specification)
    coreml.describe(specification, labels, preprocessing, about)
    content = specification.SerializeToString(deterministic=True)
    return CompiledFile(
        runtime="coreml",
        precision="neuralnetwork",
        filename=f"{about.name}-{about.version}.mlmodel",
        media_type=MEDIA_TYPE,
        data=content,
        requires=coreml.read_requires(specification),
        checks=check_package(content, labels=labels, keras_model=model),
    )


def _canonicalise(specification: Any) -> None:
    """Name layers and what passes between them by their place, as nothing else is repeatable."""
    network = getattr(specification, _KIND)
    probabilities = specification.description.predictedProbabilitiesName
    names = {INPUT_NAME: INPUT_NAME, probabilities: OUTPUT_NAME}
    inner = network.labelProbabilityLayerName
    for index, layer in enumerate(network.layers):
        layer.name = f"l{index}"
        for place, name in enumerate(layer.input):
            layer.input[place] = names.setdefault(name, f"v{len(names)}")
        for place, name in enumerate(layer.output):
            layer.output[place] = names.setdefault(name, f"v{len(names)}")
    if inner:
        network.labelProbabilityLayerName = names.get(inner, inner)
    for feature in specification.description.output:
        feature.name = names.get(feature.name, feature.name)
    specification.description.predictedProbabilitiesName = OUTPUT_NAME

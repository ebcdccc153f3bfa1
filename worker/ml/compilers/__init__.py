"""From a Keras network to the files that devices run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from worker.ml.compilers.base import COREML_TARGETS, USUAL, VARIANTS, About, CompiledFile
from worker.ml.compression.recipes import RECIPES
from worker.ml.errors import CompilationFailed

if TYPE_CHECKING:
    import keras

    from worker.ml.preprocessing import Pixels, Preprocessing

__all__ = ["COREML_TARGETS", "USUAL", "VARIANTS", "About", "CompiledFile", "compile_variant"]


def compile_variant(
    model: keras.Model,
    runtime: str,
    precision: str,
    *,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    calibration_images: Sequence[Pixels] = (),
    name: str,
    version: str,
    description: str = "",
    author: str = "",
    license: str = "",  # noqa: A002 - the formats call it so
    coreml_target: str = COREML_TARGETS[0],
    compressed: keras.Model | None = None,
) -> CompiledFile:
    """Return the network as one file, with labels and preprocessing inside.

    ``calibration_images`` are photos from :func:`~worker.ml.preprocessing.load_image`, always
    the same ones for the same bytes; integer kinds and filter pruning use them.
    ``compressed`` is the network by the kind's recipe (:mod:`worker.ml.compression`), where it
    was trained on; without it the weights are changed here, once, and left at that.

    Raises :class:`CompilationFailed`. Checks that fail are no error: they are in the result.
    """
    if (runtime, precision) not in VARIANTS:
        message = f"there is no variant {runtime} {precision}"
        raise CompilationFailed(message, code="variant_unknown")
    _check_shapes(model, labels, preprocessing)
    about = About(name, str(version), description, author, license)
    recipe = RECIPES.get((runtime, precision))
    if recipe is not None and compressed is None:
        from worker.ml.compression import compress_once

        compressed = compress_once(model, recipe, calibration_images, preprocessing)
    network = model if compressed is None else compressed
    if runtime == "tflite":
        from worker.ml.compilers import tflite

        made = tflite.compile_file(
            network, precision, labels, preprocessing, calibration_images, about
        )
    else:
        from worker.ml.compilers import coreml

        made = coreml.compile_file(
            network, precision, labels, preprocessing, about, target=coreml_target
        )
    return dataclasses.replace(made, network=compressed)


def _check_shapes(model: keras.Model, labels: Sequence[str], preprocessing: Preprocessing) -> None:
    wanted = (None, preprocessing.height, preprocessing.width, 3)
    if tuple(model.input_shape)[1:] != wanted[1:]:
        message = f"the network takes {model.input_shape}, the preprocessing gives {wanted}"
        raise CompilationFailed(message, code="input_mismatch")
    if tuple(model.output_shape)[1:] != (len(labels),):
        message = f"the network answers {model.output_shape} for {len(labels)} labels"
        raise CompilationFailed(message, code="label_count_mismatch")

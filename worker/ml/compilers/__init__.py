"""From a Keras network to the files that devices run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from worker.ml.compilers.base import VARIANTS, About, CompiledFile
from worker.ml.errors import CompilationFailed

if TYPE_CHECKING:
    import keras

    from worker.ml.preprocessing import Pixels, Preprocessing

__all__ = ["VARIANTS", "About", "CompiledFile", "compile_variant"]


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
) -> CompiledFile:
    """Return the network as one file, with labels and preprocessing inside.

    ``calibration_images`` are photos from :func:`~worker.ml.preprocessing.load_image`, always
    the same ones for the same bytes; only int8 uses them.

    Raises :class:`CompilationFailed`. Checks that fail are no error: they are in the result.
    """
    if (runtime, precision) not in VARIANTS:
        message = f"there is no variant {runtime} {precision}"
        raise CompilationFailed(message, code="variant_unknown")
    _check_shapes(model, labels, preprocessing)
    about = About(name, str(version), description, author, license)
    if runtime == "tflite":
        from worker.ml.compilers import tflite

        return tflite.compile_file(
            model, precision, labels, preprocessing, calibration_images, about
        )
    from worker.ml.compilers import coreml

    return coreml.compile_file(model, precision, labels, preprocessing, about)


def _check_shapes(model: keras.Model, labels: Sequence[str], preprocessing: Preprocessing) -> None:
    wanted = (None, preprocessing.height, preprocessing.width, 3)
    if tuple(model.input_shape)[1:] != wanted[1:]:
        message = f"the network takes {model.input_shape}, the preprocessing gives {wanted}"
        raise CompilationFailed(message, code="input_mismatch")
    if tuple(model.output_shape)[1:] != (len(labels),):
        message = f"the network answers {model.output_shape} for {len(labels)} labels"
        raise CompilationFailed(message, code="label_count_mismatch")

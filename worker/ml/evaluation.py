"""What a network, or a file compiled from it, makes of photos it never saw."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.determinism import THREADS
from worker.ml.errors import ModelUnusable
from worker.ml.preprocessing import Pixels, Preprocessing, to_input

if TYPE_CHECKING:
    import keras

    from worker.ml.coreml import CoreMLModel

Probabilities = npt.NDArray[np.float32]
"""(photos, labels)"""

_BATCH: Final = 32
_Z_95: Final = 1.959963984540054


def predict_keras(
    model: keras.Model, images: Sequence[Pixels], preprocessing: Preprocessing | None = None
) -> Probabilities:
    """Return the probabilities by the Keras network; raises :class:`ModelUnusable`."""
    preprocessing = preprocessing or _plain(images)
    batches = [
        np.asarray(model(to_input(images[start : start + _BATCH], preprocessing), training=False))
        for start in range(0, len(images), _BATCH)
    ]
    return _checked(np.concatenate(batches).astype(np.float32), "the Keras network")


def predict_tflite(
    source: Path | bytes,
    images: Sequence[Pixels],
    preprocessing: Preprocessing | None = None,
    *,
    threads: int = THREADS,
    is_accelerated: bool = True,
) -> tuple[Probabilities, dict[str, float]]:
    """Return the probabilities by a TFLite file, and its latency.

    Integer inputs and outputs are quantised and dequantised by the file's own scale and zero
    point. Without ``is_accelerated`` LiteRT's plain kernels calculate, not XNNPACK's. The latency
    is milliseconds per photo of the network alone: ``p50``, ``p95``, and the number of
    ``threads``. Needs no TensorFlow. Raises :class:`ModelUnusable`.
    """
    preprocessing = preprocessing or _plain(images)
    interpreter = open_tflite(source, threads=threads, is_accelerated=is_accelerated)
    rows, durations = [], []
    for image in images:
        row, duration = _run_one(interpreter, to_input([image], preprocessing))
        rows.append(row)
        durations.append(duration * 1000)
    latency = {
        "p50": round(float(np.percentile(durations, 50)), 3),
        "p95": round(float(np.percentile(durations, 95)), 3),
        "threads": threads,
    }
    return _checked(np.stack(rows), "the TFLite file"), latency


def predict_coreml(
    model: CoreMLModel,
    images: Sequence[Pixels],
    preprocessing: Preprocessing | None = None,
    *,
    rounds: bool = True,
) -> Probabilities:
    """Return the probabilities by a Core ML file, calculated by the MIL definitions.

    No phone was asked: see ``docs/coreml-on-linux.md``, also for ``rounds``. Raises
    :class:`ModelUnusable`, of which :class:`~worker.ml.coreml.OperatorUnknown` is one.
    """
    preprocessing = preprocessing or _plain(images)
    pixels = [to_input([image], preprocessing)[0] for image in images]
    return _checked(model.predict(pixels, rounds=rounds), "the Core ML file")


def open_tflite(
    source: Path | bytes, *, threads: int = THREADS, is_accelerated: bool = True
) -> Any:
    """Return a ready interpreter; raises :class:`ModelUnusable` where LiteRT refuses the file."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = (
        OpResolverType.AUTO if is_accelerated else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    where: dict[str, Any] = (
        {"model_content": source} if isinstance(source, bytes) else {"model_path": str(source)}
    )
    try:
        interpreter = Interpreter(
            num_threads=threads, experimental_op_resolver_type=kernels, **where
        )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        message = f"LiteRT cannot load the file: {error}"
        raise ModelUnusable(message) from error
    return interpreter


def _run_one(
    interpreter: Any, photo: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], float]:
    inputs, outputs = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    try:
        interpreter.set_tensor(inputs["index"], _quantise(photo, inputs))
        begun = time.perf_counter()
        interpreter.invoke()
        duration = time.perf_counter() - begun
    except (ValueError, RuntimeError) as error:
        message = f"the TFLite file does not run on a photo of {photo.shape[1:]}: {error}"
        raise ModelUnusable(message) from error
    return _dequantise(interpreter.get_tensor(outputs["index"])[0], outputs), duration


def _quantise(values: npt.NDArray[np.float32], details: dict[str, Any]) -> npt.NDArray[Any]:
    dtype = np.dtype(details["dtype"])
    scale, zero_point = details["quantization"]
    if not np.issubdtype(dtype, np.integer):
        return values.astype(dtype)
    # An integer input without a scale takes the pixels as they are.
    steps = values if scale == 0 else np.round(values / scale) + zero_point
    limits = np.iinfo(dtype)
    clipped: npt.NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(dtype)
    return clipped


def _dequantise(values: npt.NDArray[Any], details: dict[str, Any]) -> npt.NDArray[np.float32]:
    scale, zero_point = details["quantization"]
    if not np.issubdtype(values.dtype, np.integer) or scale == 0:
        return values.astype(np.float32)
    real: npt.NDArray[np.float32] = (values.astype(np.float32) - zero_point) * np.float32(scale)
    return real


def measure(
    probabilities: Probabilities, label_indexes: Sequence[int], labels: Sequence[str]
) -> dict[str, Any]:
    """Return how well the probabilities name the photos' labels, ready for JSON.

    ``interval`` is Wilson's (1927) at 95 %; ``confusion[i][j]`` counts photos of label i that
    were called j. Of each label ``count`` photos were shown, ``said`` were called it and
    ``correct`` both; a precision or recall over no photos is None.
    """
    truth = np.asarray(label_indexes, dtype=np.int64)
    if probabilities.shape != (len(truth), len(labels)):
        message = (
            f"there are probabilities of shape {probabilities.shape} for {len(truth)} photos "
            f"and {len(labels)} labels"
        )
        raise ModelUnusable(message)
    called = probabilities.argmax(axis=1) if len(truth) else truth
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, (truth, called), 1)
    right = int((called == truth).sum())
    return {
        "accuracy": right / len(truth) if len(truth) else None,
        "count": len(truth),
        "correct": right,
        "interval": wilson_interval(right, len(truth)),
        "log_loss": _log_loss(probabilities, truth),
        "per_label": {label: _of_label(confusion, index) for index, label in enumerate(labels)},
        "confusion": confusion.tolist(),
    }


def agreement(ours: Probabilities, theirs: Probabilities) -> dict[str, Any]:
    """Return how two networks agree on the same photos: in the label, and in probability.

    ``interval`` is Wilson's at 95 %, of ``agreeing`` photos of ``count``.
    """
    same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    return {
        "top1": float(same.mean()) if len(same) else None,
        "agreeing": int(same.sum()),
        "interval": wilson_interval(int(same.sum()), len(same)),
        "max_difference": float(np.abs(ours - theirs).max()) if len(same) else None,
        "count": len(same),
    }


def share_of(right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return the share of photos answered rightly, with its count and interval, ready for JSON."""
    correct, count = int(right.sum()), len(right)
    return {
        "accuracy": correct / count if count else None,
        "count": count,
        "correct": correct,
        "interval": wilson_interval(correct, count),
    }


def wilson_interval(successes: int, count: int) -> list[float]:
    """Return the lower and upper bound of a proportion, 95 % (Wilson 1927)."""
    if count == 0:
        return [0.0, 1.0]
    share, z_squared = successes / count, _Z_95**2
    centre = share + z_squared / (2 * count)
    half = _Z_95 * np.sqrt(share * (1 - share) / count + z_squared / (4 * count**2))
    bounds = (centre - half) / (1 + z_squared / count), (centre + half) / (1 + z_squared / count)
    return [max(0.0, float(bounds[0])), min(1.0, float(bounds[1]))]


def _of_label(confusion: npt.NDArray[np.int64], index: int) -> dict[str, Any]:
    hit, shown, said = confusion[index, index], confusion[index].sum(), confusion[:, index].sum()
    return {
        "precision": float(hit / said) if said else None,
        "recall": float(hit / shown) if shown else None,
        "count": int(shown),
        "said": int(said),
        "correct": int(hit),
        "recall_interval": wilson_interval(int(hit), int(shown)),
        "precision_interval": wilson_interval(int(hit), int(said)),
    }


def _log_loss(probabilities: Probabilities, truth: npt.NDArray[np.int64]) -> float | None:
    if not len(truth):
        return None
    of_label = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return float(-np.log(np.clip(of_label, 1e-7, 1.0)).mean())


def _checked(probabilities: Probabilities, what: str) -> Probabilities:
    """Stop at NaN: a network without weights answers it, and its largest entry is label 0."""
    if not np.isfinite(probabilities).all():
        message = f"{what} gave answers that are not finite numbers"
        raise ModelUnusable(message, code="outputs_not_finite")
    if probabilities.ndim != 2:  # noqa: PLR2004
        message = f"{what} answers with shape {probabilities.shape}, not one row per photo"
        raise ModelUnusable(message)
    return probabilities


def _plain(images: Sequence[Pixels]) -> Preprocessing:
    height, width = images[0].shape[:2] if len(images) else (1, 1)
    return Preprocessing(width=width, height=height)

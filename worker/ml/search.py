"""The tensors of a budget search: what networks come to when cut, and files of the finalists."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from worker.ml import evaluation
from worker.ml.architectures.counting import count_multiply_adds, count_parameters
from worker.ml.compilers import compile_variant
from worker.ml.embeddings import TOP, Embedder, cut
from worker.ml.training import assemble

if TYPE_CHECKING:
    from worker.ml.architectures import Architecture
    from worker.ml.preprocessing import Pixels, Preprocessing
    from worker.ml.training import Head, Indexes
    from worker.ml.weights import Weights

PRECISIONS: Final = ("float32", "float16", "int8")
_TIMED: Final = 10


@dataclass(frozen=True)
class Cut:
    """A network that ends at ``depth``, with a linear layer on top."""

    depth: str
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Measured:
    """One file run over photos."""

    precision: str
    size_bytes: int
    latency_ms: float
    """The middle one of all photos, of the network alone, one thread."""
    right: Mapping[str, Any]
    """By split, bool (photos,)."""


def measure_cuts(architecture: Architecture, label_count: int) -> list[Cut]:
    """Return what the network comes to at each of its depths, counted, not trained."""
    backbone = architecture.build(architecture.input_size)
    found = []
    for depth in (*architecture.depths, TOP):
        network = cut(backbone, [depth])
        head = (int(network.output.shape[-1]) + 1) * label_count
        found.append(
            Cut(depth, count_parameters(network) + head, count_multiply_adds(network) + head)
        )
    return found


def time_network(embedder: Embedder) -> float:
    """Return about how many ms the whole network takes for one photo in float32."""
    side = embedder.architecture.input_size
    photo = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    durations = []
    for _ in range(_TIMED + 1):
        begun = time.perf_counter()
        embedder.embed_depths([photo])
        durations.append(time.perf_counter() - begun)
    # The first one loads the file; the least is what other work disturbed least.
    return min(durations[1:]) * 1000


def build_files(
    architecture: Architecture,
    weights: Weights,
    head: Head,
    labels: Sequence[str],
    *,
    depth: str,
    preprocessing: Preprocessing,
    calibration: Sequence[Pixels],
    photos: Mapping[str, tuple[Sequence[Pixels], Indexes]],
) -> list[Measured]:
    """Return the network as a TFLite file of each precision, run over the photos of each split."""
    model = assemble(architecture, weights, head, labels, depth=depth)
    found = []
    for precision in PRECISIONS:
        made = compile_variant(
            model,
            "tflite",
            precision,
            labels=labels,
            preprocessing=preprocessing,
            calibration_images=calibration,
            name=architecture.name,
            version="search",
        )
        right, latency = {}, []
        for split, (images, targets) in photos.items():
            right[split] = np.zeros(0, dtype=np.bool_)
            if len(images):
                answers, took = evaluation.predict_tflite(made.data, images, preprocessing)
                right[split] = answers.argmax(axis=1) == targets
                latency.append(took["p50"])
        found.append(Measured(precision, len(made.data), min(latency, default=0.0), right))
    return found

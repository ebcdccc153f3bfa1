"""Trains on real photos and compiles every variant; prints a hash of each.

``python -m tests.worker.ml.compile_all PHOTOS.npz WEIGHTS_FOLDER CACHE_FOLDER forwards|backwards``.
A process of its own, as a training task is: what it prints may not depend on which process that
was, nor on the order in which it made the files.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from worker.ml.determinism import pin

SEED = 5


def main(photos: Path, weights_folder: Path, cache_folder: Path, order: str) -> None:
    """Print ``{what: sha256}`` as JSON: a head on real features, and one small network's files."""
    pin(SEED)
    import numpy as np

    from tests.worker.ml.conftest import BACKBONE, LABELS, SMALL_SIDE
    from worker.ml import compilers, evaluation, training
    from worker.ml.architectures import find_architecture
    from worker.ml.compression import RECIPES, TrainingPhotos, compress
    from worker.ml.embeddings import Embedder
    from worker.ml.preprocessing import default_preprocessing
    from worker.ml.weights import find_weights

    with np.load(photos) as stored:
        large, small, indexes = stored["large"], list(stored["small"]), stored["indexes"]
    weights = find_weights(BACKBONE, weights_folder, allow_download=False)
    embedder = Embedder(find_architecture(BACKBONE), weights, cache_folder)
    head = training.train_head(
        embedder.embed(large),
        indexes,
        label_count=len(LABELS),
        seed=SEED,
        progress=lambda *_: None,
    )
    found = {"head": _sha256(head.kernel.tobytes() + head.bias.tobytes())}
    epochs: list[int] = []
    model = training.train_from_scratch(
        small,
        indexes,
        label_count=len(LABELS),
        architecture=find_architecture("small_cnn").at(SMALL_SIDE),
        seed=SEED,
        progress=lambda _stage, step, *_: epochs.append(step),
        should_stop=lambda: len(epochs) > 1,
    )
    found["weights"] = training.weights_digest(model)
    photos = TrainingPhotos(
        small, indexes, evaluation.predict_keras(model, small), default_preprocessing(SMALL_SIDE)
    )
    joint = compress(
        model, RECIPES["coreml", "joint"], photos, epochs=2, seed=SEED, progress=lambda *_: None
    )
    found["joint, trained on"] = training.weights_digest(joint)
    for runtime, precision in compilers.VARIANTS[:: 1 if order == "forwards" else -1]:
        made = compilers.compile_variant(
            model,
            runtime,
            precision,
            labels=LABELS,
            preprocessing=default_preprocessing(SMALL_SIDE),
            calibration_images=small,
            name="recyclables",
            version="1",
        )
        found[f"{runtime} {precision}"] = _sha256(made.data)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])

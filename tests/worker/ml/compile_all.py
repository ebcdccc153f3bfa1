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
    """Print ``{variant: sha256}`` as JSON."""
    pin(SEED)
    import numpy as np

    from tests.worker.ml.conftest import BACKBONE, LABELS
    from worker.ml import compilers, training
    from worker.ml.architectures import find_architecture
    from worker.ml.embeddings import Embedder
    from worker.ml.weights import find_weights

    with np.load(photos) as stored:
        images, indexes = list(stored["images"]), stored["indexes"]
    architecture = find_architecture(BACKBONE)
    weights = find_weights(BACKBONE, weights_folder, allow_download=False)
    embedder = Embedder(architecture, weights, cache_folder)
    head = training.train_head(
        embedder.embed(images),
        indexes,
        label_count=len(LABELS),
        seed=SEED,
        progress=lambda *_: None,
    )
    model = training.assemble(architecture, weights, head, LABELS)
    found = {"weights": training.weights_digest(model)}
    for runtime, precision in compilers.VARIANTS[:: 1 if order == "forwards" else -1]:
        made = compilers.compile_variant(
            model,
            runtime,
            precision,
            labels=LABELS,
            preprocessing=embedder.preprocessing,
            calibration_images=images,
            name="recyclables",
            version="1",
        )
        found[f"{runtime} {precision}"] = hashlib.sha256(made.data).hexdigest()
        (cache_folder / f"{runtime}-{precision}").write_bytes(made.data)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])

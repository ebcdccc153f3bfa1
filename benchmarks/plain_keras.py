"""A plain Keras ``fit`` of the nightly's network, from the photos of the newest snapshot.

Called by ``benchmarks.nightly``, in a process of its own; prints one line of JSON.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "server.settings")
django.setup()

import numpy as np  # noqa: E402
from django.conf import settings  # noqa: E402

from server import blobs  # noqa: E402
from server.training.models import DatasetSnapshot  # noqa: E402
from worker.ml.architectures import find_architecture  # noqa: E402
from worker.ml.embeddings import load_backbone  # noqa: E402
from worker.ml.preprocessing import Preprocessing  # noqa: E402
from worker.ml.weights import find_weights  # noqa: E402
from worker.pipelines import fitting, photos  # noqa: E402


def main(epochs: int) -> None:
    import keras

    name = fitting.PRETRAINED[0]
    architecture = find_architecture(name)
    weights = find_weights(name, settings.NIGHTFERRY_WEIGHTS, allow_download=False)
    snapshot = DatasetSnapshot.objects.first()
    sets = photos.split_sets(snapshot)
    side = architecture.input_size
    preprocessing = Preprocessing(width=side, height=side)

    class Photos(keras.utils.PyDataset):
        def __len__(self) -> int:
            return math.ceil(len(sets["train"]) / 32)

        def __getitem__(self, index: int):
            rows = slice(index * 32, index * 32 + 32)
            entries = sets["train"].entries[rows]
            images = photos.load_images(entries, preprocessing, blobs.store())
            return np.stack(images).astype(np.float32), sets["train"].targets[rows]

    begun = time.monotonic()
    backbone = load_backbone(architecture, weights)
    backbone.trainable = False
    outputs = keras.layers.Dense(len(snapshot.labels), activation="softmax")(backbone.output)
    model = keras.Model(backbone.input, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(Photos(), epochs=epochs, verbose=0)
    seconds = time.monotonic() - begun
    test = photos.load_images(sets["test"], preprocessing, blobs.store())
    said = model.predict(np.stack(test).astype(np.float32), verbose=0).argmax(axis=1)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "photos": len(sets["train"]),
                "accuracy": float((said == sets["test"].targets).mean()),
                "count": len(sets["test"]),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))

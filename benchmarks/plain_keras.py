"""A plain Keras ``fit`` of the nightly's network, from the photos of the newest snapshot.

Called by ``benchmarks.nightly``, in a process of its own; prints one line of JSON per epoch.
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

# Half a point less than the night's accuracy is as good.
TOLERANCE = 0.005
BATCH = 32


def main(most_epochs: int, wanted: float) -> None:
    import keras

    name = fitting.PRETRAINED[0]
    architecture = find_architecture(name)
    weights = find_weights(name, settings.NIGHTFERRY_WEIGHTS, allow_download=False)
    snapshot = DatasetSnapshot.objects.first()
    sets = photos.split_sets(snapshot)
    side = architecture.input_size
    preprocessing = Preprocessing(width=side, height=side)

    class Photos(keras.utils.PyDataset):
        def __init__(self, found: photos.PhotoSet, *, is_shuffled: bool) -> None:
            super().__init__()
            self.found, self.generator = found, np.random.default_rng(1)
            self.order, self.is_shuffled = np.arange(len(found)), is_shuffled
            self.on_epoch_end()

        def __len__(self) -> int:
            return math.ceil(len(self.found) / BATCH)

        def __getitem__(self, index: int):
            rows = self.order[index * BATCH : index * BATCH + BATCH]
            entries = [self.found.entries[row] for row in rows]
            images = photos.load_images(entries, preprocessing, blobs.store())
            return np.stack(images).astype(np.float32), self.found.targets[rows]

        def on_epoch_end(self) -> None:
            if self.is_shuffled:
                self.generator.shuffle(self.order)

    backbone = load_backbone(architecture, weights)
    backbone.trainable = False
    outputs = keras.layers.Dense(len(snapshot.labels), activation="softmax")(backbone.output)
    model = keras.Model(backbone.input, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    train = Photos(sets["train"], is_shuffled=True)
    test = Photos(sets["test"], is_shuffled=False)
    cpu_s = wall_s = 0.0
    for epoch in range(1, most_epochs + 1):
        cpu, wall = time.process_time(), time.monotonic()
        model.fit(train, epochs=1, shuffle=False, verbose=0)
        cpu_s, wall_s = cpu_s + time.process_time() - cpu, wall_s + time.monotonic() - wall
        said = model.predict(test, verbose=0).argmax(axis=1)
        accuracy = float((said == sets["test"].targets).mean())
        facts = {
            "epoch": epoch,
            "cpu_s": round(cpu_s, 1),
            "wall_s": round(wall_s, 1),
            "photos": len(sets["train"]),
            "accuracy": round(accuracy, 4),
            "count": len(sets["test"]),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
        if accuracy >= wanted - TOLERANCE:
            break


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

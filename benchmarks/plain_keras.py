"""A plain Keras ``fit`` of the nightly's network, from the photos of the newest snapshot.

Called by ``benchmarks.nightly``, in a process of its own; prints one line of JSON per epoch.

The base is frozen and nothing varies the photos, so every epoch computes the same features anew
and trains the same layer on them. How many epochs it takes is therefore found on the features
once computed, with the same optimiser, batches and order, and what an epoch costs is timed in a
real ``fit`` from photos of so many photos as asked for (``timed_photos``; 0 takes all of them).
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
from worker.ml.embeddings import TOP, Embedder, load_backbone  # noqa: E402
from worker.ml.preprocessing import Preprocessing  # noqa: E402
from worker.ml.weights import find_weights  # noqa: E402
from worker.pipelines import fitting, photos  # noqa: E402

# Half a point less than the night's accuracy is as good.
TOLERANCE = 0.005
BATCH = 32
WARM_UP = 64


def main(most_epochs: int, wanted: float, timed: int) -> None:
    import keras

    name = fitting.PRETRAINED[0]
    architecture = find_architecture(name)
    weights = find_weights(name, settings.NIGHTFERRY_WEIGHTS, allow_download=False)
    snapshot = DatasetSnapshot.objects.first()
    sets = photos.split_sets(snapshot)
    side = architecture.input_size
    preprocessing = Preprocessing(width=side, height=side)
    train, test, store = sets["train"], sets["test"], blobs.store()

    class Photos(keras.utils.PyDataset):
        def __init__(self, first: int, last: int) -> None:
            super().__init__()
            self.rows = np.random.default_rng(1).permutation(len(train))[first:last]

        def __len__(self) -> int:
            return math.ceil(len(self.rows) / BATCH)

        def __getitem__(self, index: int):
            rows = self.rows[index * BATCH : index * BATCH + BATCH]
            images = photos.load_images([train.entries[row] for row in rows], preprocessing, store)
            return np.stack(images).astype(np.float32), train.targets[rows]

    def classifier(features: keras.KerasTensor, inputs: keras.KerasTensor) -> keras.Model:
        keras.utils.set_random_seed(1)
        outputs = keras.layers.Dense(len(snapshot.labels), activation="softmax")(features)
        model = keras.Model(inputs, outputs)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    backbone = load_backbone(architecture, weights)
    backbone.trainable = False
    whole = classifier(backbone.output, backbone.input)
    whole.fit(Photos(0, WARM_UP), epochs=1, shuffle=False, verbose=0)
    timed = min(timed or len(train), len(train))
    cpu, wall = time.process_time(), time.monotonic()
    whole.fit(Photos(0, timed), epochs=1, shuffle=False, verbose=0)
    cpu, wall = (time.process_time() - cpu) / timed, (time.monotonic() - wall) / timed

    embedder = Embedder(
        architecture, weights, settings.NIGHTFERRY_DATA / "embedders", preprocessing=preprocessing
    )
    cache = photos.FeatureCache(embedder, store)
    known, unseen = cache.load(train.photos, TOP), cache.load(test.photos, TOP)
    inputs = keras.Input((known.shape[1],))
    head = classifier(inputs, inputs)
    for epoch in range(1, most_epochs + 1):
        head.fit(known, train.targets, batch_size=BATCH, epochs=1, verbose=0)
        accuracy = float((head.predict(unseen, verbose=0).argmax(axis=1) == test.targets).mean())
        facts = {
            "epoch": epoch,
            "cpu_s": round(cpu * len(train) * epoch, 1),
            "wall_s": round(wall * len(train) * epoch, 1),
            "cpu_ms_per_photo_and_epoch": round(cpu * 1000, 2),
            "timed_photos": timed,
            "photos": len(train),
            "accuracy": round(accuracy, 4),
            "count": len(test),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
        if accuracy >= wanted - TOLERANCE:
            break


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1000)

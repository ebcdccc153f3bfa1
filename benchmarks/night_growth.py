"""How the part of a night that every photo takes part in grows: from 1,000 to 100,000 photos.

    python -m benchmarks.night_growth [COUNT ...]

Photos and features are simulated: rows and blobs of the right number and size, features random
around a centre of each label, no pixels. What is timed is the server's own code: freezing the
snapshot, asking which photos have no features, reading the features, refitting the last layer.
Embedding the new photos, compiling and measuring are not in it. CPU seconds, in a process each.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LABELS = ("cardboard", "glass", "metal", "paper", "plastic", "trash")
SIZE = 1280
SPREAD = 0.09
KEY = "simulated-1280"


def main(counts: list[int]) -> None:
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="nightferry-benchmark-") as folder:
            env = os.environ | {
                "NIGHTFERRY_DATA": folder,
                "LOG_LEVEL": "ERROR",
                "OMP_NUM_THREADS": "1",
            }
            command = [sys.executable, "-m", "benchmarks.night_growth"]
            for step in ("fill", "time"):
                done = subprocess.run(
                    [*command, step, str(count)],
                    cwd=ROOT, env=env, capture_output=True, text=True, check=False,
                )  # fmt: skip
                if done.returncode:
                    sys.exit(done.stderr[-3000:])
            print(f"{count:>7} photos: {done.stdout.strip()}; load {os.getloadavg()[0]:.1f}")
            sys.stdout.flush()


def fill(count: int) -> None:
    """Write so many photos with features."""
    import numpy as np
    from django.conf import settings
    from django.core.management import call_command
    from django.utils import timezone

    from server import blobs
    from server.photos.models import Photo, PhotoEmbedding
    from server.registry.actions import create_model

    call_command("migrate", verbosity=0)
    model = create_model(slug="bench", labels=LABELS, training_policy={"seed": 1})
    labels = {label.name: label for label in model.labels.all()}
    generator = np.random.default_rng(1)
    centres = generator.normal(0, SPREAD, (len(LABELS), SIZE))
    where = Path(blobs.store().put_bytes(b"where").sha256)
    folder = next(settings.NIGHTFERRY_DATA.rglob(str(where)))
    digest = folder.name
    shape = folder.relative_to(settings.NIGHTFERRY_DATA).as_posix()
    for first in range(0, count, 2000):
        photos, rows = [], []
        for number in range(first, min(first + 2000, count)):
            label = LABELS[number % len(LABELS)]
            vector = centres[number % len(LABELS)] + generator.normal(0, 1, SIZE)
            content = vector.astype("<f4").tobytes()
            sha256 = hashlib.sha256(content).hexdigest()
            # Without the store's care for a power cut, which would take an hour here.
            path = settings.NIGHTFERRY_DATA / _address(shape, digest, sha256)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            own = hashlib.sha256(b"%d" % number).hexdigest()
            photo = Photo(
                model=model, label=labels[label], contributor=f"p{number // 20}",
                state="accepted", blob_sha256=own, source_digest=own, blob_digest=own,
                size_bytes=1, width=1, height=1, decided_at=timezone.now(),
            )  # fmt: skip
            photos.append(photo)
            rows.append(
                PhotoEmbedding(photo=photo, key=KEY, blob_sha256=sha256, size_bytes=len(content))
            )
        Photo.objects.bulk_create(photos)
        PhotoEmbedding.objects.bulk_create(rows)


def _address(shape: str, digest: str, sha256: str) -> str:
    """Return where the store keeps a blob, by the example of another."""
    parts = [
        sha256[digest.index(part) : digest.index(part) + len(part)] if part in digest else part
        for part in shape.split("/")
    ]
    return "/".join(parts)


def measure() -> None:
    """Time the steps of a night on what is there."""
    import numpy as np

    from server import blobs
    from server.registry.models import Model
    from server.training import actions
    from worker.ml.training import train_head
    from worker.pipelines import photos

    class Embedder:
        """Only its keys are asked for."""

        def key_of(self, depth: str, view: str = "") -> str:
            del depth, view
            return KEY

    marks: dict[str, float] = {}
    at = time.process_time()

    def mark(name: str) -> None:
        nonlocal at
        now = time.process_time()
        marks[name], at = round(now - at, 2), now

    model = Model.objects.get()
    run = actions.start_run(run_id=actions.request_run(model=model).pk)
    snapshot = actions.freeze_snapshot(run=run)
    sets = photos.split_sets(snapshot)
    mark("snapshot")
    cache = photos.FeatureCache(Embedder(), blobs.store())
    for found in sets.values():
        cache.fill(found.photos, depths=["features"], views=0, progress=_nothing)
    mark("what_is_missing")
    train, held = sets["train"], sets["validation"]
    features = cache.load(train.photos, "features")
    validation = cache.load(held.photos, "features"), held.targets
    mark("reading_features")
    head = train_head(
        features, train.targets, validation=validation, label_count=len(LABELS), progress=_nothing
    )
    mark("refit")
    unseen = cache.load(sets["test"].photos[:2000], "features")
    right = head.logits(unseen).argmax(axis=1) == sets["test"].targets[:2000]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(
        json.dumps({**marks, "accuracy": round(float(np.mean(right)), 4), "peak_mib": peak})
    )


def _nothing(*_: object) -> None:
    pass


if __name__ == "__main__":
    if sys.argv[1:2] in (["fill"], ["time"]):
        import django

        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "server.settings")
        django.setup()
        fill(int(sys.argv[2])) if sys.argv[1] == "fill" else measure()
    else:
        main([int(count) for count in sys.argv[1:]] or [1000, 10_000, 100_000])

"""Brings photos to a server of its own, runs a night or two, and prints what came of each.

``python -m tests.worker.nights PHOTOS forwards|backwards NIGHTS``, with NIGHTFERRY_DATA an empty
folder. Between the nights every test photo gets other pixels, some become golden, and the gate
is told to judge on those.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import django
from PIL import Image, ImageOps

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "server.settings")
LABELS = ("glass", "metal", "paper")
PER_LABEL, PEOPLE = 14, 6
POLICY = {
    "architecture": "mobilenet_v2_0.35_224",
    "variants": ["tflite:float32", "tflite:int8", "coreml:float16"],
    "seed": 11,
}


def main(folder: Path, order: str, nights: int) -> None:
    """Print one line of JSON for each night."""
    from django.core.management import call_command

    from server.registry.actions import create_model

    call_command("migrate", verbosity=0)
    model = create_model(slug="recyclables", labels=LABELS, training_policy=POLICY)
    bring(model, folder, backwards=order == "backwards")
    for night in range(nights):
        if night:
            change_tests(model)
        sys.stdout.write("\nNIGHT " + json.dumps(run_night(model)) + "\n")


def bring(model: Any, folder: Path, *, backwards: bool) -> None:
    """Import some photos of each label in turn, of six people."""
    from server.photos import actions, intake

    files = [
        (label, number, path)
        for label in LABELS
        for number, path in enumerate(sorted((folder / label).iterdir())[:PER_LABEL])
    ]
    labels = {label.name: label for label in model.labels.all()}
    for label, number, path in reversed(files) if backwards else files:
        actions.import_photo(
            model=model,
            label=labels[label],
            found=intake.examine(path, limits=actions.limits_of(model)),
            contributor=f"person{number % PEOPLE}",
            is_accepted=True,
        )


def change_tests(model: Any) -> None:
    """Give every test photo other pixels, without features; make two of them golden."""
    from server import blobs
    from server.photos.models import Photo, PhotoEmbedding
    from server.registry.actions import change_model
    from server.training.golden import pin_golden

    tests = Photo.objects.filter(snapshot_entries__split="test").distinct()
    for photo in tests:
        with Image.open(io.BytesIO(blobs.store().read(photo.blob_sha256))) as image:
            buffer = io.BytesIO()
            ImageOps.invert(image.convert("RGB")).save(buffer, "JPEG")
        blob = blobs.store().put_bytes(buffer.getvalue())
        Photo.objects.filter(pk=photo.pk).update(blob_sha256=blob.sha256)
    PhotoEmbedding.objects.filter(photo__in=tests).delete()
    chosen = [photo.pk for photo in tests.order_by("label", "pk")[:2]]
    pin_golden(model=model, photo_ids=chosen, reason="a test", actor=None)
    # Another bar for tuning, so that the choice is measured anew and not taken over.
    again = {"gate_on": "golden", "lower_min_gain": 0.0100001}
    change_model(model=model, training_policy=again, actor=None)


def run_night(model: Any) -> dict[str, Any]:
    """Train as a worker does, in a process of its own; return what may not depend on where."""
    from server.training import actions
    from worker.tasks import run_job

    run = actions.request_run(model=model)
    run_job(str(run.job_id))
    run.refresh_from_db()
    version = run.version
    variants = version.variants.all() if version is not None else ()
    if version is not None and not model.channels.exists():
        from server.rollouts import actions as rollouts

        rollouts.release_version(version=version)
    return {
        "state": run.state,
        "outcome": run.outcome,
        "digest": run.snapshot and run.snapshot.digest,
        "counts": run.snapshot and run.snapshot.counts,
        "weights": version and version.weights_sha256,
        "files": {f"{v.runtime}:{v.precision}": v.sha256 for v in variants},
        "shipped": {f"{v.runtime}:{v.precision}": v.is_shipped for v in variants},
        "gates": {f"{v.runtime}:{v.precision}": v.metrics.get("gate") for v in variants},
        "metrics": version and version.metrics,
    }


if __name__ == "__main__":
    django.setup()
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

"""Makes many photos of the real ones at hand, for benchmarks that need more than there are.

    python -m benchmarks.derived_photos MODEL FOLDER FIRST COUNT

Photo n is the original n modulo their number, cropped, turned, lit and compressed by a generator
seeded with n; the first round are the originals themselves. All that come of one original have
one contributor, so that none of them trains where another one tests. They are written straight
into the server's tables and blobs: intake would rightly refuse them as near-duplicates.
Accuracies on them are those of variations of a few hundred photos, not of so many people's.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from pathlib import Path

import django
import numpy as np
from django.utils import timezone
from PIL import Image, ImageEnhance

SIDE = 320
BATCH = 500


def main(slug: str, folder: Path, first: int, count: int) -> None:
    from server import blobs
    from server.photos.models import Photo
    from server.registry.actions import create_model
    from server.registry.models import Model

    paths = sorted(path for path in folder.glob("*/*") if path.is_file())
    model = Model.objects.filter(slug=slug).first() or create_model(
        slug=slug,
        labels=sorted({path.parent.name for path in paths}),
        training_policy={
            "architecture": "mobilenet_v2_0.35_224",
            "strategy": "linear",
            "variants": ["tflite:float32", "tflite:float16"],
        },
    )
    labels = {label.name: label for label in model.labels.all()}
    rows: list[Photo] = []
    for number in range(first, first + count):
        path = paths[number % len(paths)]
        jpeg, size = derive(path, number, len(paths))
        digest = hashlib.sha256(jpeg).hexdigest()
        rows.append(
            Photo(
                model=model,
                label=labels[path.parent.name],
                contributor=f"{path.parent.name}/{path.stem}",
                state=Photo.State.ACCEPTED,
                blob_sha256=blobs.store().put_bytes(jpeg).sha256,
                size_bytes=len(jpeg),
                source_digest=digest,
                blob_digest=digest,
                width=size[0],
                height=size[1],
                decided_at=timezone.now(),
            )
        )
    Photo.objects.bulk_create(rows, batch_size=BATCH)


def derive(path: Path, number: int, originals: int) -> tuple[bytes, tuple[int, int]]:
    """Return photo ``number`` as a JPEG, and its width and height."""
    generator = np.random.default_rng(number)
    photo = Image.open(path).convert("RGB")
    photo.thumbnail((SIDE, SIDE))
    if number >= originals:
        width, height = photo.size
        share = generator.uniform(0.8, 1.0)
        left = generator.uniform(0, 1 - share) * width
        top = generator.uniform(0, 1 - share) * height
        photo = photo.rotate(generator.uniform(-10, 10), Image.Resampling.BILINEAR)
        box = (round(left), round(top), round(left + share * width), round(top + share * height))
        photo = photo.crop(box)
        photo = ImageEnhance.Brightness(photo).enhance(generator.uniform(0.7, 1.3))
        photo = ImageEnhance.Contrast(photo).enhance(generator.uniform(0.8, 1.2))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=88)
    return buffer.getvalue(), photo.size


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "server.settings")
    django.setup()
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))

"""Embedding shared by the workers of a queue: each takes batches, none waits for another."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.conf import settings

from server import blobs
from server.domain.errors import Unavailable, Unprocessable
from server.jobs import actions as jobs
from server.jobs import names
from server.jobs.errors import JobInProgress
from server.photos.models import Photo
from worker.ml.architectures import find_architecture
from worker.ml.augmentation import find_augmentation
from worker.ml.embeddings import Embedder
from worker.ml.errors import MLError
from worker.ml.preprocessing import Preprocessing
from worker.ml.weights import find_weights
from worker.pipelines.photos import FeatureCache

if TYPE_CHECKING:
    import uuid

    from worker.context import JobContext

SHARED_FROM = 512
"""With fewer photos to embed, other workers would take longer to start than the run to finish."""
PHOTOS_PER_JOB = 256


def share(
    photos: Sequence[Photo],
    *,
    preprocessing: Preprocessing,
    architecture: str,
    augmentation: str,
    depths: Sequence[str],
    views: int,
) -> list[uuid.UUID]:
    """Queue jobs that embed these photos; return the jobs.

    Jobs begin with the first photo. Whoever shares should begin with the last, and so meets them.
    """
    made = []
    for start in range(0, len(photos), PHOTOS_PER_JOB):
        ids = [str(photo.pk) for photo in photos[start : start + PHOTOS_PER_JOB]]
        args = {
            "photos": ids,
            "architecture": architecture,
            "preprocessing": preprocessing.to_manifest(),
            "augmentation": augmentation,
            "depths": list(depths),
            "views": views,
        }
        # A run that begins anew finds the jobs of its first attempt.
        with contextlib.suppress(JobInProgress):
            made.append(
                jobs.enqueue(name=names.EMBED, args=args, unique_key=f"embed:{ids[0]}:{views}").pk
            )
    return made


def call_back(made: Sequence[uuid.UUID]) -> None:
    """Cancel the jobs that nobody has begun: what they would embed is there."""
    for job_id in made:
        jobs.request_cancel(job_id=job_id)


def run(context: JobContext) -> Mapping[str, Any] | None:
    """Embed the photos that the job names, as far as nobody else has."""
    args = context.args
    try:
        architecture = find_architecture(args["architecture"])
        weights = find_weights(
            architecture.name,
            settings.NIGHTFERRY_WEIGHTS,
            allow_download=settings.ALLOW_WEIGHT_DOWNLOAD,
        )
        embedder = Embedder(
            architecture,
            weights,
            settings.NIGHTFERRY_DATA / "embedders",
            preprocessing=Preprocessing.from_manifest(args["preprocessing"]),
        )
        cache = FeatureCache(embedder, blobs.store(), find_augmentation(args["augmentation"]))
        count = cache.fill(
            list(Photo.objects.filter(pk__in=args["photos"], state=Photo.State.ACCEPTED)),
            depths=args["depths"],
            views=args["views"],
            progress=lambda *_: context.check_alive(),
        )
    except MLError as error:
        raise Unprocessable(str(error), code=error.code) from error
    except blobs.BlobNotFound as error:
        message = "A photo was withdrawn while the job read it; the job starts again without it."
        raise Unavailable(message, code="photo_withdrawn") from error
    return {"outcome": f"{count} photos embedded."}

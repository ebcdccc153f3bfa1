"""A large import's features are made by all workers of the queue, each once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.jobs import actions as jobs
from server.jobs.models import Job
from server.photos import actions as photo_actions
from server.photos.models import Photo, PhotoEmbedding
from tests.support.data import data_folder
from tests.support.factories import make_model
from tests.worker.pipelines.pictures import bring, like_imagenet
from worker.context import JobContext
from worker.ml.embeddings import TOP
from worker.ml.preprocessing import default_preprocessing
from worker.pipelines import embedding

pytestmark = [pytest.mark.django_db, pytest.mark.ml]


@pytest.fixture(autouse=True)
def _small_shares(
    settings: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.NIGHTFERRY_WEIGHTS = data_folder("weights")
    settings.NIGHTFERRY_DATA = Path(tmp_path_factory.getbasetemp()) / "embedders-of-tests"
    monkeypatch.setattr(embedding, "PHOTOS_PER_JOB", 4)


def share(photos: list[Photo]) -> list[Any]:
    return embedding.share(
        photos,
        preprocessing=default_preprocessing(224),
        architecture="mobilenet_v2_0.35_224",
        augmentation="hand_held",
        depths=[TOP],
        views=1,
    )


def work(job_id: Any) -> Any:
    job = jobs.claim(job_id=job_id, owner="a worker")
    assert job is not None
    context = JobContext(job)
    result = embedding.run(context)
    context.complete(result)
    return result


def test_jobs_share_the_photos_and_none_is_embedded_twice() -> None:
    bring(make_model(), like_imagenet, 5)
    photos = list(Photo.objects.order_by("blob_sha256"))
    made = share(photos)
    assert len(made) == 3
    # A run that begins anew does not queue them again.
    assert share(photos) == []
    assert work(made[0]) == {"outcome": "4 photos embedded."}
    assert PhotoEmbedding.objects.count() == 4 * 2
    photo_actions.withdraw_photo(photo=photos[4], actor=None)
    assert work(made[1]) == {"outcome": "3 photos embedded."}
    assert PhotoEmbedding.objects.count() == 7 * 2

    embedding.call_back(made)
    assert set(Job.objects.values_list("state", flat=True)) == {"succeeded", "cancelled"}
    # Done already, it costs nothing: another worker may have been faster.
    assert work(share(photos[:4])[0]) == {"outcome": "0 photos embedded."}

"""Features of several depths and views: embedded once, read by key, erased with their photo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.urls import reverse

from server import blobs
from server.photos import actions as photo_actions
from server.photos.models import Photo, PhotoEmbedding
from server.training import actions as training
from tests.support.data import data_folder
from tests.support.factories import make_model
from tests.worker.pipelines.pictures import bring, like_imagenet
from worker.ml.architectures import find_architecture
from worker.ml.augmentation import PRESETS
from worker.ml.embeddings import TOP, Embedder
from worker.ml.weights import find_weights
from worker.pipelines.photos import FeatureCache, draw_views, read_image

pytestmark = [pytest.mark.django_db, pytest.mark.ml]
BACKBONE = "mobilenet_v2_0.35_224"
LOWER = "block_6_expand_relu"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    weights = find_weights(BACKBONE, data_folder("weights"), allow_download=False)
    folder = Path(tmp_path_factory.mktemp("embedders"))
    return Embedder(find_architecture(BACKBONE), weights, folder)


@pytest.fixture
def photos() -> list[Photo]:
    bring(make_model(), like_imagenet, 3)
    return list(Photo.objects.order_by("blob_sha256"))


def silent(*_: object) -> None:
    """Report to nobody."""


def test_each_depth_and_view_is_embedded_once(embedder: Embedder, photos: list[Photo]) -> None:
    cache = FeatureCache(embedder, blobs.store(), PRESETS["hand_held"])
    assert cache.fill(photos, depths=[TOP], views=0, progress=silent) == 6
    # The key that the top's features have had since there were no others.
    assert set(PhotoEmbedding.objects.values_list("key", flat=True)) == {embedder.key}
    first = set(PhotoEmbedding.objects.values_list("pk", flat=True))
    assert cache.fill(photos, depths=[LOWER, TOP], views=1, progress=silent) == 6
    assert PhotoEmbedding.objects.count() == 6 * 2 * 2
    assert first < set(PhotoEmbedding.objects.values_list("pk", flat=True))
    assert cache.fill(photos, depths=[LOWER, TOP], views=1, progress=silent) == 0

    plain, varied = (cache.load(photos, TOP, view) for view in (0, 1))
    assert plain.shape == varied.shape == (6, 1280)
    lower = cache.load(photos, LOWER)
    assert lower.shape == (6, 96)
    pixels = [read_image(photo, embedder.preprocessing, blobs.store()) for photo in photos]
    assert np.array_equal(lower, embedder.embed_depths(pixels)[LOWER])
    # A guard: features depend on the photo, and on the view, and on the photo more.
    between = np.linalg.norm(plain[0] - plain[1:], axis=1).mean()
    within = np.linalg.norm(plain - varied, axis=1).mean()
    assert 0.1 * between < within < between


def test_what_was_embedded_before_a_failure_stays(
    embedder: Embedder, photos: list[Photo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.pipelines.photos._BATCH", 2)
    cache = FeatureCache(embedder, blobs.store())

    def stop(_stage: str, step: int, *_: object) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fill(photos, depths=[TOP], views=0, progress=stop)
    assert PhotoEmbedding.objects.count() == 4
    assert cache.fill(photos, depths=[TOP], views=0, progress=silent) == 2


def test_a_withdrawn_photo_takes_features_views_and_pictures_with_it(
    embedder: Embedder,
    photos: list[Photo],
    admin_client: Any,
    django_capture_on_commit_callbacks: Any,
) -> None:
    preset = PRESETS["hand_held"]
    cache = FeatureCache(embedder, blobs.store(), preset)
    cache.fill(photos, depths=[LOWER, TOP], views=1, progress=silent)
    draw_views(photos[:1], preset, embedder.preprocessing, blobs.store())
    picture = photos[0].embeddings.get(key__startswith=PhotoEmbedding.VIEWS_PREFIX)
    run = training.request_run(model=photos[0].model)
    page = admin_client.get(reverse("admin:training_trainingrun_change", args=[run.pk]))
    address = reverse("admin:training_trainingrun_views", args=[picture.pk])
    assert address in page.content.decode()
    assert admin_client.get(address).content.startswith(b"\xff\xd8\xff")

    hashes = list(photos[0].embeddings.values_list("blob_sha256", flat=True))
    assert len(hashes) == 5
    with django_capture_on_commit_callbacks(execute=True):
        photo_actions.withdraw_photo(photo=photos[0], actor=None)
    assert not PhotoEmbedding.objects.filter(photo=photos[0]).exists()
    assert not any(blobs.store().exists(sha256) for sha256 in hashes)
    assert admin_client.get(address).status_code == 404
    assert PhotoEmbedding.objects.count() == 5 * 4

"""Photos of a snapshot as the tensors layer wants them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from django.db.models import Min

from server.photos.actions import record_embeddings
from server.photos.models import PhotoEmbedding
from server.training.models import SnapshotEntry
from worker.ml.preprocessing import Preprocessing, load_image

if TYPE_CHECKING:
    import uuid

    from numpy.typing import NDArray

    from server.blobs import BlobStore
    from server.photos.models import Photo
    from server.training.models import DatasetSnapshot
    from worker.ml.embeddings import Embedder
    from worker.pipelines.reporting import Reporter

_BATCH = 32
_QUERY_BATCH = 1000


@dataclass(frozen=True)
class PhotoSet:
    """One split of a snapshot, in a stable order; ``targets`` are indexes into its labels."""

    entries: tuple[SnapshotEntry, ...]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        """Return how many photos there are."""
        return len(self.entries)


def split_sets(snapshot: DatasetSnapshot) -> dict[str, PhotoSet]:
    """Return the snapshot's photos by split; withdrawn and erased ones are gone from it."""
    index = {label: position for position, label in enumerate(snapshot.labels)}
    rows: dict[str, list[SnapshotEntry]] = {"train": [], "validation": [], "test": []}
    entries = snapshot.entries.filter(photo__state="accepted").select_related("photo")
    # Ordered by content: ids differ between two servers that hold the same photos.
    for entry in entries.order_by("photo__blob_sha256", "label"):
        rows[entry.split].append(entry)
    return {
        split: PhotoSet(
            tuple(found), np.array([index[entry.label] for entry in found], dtype=np.int64)
        )
        for split, found in rows.items()
    }


def _photo(entry: SnapshotEntry) -> Photo:
    """Return an entry's photo: ``split_sets`` leaves out the entries whose photo is gone."""
    return cast("Photo", entry.photo)


def read_images(
    photos: PhotoSet | Sequence[SnapshotEntry], preprocessing: Preprocessing, store: BlobStore
) -> Iterator[NDArray[np.uint8]]:
    """Yield each photo decoded and resized, uint8 (H, W, 3)."""
    entries = photos.entries if isinstance(photos, PhotoSet) else photos
    for entry in entries:
        with store.open(_photo(entry).blob_sha256) as file:
            yield load_image(file.read(), preprocessing)


def load_images(
    photos: PhotoSet | Sequence[SnapshotEntry], preprocessing: Preprocessing, store: BlobStore
) -> list[NDArray[np.uint8]]:
    """Return each photo decoded and resized, uint8 (H, W, 3), all in memory."""
    return list(read_images(photos, preprocessing, store))


def calibration_photos(train: PhotoSet, count: int) -> list[SnapshotEntry]:
    """Return the training photos that calibrate int8 files: those of the earliest snapshots.

    New photos come behind the old ones, so the set stays the same from night to night, and with
    it the quantised weights of a frozen backbone: a device then fetches a small patch. Photos of
    one snapshot come in the order of their content, on every server the same.
    """
    if not train.entries:
        return []
    ever = SnapshotEntry.objects.filter(snapshot__model=train.entries[0].snapshot.model_id)
    first = dict(ever.values_list("photo").annotate(Min("snapshot_id")))
    return sorted(
        train.entries, key=lambda entry: (first[entry.photo_id], _photo(entry).blob_sha256)
    )[:count]


def embed_photos(
    sets: dict[str, PhotoSet],
    *,
    embedder: Embedder,
    preprocessing: Preprocessing,
    store: BlobStore,
    reporter: Reporter,
) -> tuple[dict[str, NDArray[np.float32]], int]:
    """Return the features of every split, (N, D) float32, and how many photos were embedded now.

    A photo is embedded once per embedder key, ever: its features are a blob beside it.
    """
    entries = [entry for photos in sets.values() for entry in photos.entries]
    known = _known_features(entries, embedder.key)
    missing = [entry for entry in entries if _photo(entry).pk not in known]
    for start in range(0, len(missing), _BATCH):
        reporter.progress("embedding", start, len(missing), {})
        batch = missing[start : start + _BATCH]
        features = embedder.embed(read_images(batch, preprocessing, store))
        _store_features(batch, features, embedder.key, store, known)
    reporter.progress("embedding", len(missing), len(missing), {})
    features_of = {
        split: _load_features(photos, known, embedder.feature_size, store)
        for split, photos in sets.items()
    }
    return features_of, len(missing)


def _known_features(entries: Sequence[SnapshotEntry], key: str) -> dict[uuid.UUID, str]:
    """Return the blobs of the features that are there already, by photo."""
    known: dict[uuid.UUID, str] = {}
    # A statement takes only so many parameters.
    for start in range(0, len(entries), _QUERY_BATCH):
        photos = [_photo(entry) for entry in entries[start : start + _QUERY_BATCH]]
        found = PhotoEmbedding.objects.filter(key=key, photo__in=photos)
        known |= dict(found.values_list("photo_id", "blob_sha256"))
    return known


def _store_features(
    batch: Sequence[SnapshotEntry],
    features: NDArray[np.float32],
    key: str,
    store: BlobStore,
    known: dict[uuid.UUID, str],
) -> None:
    found = {}
    for entry, vector in zip(batch, features, strict=True):
        blob = store.put_bytes(vector.astype("<f4").tobytes())
        known[_photo(entry).pk] = blob.sha256
        found[_photo(entry).pk] = blob
    record_embeddings(key=key, features=found)


def _load_features(
    photos: PhotoSet, known: dict[uuid.UUID, str], size: int, store: BlobStore
) -> NDArray[np.float32]:
    vectors = np.zeros((len(photos), size), dtype=np.float32)
    for row, entry in enumerate(photos.entries):
        with store.open(known[_photo(entry).pk]) as file:
            vectors[row] = np.frombuffer(file.read(), dtype="<f4")
    return vectors

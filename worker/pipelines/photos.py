"""Photos of a snapshot as the tensors layer wants them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from django.db.models import Min

from server.blobs import BlobNotFound
from server.photos.actions import record_embeddings
from server.photos.models import PhotoEmbedding
from server.training.models import SnapshotEntry
from worker.ml.augmentation import NONE, Augmentation, draw_sheet, view_of
from worker.ml.embeddings import TOP
from worker.ml.preprocessing import Preprocessing, load_image

if TYPE_CHECKING:
    import uuid
    from pathlib import Path

    from numpy.typing import NDArray

    from server.blobs import Blob, BlobStore
    from server.photos.models import Photo
    from server.training.models import DatasetSnapshot
    from worker.ml.embeddings import Embedder
    from worker.ml.training import Progress

_BATCH = 32
_QUERY_BATCH = 1000
_SHOWN = 4


@dataclass(frozen=True)
class PhotoSet:
    """One split of a snapshot, in a stable order; ``targets`` are indexes into its labels."""

    entries: tuple[SnapshotEntry, ...]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        """Return how many photos there are."""
        return len(self.entries)

    @property
    def photos(self) -> list[Photo]:
        """Return the photos themselves."""
        return [_photo(entry) for entry in self.entries]

    @property
    def groups(self) -> list[str]:
        """Return whose each photo is; one of nobody known is a group of its own."""
        return [photo.contributor or f"photo:{photo.blob_sha256}" for photo in self.photos]


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


def read_image(photo: Photo, preprocessing: Preprocessing, store: BlobStore) -> NDArray[np.uint8]:
    """Return a photo decoded and resized, uint8 (H, W, 3)."""
    with store.open(photo.blob_sha256) as file:
        return load_image(file.read(), preprocessing)


def read_images(
    photos: PhotoSet | Sequence[SnapshotEntry], preprocessing: Preprocessing, store: BlobStore
) -> Iterator[NDArray[np.uint8]]:
    """Yield each photo decoded and resized, uint8 (H, W, 3)."""
    entries = photos.entries if isinstance(photos, PhotoSet) else photos
    for entry in entries:
        yield read_image(_photo(entry), preprocessing, store)


def load_images(
    photos: PhotoSet | Sequence[SnapshotEntry], preprocessing: Preprocessing, store: BlobStore
) -> list[NDArray[np.uint8]]:
    """Return each photo decoded and resized, uint8 (H, W, 3), all in memory."""
    return list(read_images(photos, preprocessing, store))


def copy_blob(sha256: str, path: Path, store: BlobStore) -> None:
    """Write a blob to a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    with store.open(sha256) as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target)
    partial.replace(path)


def map_images(
    photos: Sequence[Photo],
    preprocessing: Preprocessing,
    store: BlobStore,
    folder: Path,
    *,
    progress: Progress,
) -> NDArray[np.uint8]:
    """Return photos as uint8 (photos, H, W, 3) in a nameless file on ``folder``'s disk."""
    shape = (len(photos), preprocessing.height, preprocessing.width, 3)
    path = folder / "photos.u8"
    images = np.memmap(path, dtype=np.uint8, mode="w+", shape=shape)
    # Without a name it ends with this process, however that ends: a withdrawn photo is not left.
    path.unlink()
    for row, photo in enumerate(photos):
        progress("reading", row, len(photos), {})
        images[row] = read_image(photo, preprocessing, store)
    return images


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


class FeatureCache:
    """The features of photos under one embedder, in blobs beside the photos.

    A photo is embedded once per depth and view, ever. View 0 is the photo as it is, the others
    are drawn by the augmentation. The lower depths of a view lie in one blob, as writing many
    small ones would take longer than embedding. What is being written when a process dies is
    embedded again, what was written before is not.
    """

    def __init__(
        self, embedder: Embedder, store: BlobStore, augmentation: Augmentation = NONE
    ) -> None:
        """Describe it; nothing is read yet."""
        self._embedder = embedder
        self._store = store
        self._augmentation = augmentation

    def fill(
        self,
        photos: Sequence[Photo],
        *,
        depths: Sequence[str],
        views: int,
        progress: Progress,
    ) -> int:
        """Embed what is missing, in one pass over each photo; return how many photos that took.

        ``views`` are those beside the photo itself. Before each batch the cache is asked again:
        other workers may be at the same photos.
        """
        missing = self.missing(photos, depths, views)
        for start in range(0, len(missing), _BATCH):
            progress("embedding", start, len(missing), {})
            self._embed(missing[start : start + _BATCH], depths, views)
        progress("embedding", len(missing), len(missing), {})
        return len(missing)

    def load(self, photos: Sequence[Photo], depth: str, view: int = 0) -> NDArray[np.float32]:
        """Return the features (photos, features) of photos that were filled in.

        Raises:
            BlobNotFound: a photo was withdrawn since.

        """
        known = _known_features(photos, self._key(depth, view))
        place = slice(None) if depth == TOP else self._embedder.place_among_lower(depth)
        rows = []
        for photo in photos:
            if photo.pk not in known:
                message = f"The features of photo {photo.pk} are gone: it was withdrawn."
                raise BlobNotFound(message)
            with self._store.open(known[photo.pk]) as file:
                rows.append(np.frombuffer(file.read(), dtype="<f4")[place])
        if not rows:
            return np.empty((0, 0), dtype=np.float32)
        return np.stack(rows).astype(np.float32)

    def _key(self, depth: str, view: int) -> str:
        name = f"{self._augmentation.key}-{view}" if view else ""
        return self._embedder.key_of(depth, name)

    def missing(self, photos: Sequence[Photo], depths: Sequence[str], views: int) -> list[Photo]:
        """Return the photos that lack features of any of these depths and views."""
        found = [
            _known_features(photos, self._key(depth, view))
            for depth in depths
            for view in range(views + 1)
        ]
        return [photo for photo in photos if any(photo.pk not in keys for keys in found)]

    def _embed(self, batch: Sequence[Photo], depths: Sequence[str], views: int) -> None:
        wanted = {
            (depth, view): _known_features(batch, self._key(depth, view))
            for depth in depths
            for view in range(views + 1)
        }
        fresh: dict[tuple[str, int], dict[uuid.UUID, Blob]] = {kind: {} for kind in wanted}
        for photo in batch:
            absent = [kind for kind, known in wanted.items() if photo.pk not in known]
            if not absent:
                continue
            image = read_image(photo, self._embedder.preprocessing, self._store)
            for view in sorted({view for _, view in absent}):
                features = self._embedder.embed_depths([view_of(image, self._augmentation, view)])
                joined = [features[depth][0] for depth in self._embedder.depths if depth != TOP]
                kept: dict[bool, Blob] = {}
                for depth in (depth for depth, number in absent if number == view):
                    is_top = depth == TOP
                    if is_top not in kept:
                        vector = features[TOP][0] if is_top else np.concatenate(joined)
                        kept[is_top] = self._store.put_bytes(vector.astype("<f4").tobytes())
                    fresh[depth, view][photo.pk] = kept[is_top]
        for (depth, view), blobs in fresh.items():
            if blobs:
                record_embeddings(key=self._key(depth, view), features=blobs)


def draw_views(
    photos: Sequence[Photo],
    augmentation: Augmentation,
    preprocessing: Preprocessing,
    store: BlobStore,
) -> None:
    """Keep, beside a few photos, pictures of how the augmentation varies them, for people to see.

    They are pictures of these photos, and so are erased with them.
    """
    if augmentation is NONE:
        return
    key = f"{PhotoEmbedding.VIEWS_PREFIX}{augmentation.key}-{preprocessing.fit}"
    shown = photos[:: max(1, len(photos) // _SHOWN)][:_SHOWN]
    known = _known_features(shown, key)
    drawn = {
        photo.pk: store.put_bytes(
            draw_sheet([read_image(photo, preprocessing, store)], augmentation)
        )
        for photo in shown
        if photo.pk not in known
    }
    if drawn:
        record_embeddings(key=key, features=drawn)


def _known_features(photos: Sequence[Photo], key: str) -> dict[uuid.UUID, str]:
    """Return the blobs of the features that are there already, by photo."""
    known: dict[uuid.UUID, str] = {}
    # A statement takes only so many parameters.
    for start in range(0, len(photos), _QUERY_BATCH):
        ids = [photo.pk for photo in photos[start : start + _QUERY_BATCH]]
        found = PhotoEmbedding.objects.filter(key=key, photo__in=ids)
        known |= dict(found.values_list("photo_id", "blob_sha256"))
    return known

"""Content-addressed storage of immutable bytes: photos, models, embeddings.

`store` gives the one that the settings name; everything else asks it by sha256.
"""

from __future__ import annotations

import functools
import os

from server.blobs.addresses import from_url
from server.blobs.base import Blob, BlobStore, key
from server.blobs.errors import BlobCorrupted, BlobNotFound, BlobStoreUnavailable, InvalidBlobName
from server.blobs.local import LocalBlobStore
from server.blobs.s3 import S3BlobStore

__all__ = [
    "Blob",
    "BlobCorrupted",
    "BlobNotFound",
    "BlobStore",
    "BlobStoreUnavailable",
    "InvalidBlobName",
    "LocalBlobStore",
    "S3BlobStore",
    "from_url",
    "key",
    "reset",
    "store",
]


@functools.cache
def store() -> BlobStore:
    """Return the store of ``settings.BLOB_STORE_URL``. Raises ``ImproperlyConfigured``."""
    from django.conf import settings

    from server import env

    if "AWS_SECRET_ACCESS_KEY_FILE" not in os.environ:
        # The S3 client knows the usual places of credentials, roles and session tokens itself.
        return from_url(settings.BLOB_STORE_URL)
    return from_url(
        settings.BLOB_STORE_URL,
        access_key=env.secret("AWS_ACCESS_KEY_ID") or None,
        secret_key=env.secret("AWS_SECRET_ACCESS_KEY") or None,
    )


def reset() -> None:
    """Forget the store, so that the next call reads the settings again."""
    store.cache_clear()


# Connections must not be shared with a forked worker.
os.register_at_fork(after_in_child=reset)

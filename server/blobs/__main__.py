"""``python -m server.blobs``: makes the bucket that BLOB_STORE_URL names, where it is missing."""

from __future__ import annotations

import os
import sys

from server import blobs


def main() -> int:
    """Prepare the store of the settings; return the exit status."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "server.settings")
    store = blobs.store()
    if isinstance(store, blobs.S3BlobStore):
        try:
            store.prepare()
        except blobs.BlobStoreUnavailable as error:
            sys.stderr.write(f"{error.detail}\n")
            return 1
    return 0 if store.healthy() else 1


if __name__ == "__main__":
    sys.exit(main())

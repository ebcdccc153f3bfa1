"""From ``BLOB_STORE_URL`` to a store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from server.blobs.base import BlobStore
from server.blobs.local import LocalBlobStore
from server.blobs.s3 import S3BlobStore, S3Location

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_OPTIONS = {"endpoint", "public_endpoint", "region", "prefix"}


def from_url(
    url: str, *, access_key: str | None = None, secret_key: str | None = None
) -> BlobStore:
    """Return the store an address names.

    A folder's path, ``file:///folder``, or
    ``s3://bucket?endpoint=…&public_endpoint=…&region=…&prefix=…``. Without keys the S3 client
    looks for credentials in its usual places. Raises ``ImproperlyConfigured``, whose sentence
    names BLOB_STORE_URL.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return S3BlobStore(_s3_location(url, access_key=access_key, secret_key=secret_key))
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
            _refuse("is a file:// address without an absolute path, such as file:///srv/blobs")
        return LocalBlobStore(Path(unquote(parts.path)))
    if "://" in url or not url.strip():
        _refuse("takes a folder, a file:// address or an s3:// address")
    return LocalBlobStore(Path(url).expanduser().absolute())


def _s3_location(url: str, *, access_key: str | None, secret_key: str | None) -> S3Location:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        _refuse(
            "may not hold credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the"
            " same names with _FILE)"
        )
    if not _BUCKET.fullmatch(parts.netloc):
        _refuse(f"names no possible bucket: {parts.netloc!r}")
    if parts.path.strip("/"):
        _refuse("takes a folder inside the bucket as ?prefix=…, not as a path")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if unknown := sorted(options.keys() - _OPTIONS):
        _refuse(f"has the unknown option {unknown[0]!r}; known are {', '.join(sorted(_OPTIONS))}")
    for name in ("endpoint", "public_endpoint"):
        if name in options and urlsplit(options[name]).scheme not in {"http", "https"}:
            _refuse(f"has an {name} that is no http:// or https:// address: {options[name]!r}")
    if (access_key is None) != (secret_key is None):
        message = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together; only one is set."
        raise ImproperlyConfigured(message)
    return S3Location(
        bucket=parts.netloc,
        endpoint=options.get("endpoint"),
        public_endpoint=options.get("public_endpoint"),
        region=options.get("region", "us-east-1" if "endpoint" in options else None),
        prefix=f"{options['prefix'].strip('/')}/" if options.get("prefix", "").strip("/") else "",
        access_key=access_key,
        secret_key=secret_key,
    )


def _refuse(fact: str) -> NoReturn:
    message = f"BLOB_STORE_URL {fact}."
    raise ImproperlyConfigured(message)

"""Every test here that asks for ``store`` runs on a local folder and on a real S3 server."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from server.blobs import BlobStore, from_url
from tests.support import services


@pytest.fixture(scope="session")
def s3_bucket(s3_server: services.S3) -> str:
    """Return the name of a bucket that the tests share; each has a prefix of its own."""
    return s3_server.create_bucket()


@pytest.fixture
def s3_store(s3_server: services.S3, s3_bucket: str) -> BlobStore:
    """Return a store that is empty, on a real S3 server."""
    return from_url(
        s3_server.url(s3_bucket, prefix=uuid.uuid4().hex),
        access_key=s3_server.access_key,
        secret_key=s3_server.secret_key,
    )


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """Return an empty store of each kind."""
    if request.param == "local":
        return from_url(str(tmp_path / "blobs"))
    s3: BlobStore = request.getfixturevalue("s3_store")
    return s3

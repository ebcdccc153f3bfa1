"""Session fixtures over the real services; each starts with the first test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import services


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[services.PostgreSQL]:
    """Yield a running PostgreSQL."""
    with services.postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[services.Redis]:
    """Yield a running Redis."""
    with services.redis() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[services.S3]:
    """Yield a running S3 server that checks signatures."""
    with services.s3() as server:
        yield server

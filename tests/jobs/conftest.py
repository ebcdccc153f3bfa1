"""Installations to start and to kill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.jobs.installation import Installation
from tests.support.fixtures import redis_server

__all__ = ["redis_server"]


@pytest.fixture(scope="module", params=["files", "redis"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """Return the address of each kind of broker in turn."""
    if request.param == "files":
        return "filesystem://"
    return str(request.getfixturevalue("redis_server").url())


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> Iterator[Installation]:
    """Yield an installation on each broker; tests share it, whatever they do to it."""
    place = Installation(tmp_path_factory.mktemp("installation"), broker_url)
    yield place
    place.close()

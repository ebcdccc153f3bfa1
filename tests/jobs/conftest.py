"""Installations to start and to kill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.jobs.installation import Installation
from tests.support.fixtures import postgresql_server, redis_server

__all__ = ["postgresql_server", "redis_server"]


@pytest.fixture(scope="module", params=["embedded", "at scale"])
def services(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the addresses of the database and the broker: embedded, then real services."""
    if request.param == "embedded":
        return {"DATABASE_URL": "", "BROKER_URL": "filesystem://"}
    return {
        "DATABASE_URL": request.getfixturevalue("postgresql_server").create_database(),
        "BROKER_URL": request.getfixturevalue("redis_server").url(),
    }


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, services: dict[str, str]
) -> Iterator[Installation]:
    """Yield an installation on each; tests share it, whatever they do to it."""
    place = Installation(tmp_path_factory.mktemp("installation"), services)
    yield place
    place.close()

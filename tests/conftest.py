"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.fixtures import postgresql_server, redis_server, s3_server

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper

# Folders whose tests take long: they start whole servers or train networks.
_LONG = ("contract", "simulation", "ml")

__all__ = ["postgresql_server", "redis_server", "s3_server"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first: of two processes neither is left alone with one at the end."""
    items.sort(key=lambda item: not _is_long(item.path))


def _is_long(path: Path) -> bool:
    return path.parent.name in _LONG or path.stem.endswith("kills")


@pytest.fixture(autouse=True)
def _fresh_process_state(tmp_path: Path, settings: SettingsWrapper) -> Iterator[None]:
    """Give each test its own blobs and signing keys, an empty cache and no decision set."""
    from django.core.cache import cache

    from server import blobs
    from server.delivery.decision_set import holder

    settings.BLOB_STORE_URL = str(tmp_path / "blobs")
    settings.TRUST_KEYS = tmp_path / "keys"
    blobs.reset()
    cache.clear()
    holder.close()
    yield
    holder.close()
    blobs.reset()

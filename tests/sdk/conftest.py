"""Fixtures of the SDK's tests: a server that behaves, and clients with short pauses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nightferry import ModelClient, Timing
from nightferry.testing import FakeServer

from .support import quick_timing

ClientFactory = Callable[..., ModelClient]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("HOME", "ENDPOINT", "OFFLINE", "DISABLE_TELEMETRY", "APP_KEY", "TRUSTED_ROOT")
    for name in (*(f"NIGHTFERRY_{name}" for name in names), "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def root_file(server: FakeServer, tmp_path: Path) -> Path:
    """Put the server's root where an app would ship it."""
    path = tmp_path / "shipped.root.json"
    path.write_bytes(server.root)
    return path


@pytest.fixture
def make_client(server: FakeServer, cache_dir: Path) -> Iterator[ClientFactory]:
    made: list[ModelClient] = []

    def make(**options: object) -> ModelClient:
        settings = {"cache_dir": cache_dir, "timing": quick_timing(), **options}
        of = settings.pop("server", server)
        made.append(ModelClient(of.url, **{"trusted_root": of.root, **settings}))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make_client: ClientFactory) -> ModelClient:
    return make_client()


@pytest.fixture
def content() -> bytes:
    """Bytes of a model large enough to be cut in pieces."""
    return random.Random(1).randbytes(300_000)


__all__ = ["ClientFactory", "Timing"]

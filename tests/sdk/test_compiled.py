"""What an app compiles of a model: before it is used, once, again for another system."""

from __future__ import annotations

from pathlib import Path

import nightferry
import nightferry.compiled
import pytest
from nightferry.testing import FakeServer

from .conftest import ClientFactory
from .support import LABELS, NAME


class App:
    """Compiles a file by writing it in capitals, and counts how often."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.fails: bytes = b"never"

    def __call__(self, path: Path, folder: Path) -> str:
        content = path.read_bytes()
        self.calls.append(content)
        assert not list(folder.iterdir())
        (folder / "model.mlmodelc").mkdir()
        (folder / "model.mlmodelc" / "weights").write_bytes(content.upper())
        if content == self.fails:
            raise ValueError("no such layer")
        return "model.mlmodelc"


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    version = ["ios-17.1"]
    monkeypatch.setattr(nightferry.compiled, "_this_system", lambda: version[0])
    return version


def _read(client: nightferry.ModelClient) -> bytes:
    return (client.compiled_path(NAME) / "weights").read_bytes()


def test_a_release_is_compiled_before_it_is_used_and_once(
    server: FakeServer, make_client: ClientFactory, app: App, system: list[str]
) -> None:
    server.publish(NAME, b"first", LABELS)
    client = make_client(compile=app)
    client.fetch_update(NAME)
    assert app.calls == [b"first"]
    client.activate(NAME)
    assert _read(client) == b"FIRST"
    assert _read(make_client(compile=app)) == b"FIRST"
    assert app.calls == [b"first"]
    system[0] = "ios-17.2"
    assert _read(client) == b"FIRST"
    assert app.calls == [b"first", b"first"]


def test_a_release_that_cannot_be_compiled_is_not_used_and_told(
    server: FakeServer, make_client: ClientFactory, app: App
) -> None:
    server.publish(NAME, b"first", LABELS)
    client = make_client(compile=app)
    client.sync(NAME)
    app.fails = b"second"
    server.publish(NAME, b"second", LABELS)
    with pytest.raises(nightferry.CompileFailedError, match="no such layer"):
        client.sync(NAME)
    status = client.status(NAME)
    assert status.current is not None
    assert status.current.label == "v1"
    assert "compile_failed" in (status.held_back or "")
    assert _read(client) == b"FIRST"
    client.flush_events()
    (failed,) = [event for event in server.events if event["type"] == "failed"]
    assert (failed["label"], failed["data"]["code"]) == ("v2", "compile_failed")


def test_after_an_update_of_the_system_the_release_before_takes_over(
    server: FakeServer, make_client: ClientFactory, app: App, system: list[str]
) -> None:
    client = make_client(compile=app)
    for content in (b"first", b"second"):
        server.publish(NAME, content, LABELS)
        client.sync(NAME)
        client.notify_ready(NAME)
    system[0], app.fails = "ios-18", b"second"
    assert _read(client) == b"FIRST"
    assert client.get_model(NAME).label == "v1"


def test_compiled_copies_go_with_their_files(
    server: FakeServer, make_client: ClientFactory, app: App, cache_dir: Path
) -> None:
    server.publish(NAME, b"first", LABELS)
    client = make_client(compile=app)
    client.sync(NAME)
    assert len(list((cache_dir / "compiled").glob("*/*/model.mlmodelc"))) == 1
    client.delete_model(NAME)
    assert not list((cache_dir / "compiled").iterdir())


def test_an_embedded_model_is_compiled_when_it_is_asked_for(
    make_client: ClientFactory, app: App, tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"inside")
    client = make_client(compile=app, embedded={NAME: path}, runtime="coreml")
    assert _read(client) == b"INSIDE"
    app.fails = b"inside"
    other = make_client(compile=app, embedded={NAME: path}, cache_dir=tmp_path / "other")
    with pytest.raises(nightferry.CompileFailedError):
        other.compiled_path(NAME)
    with pytest.raises(nightferry.ConfigurationError):
        make_client().compiled_path(NAME)


@pytest.mark.parametrize("answer", [None, "nowhere", "..", "/etc", 7])
def test_what_is_not_in_the_folder_is_no_result(
    server: FakeServer, make_client: ClientFactory, answer: object
) -> None:
    server.publish(NAME, b"first", LABELS)
    client = make_client(compile=lambda _path, _folder: answer)
    with pytest.raises(nightferry.CompileFailedError, match="nothing in its folder"):
        client.sync(NAME)

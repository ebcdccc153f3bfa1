"""The ``nightferry`` command, as a person and as a script use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nightferry.cli import DAMAGED, DONE, FAILED, TRY_LATER, USAGE, main
from nightferry.testing import FakeServer, Fault

from .support import LABELS, NAME


@pytest.fixture
def call(server: FakeServer, cache_dir: Path, capsys: pytest.CaptureFixture[str]):
    def run(command: str, *more: str) -> tuple[int, str, str]:
        root = cache_dir.with_name("root.json")
        root.write_bytes(server.root)
        place = ["--server", server.url, "--cache-dir", str(cache_dir), "--trusted-root", str(root)]
        status = main([command, *more, *place])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_a_session(server: FakeServer, call, content: bytes) -> None:
    server.publish(NAME, content, LABELS)
    assert call("status")[:2] == (DONE, call("status")[1])
    assert "No model yet" in call("status")[1]
    status, said, _ = call("check", "--model", NAME)
    assert (status, said) == (DONE, "recyclables v1 is available; 300.0 kB to download.\n")
    status, said, _ = call("fetch", "--model", NAME)
    assert status == DONE
    assert said.startswith("recyclables v1 is in use now: 300.0 kB at ")
    assert "was up to date" in call("fetch", "--model", NAME)[1]
    assert call("check", "--model", NAME)[1] == "recyclables v1 is up to date.\n"
    assert "recyclables: v1, active, float32, 300.0 kB" in call("status")[1]
    assert call("verify")[:2] == (DONE, "1 files, 300.0 kB: all intact.\n")
    assert [event["type"] for event in server.events] == ["assigned", "downloaded", "activated"]


def test_the_cache_is_listed_and_cleared(server: FakeServer, call, content: bytes) -> None:
    for size in (1000, 2000):
        server.publish(NAME, content[:size], LABELS)
        call("fetch", "--model", NAME)
    said = call("scan")[1]
    assert "2.0 kB  active    recyclables v2\n" in said
    assert "1.0 kB  previous  recyclables v1\n" in said
    assert call("prune")[1] == "0 files removed, 0 B freed.\n"
    assert call("prune", "--all")[1] == "1 files removed, 1.0 kB freed.\n"
    (file,) = json.loads(call("scan", "--json")[1])["files"]
    assert (file["label"], file["role"], file["size_bytes"]) == ("v2", "active", 2000)
    server.publish(NAME, content[:2000], LABELS, reason="rollback")
    said = call("fetch", "--model", NAME)[1]
    assert said.endswith("(fetched 0 B instead of 2.0 kB)\n")


def test_json_is_one_object(server: FakeServer, call, content: bytes) -> None:
    server.publish(NAME, content, LABELS)
    update = json.loads(call("check", "--model", NAME, "--json")[1])["update"]
    assert (update["label"], update["download_bytes"]) == ("v1", len(content))
    fetched = json.loads(call("fetch", "--model", NAME, "--json")[1])
    assert fetched["changed"] is True
    assert fetched["model"]["labels"] == LABELS
    assert json.loads(call("check", "--model", NAME, "--json")[1]) == {"update": None}
    (model,) = json.loads(call("status", "--json")[1])["models"]
    assert model["current"]["label"] == "v1"
    assert json.loads(call("verify", "--json")[1])["damaged"] == []


def test_exit_statuses(server: FakeServer, call, cache_dir: Path, content: bytes) -> None:
    status, _, complaint = call("fetch", "--model", NAME)
    assert status == FAILED
    assert complaint.startswith("nightferry: ")
    assert "unknown_model" in complaint
    assert call("check")[0] == USAGE
    server.publish(NAME, content, LABELS)
    server.inject(Fault("update", status=503))
    status, said, _ = call("check", "--model", NAME, "--json")
    assert status == TRY_LATER
    assert json.loads(said)["error"]["code"] == "server_error"
    call("fetch", "--model", NAME)
    (blob,) = cache_dir.glob("blobs/sha256/*/*")
    blob.chmod(0o644)
    blob.write_bytes(b"x")
    status, said, _ = call("verify")
    assert (status, said) == (DAMAGED, "1 files, 0 B: 1 damaged and removed.\n")
    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == USAGE


def test_no_address_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["check", "--model", NAME]) == USAGE
    assert "NIGHTFERRY_ENDPOINT" in capsys.readouterr().err


def test_address_key_and_output(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: bytes,
) -> None:
    with FakeServer(app_key="secret") as locked:
        locked.publish(NAME, content, LABELS)
        monkeypatch.setenv("NIGHTFERRY_ENDPOINT", locked.url)
        monkeypatch.setenv("NIGHTFERRY_HOME", str(tmp_path / "home"))
        assert main(["fetch", "--model", NAME]) == FAILED
        monkeypatch.setenv("NIGHTFERRY_APP_KEY", "secret")
        assert main(["fetch", "--model", NAME]) == FAILED
        assert "root.json" in capsys.readouterr().err
        (tmp_path / "root.json").write_bytes(locked.root)
        monkeypatch.setenv("NIGHTFERRY_TRUSTED_ROOT", str(tmp_path / "root.json"))
        target = tmp_path / "app" / "m.tflite"
        assert main(["fetch", "--model", NAME, "--output", str(target)]) == DONE
    assert target.read_bytes() == content
    assert json.loads(target.with_name("m.tflite.json").read_text())["labels"] == LABELS


def test_held_back_and_rolled_back_are_said(server: FakeServer, call, content: bytes) -> None:
    server.publish(NAME, content, LABELS)
    call("fetch", "--model", NAME)
    server.roll_back_to_embedded(NAME)
    assert "wants recyclables back on the embedded model" in call("check", "--model", NAME)[1]
    server.publish(NAME, content[:500], LABELS)
    server.inject(Fault("artifact", flip=3))
    assert call("fetch", "--model", NAME)[0] == FAILED
    assert "Not by itself: v3 failed here (integrity)" in call("check", "--model", NAME)[1]


def test_a_progress_bar_on_a_terminal(
    server: FakeServer, call, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(NAME, content, LABELS)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = call("fetch", "--model", NAME)[2]
    assert bar.endswith("[##############################] 300.0 kB of 300.0 kB\n")


def test_a_picture_that_is_none(server: FakeServer, call, content: bytes) -> None:
    server.publish(NAME, content, LABELS)
    status, _, complaint = call("predict", "nowhere.jpg", "--model", NAME)
    assert status == FAILED
    assert "not a model this runtime can load" in complaint

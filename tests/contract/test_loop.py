"""The whole loop on real photos: volunteers, night, release, device, second night."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import nightferry
import pytest

from server import blobs
from tests.support.data import data_folder
from tests.support.server import LiveServer, running_server

pytestmark = [pytest.mark.ml, pytest.mark.timeout(600)]

# The smaller backbone: its files compile in half the time.
POLICY = {"architecture": "mobilenet_v2_0.35_224"}
LABELS = ("glass", "metal", "paper")
FIRST, SECOND, UNSEEN = slice(0, 24), slice(24, 31), slice(31, 35)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    weights = str(data_folder("weights"))
    with running_server(tmp_path_factory.mktemp("server"), NIGHTFERRY_WEIGHTS=weights) as running:
        yield running


@pytest.fixture(scope="module")
def first_night(server, tmp_path_factory):
    """Bring the first photos and train on them; return the run and its log."""
    bring(server, FIRST, tmp_path_factory.mktemp("photos") / "first")
    server.call("PATCH", "/models/recyclables", {"is_open": True, "training_policy": POLICY})
    return train(server)


@pytest.fixture
def quick(server, first_night):
    """Let runs compile one small file, where a test is about something else."""
    only = {"training_policy": {**POLICY, "variants": ["tflite:float32"]}}
    server.call("PATCH", "/models/recyclables", only)
    yield
    server.call("PATCH", "/models/recyclables", {"training_policy": {**POLICY, "variants": None}})


def bring(server: LiveServer, photos: slice, folder: Path) -> str:
    """Import some photos of each label; eight made-up contributors took turns."""
    for label in LABELS:
        target = folder / label
        target.mkdir(parents=True)
        for number, path in enumerate(
            sorted((data_folder("recyclables") / label).iterdir())[photos]
        ):
            shutil.copy(path, target / f"person{number % 8}__{path.name}")
    done = server.manage(
        "import_photos", "recyclables", str(folder), "--accept", "--volunteer-from", r"(person\d)__"
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def train(server: LiveServer):
    run = server.call("POST", "/models/recyclables/train", {})
    ended = server.wait_for_run(run["id"])
    lines = "\n".join(f"{line['stage']}: {line['message']}" for line in ended["lines"])
    assert ended["state"] == "succeeded", f"{ended['outcome']}\n{lines}\n{server.log()[-3000:]}"
    return ended, lines


def splits(server: LiveServer) -> dict[str, dict[str, str]]:
    """Return each snapshot's splits by photo, straight from the database."""
    found: dict[str, dict[str, str]] = {}
    with sqlite3.connect(server.data / "nightferry.sqlite3") as database:
        rows = database.execute("SELECT snapshot_id, photo_id, split FROM training_snapshotentry")
        for snapshot, photo, split in rows:
            found.setdefault(str(snapshot), {})[photo] = split
    return found


def test_a_photo_becomes_a_model_on_a_device_and_the_next_night_costs_only_what_is_new(
    server, first_night, tmp_path
):
    run, lines = first_night
    assert run["version"] == 1
    assert "split by contributor" in lines
    assert "frozen, with ImageNet weights" in lines
    assert any("loss" in point["metrics"] for point in run["curve"]), "no curve was reported"

    version = server.call("GET", "/models/recyclables/versions/1")
    variants = {(v["runtime"], v["precision"]): v for v in version["variants"]}
    assert set(variants) == {
        ("tflite", "float32"),
        ("tflite", "float16"),
        ("tflite", "int8"),
        ("coreml", "float16"),
        ("coreml", "palette8"),
    }
    for (runtime, _), variant in variants.items():
        assert variant["size_bytes"] > 100_000
        assert variant["is_shipped"] or variant["refusal"]
        if runtime == "tflite":
            assert variant["metrics"]["count"] == version["metrics"]["count"]
            assert variant["metrics"]["latency_ms"]["p50"] > 0
    assert variants["tflite", "float32"]["metrics"]["accuracy"] == version["metrics"]["accuracy"]
    assert version["metrics"]["accuracy"] > 0.6

    root = tmp_path / "root.json"
    done = server.manage("trust", "root", "--output", str(root))
    assert done.returncode == 0, done.stderr
    client = nightferry.ModelClient(server.url, cache_dir=tmp_path / "device", trusted_root=root)
    wait_until(lambda: announced(server) == "v1", timeout_s=60)
    model = client.get_model("recyclables", download_type=nightferry.DownloadType.LATEST_MODEL)
    assert (model.label, model.version, list(model.labels)) == ("v1", 1, list(LABELS))
    predictor = client.load("recyclables")
    unseen = [
        (label, path)
        for label in LABELS
        for path in sorted((data_folder("recyclables") / label).iterdir())[UNSEEN]
    ]
    right = sum(predictor.predict(str(path))[0][0] == label for label, path in unseen)
    assert right > len(unseen) / 2

    bring(server, SECOND, tmp_path / "second")
    run, lines = train(server)
    new = len(LABELS) * (SECOND.stop - SECOND.start)
    assert f"{new} photos embedded now" in lines
    first, second = splits(server).values()
    assert {photo: second[photo] for photo in first} == first, "a photo changed its split"

    newest = server.call("GET", "/models/recyclables/channels/production/releases")["results"][0]
    wait_until(lambda: announced(server) == newest["label"], timeout_s=120)
    wait_until(lambda: synced_label(client) == newest["label"], timeout_s=20)
    if newest["label"] != "v1":
        # The head alone was trained anew: the files differ in their last few kilobytes.
        poll = "/models/recyclables/update?device=d-1&runtime=tflite&accept="
        for precision in ("float32", "float16"):
            manifest = server.call("GET", poll + precision)
            (patch,) = manifest["patches"]
            assert patch["size_bytes"] < manifest["artifact"]["size_bytes"] / 20, precision
    client.flush_events()
    with sqlite3.connect(server.data / "nightferry.sqlite3") as database:
        kinds = {row[0] for row in database.execute("SELECT type FROM telemetry_event")}
    assert {"downloaded", "activated"} <= kinds


def test_a_run_that_fails_says_why_and_leaves_the_incumbent(server, tmp_path):
    server.call("POST", "/models", {"slug": "lonely", "labels": ["one", "two"], "is_open": True})
    run = server.call("POST", "/models/lonely/train", {})
    ended = server.wait_for_run(run["id"])
    assert ended["state"] == "failed"
    assert ended["error_code"] == "too_few_labels"
    assert "Collect or accept more photos" in ended["outcome"]
    assert server.call("GET", "/models/lonely/update?device=d-1&runtime=tflite") is None


@pytest.mark.usefixtures("quick")
def test_cancel_stops_a_run_in_the_middle(server):
    run = server.call("POST", "/models/recyclables/train", {})
    server.call("POST", f"/runs/{run['id']}/cancel", {})
    ended = server.wait_for_run(run["id"], timeout_s=60)
    assert ended["state"] == "cancelled"
    again, _ = train(server)
    assert again["state"] == "succeeded"


@pytest.mark.usefixtures("quick")
def test_a_night_survives_the_kill_of_its_process_in_the_middle_of_training(server):
    run = server.call("POST", "/models/recyclables/train", {})
    wait_until(lambda: server.call("GET", f"/runs/{run['id']}")["stage"] == "compiling")
    child = process_of(run["id"], server)
    os.kill(child, signal.SIGKILL)
    ended = server.wait_for_run(run["id"])
    assert ended["state"] == "succeeded", ended["outcome"]
    assert any("starts again" in line["message"] for line in ended["lines"])
    versions = server.call("GET", "/models/recyclables/versions")["results"]
    numbers = [version["number"] for version in versions]
    assert len(numbers) == len(set(numbers))
    assert ended["version"] == max(numbers)
    assert not Path(f"/proc/{child}").exists()


def announced(server: LiveServer) -> str | None:
    """Return the release that devices are offered."""
    manifest = server.call("GET", "/models/recyclables/update?device=d-1&runtime=tflite")
    return manifest and manifest["label"]


def synced_label(client: nightferry.ModelClient) -> str:
    client.sync("recyclables")
    return client.get_model("recyclables").label


@pytest.mark.usefixtures("quick")
def test_own_trained_files_become_versions(server, tmp_path):
    """The files of a version made here, brought back as if trained elsewhere."""
    version = server.call("GET", "/models/recyclables/versions/1")
    with sqlite3.connect(server.data / "nightferry.sqlite3") as database:
        source = database.execute(
            "SELECT source_sha256 FROM registry_modelversion WHERE number = 1"
        ).fetchone()[0]
    files = {"own.keras": source}
    for variant in version["variants"]:
        name = {"tflite": "own.tflite", "coreml": "own.mlpackage.zip"}[variant["runtime"]]
        files[name] = variant["sha256"]
    expected = {"own.keras": 1, "own.tflite": 1, "own.mlpackage.zip": 1}
    for name, sha256 in files.items():
        data = (server.data / "blobs" / blobs.key(sha256)).read_bytes()
        run = upload(server, name, data)
        ended = server.wait_for_run(run["id"])
        assert ended["state"] == "succeeded", f"{name}: {ended['outcome']}"
        made = server.call("GET", f"/models/recyclables/versions/{ended['version']}")
        shipped = [variant for variant in made["variants"] if variant["is_shipped"]]
        assert len(shipped) == expected[name], (name, made["variants"])
        assert made["labels"] == list(LABELS)
        if name != "own.mlpackage.zip":
            assert made["metrics"]["accuracy"] > 0.5
    damaged = upload(server, "own.tflite", b"\x1c\0\0\0TFL3" + b"no model" * 50)
    ended = server.wait_for_run(damaged["id"])
    assert ended["state"] == "failed"
    assert ended["error_code"]


def upload(server: LiveServer, name: str, data: bytes):
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(f"{server.url}/api/v1/models/recyclables/versions", body)
    request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
    request.add_header("Authorization", f"Bearer {server.token}")
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.status == 202
        return json.load(response)


def process_of(run_id: str, server: LiveServer) -> int:
    """Return the id of the process that trains; there is one on this server's data."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes()
            if b"worker.child" in command and os.fsencode(str(server.data)) in environment:
                return int(folder.name)
    pytest.fail(f"no process trains run {run_id}")


def wait_until(holds: Callable[[], bool], *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


def test_without_weights_a_small_network_is_trained_and_the_log_says_so(tmp_path):
    with running_server(tmp_path / "server") as server:
        bring(server, slice(0, 10), tmp_path / "photos")
        done = server.manage("nightly", "recyclables")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "from scratch" in done.stdout
        outcome = server.call("GET", "/runs")["results"][0]["outcome"]
        if "Released on production as v1" in outcome:
            assert "production v1 signed and offered to devices." in done.stdout
        version = server.call("GET", "/models/recyclables/versions/1")
        assert version["architecture"] == "small_cnn"
        assert json.dumps(version["lineage"])

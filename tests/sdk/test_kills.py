"""Killed, or out of space, at every write: afterwards there is a verified model, and it goes on.

A process that has the SDK forks a child for each n. The child dies at its n-th write, flush, rename
or deletion; the parent then looks at what the next start of the app finds.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from nightferry import ModelClient
from nightferry.testing import FakeServer, Fault

from .conftest import ClientFactory
from .support import LABELS, NAME, quick_timing, start_python
from .test_patched_updates import NEW, OLD, PATCH, sha256

PHASES = ["checking", "available", "downloading", "verifying", "staged", "pending", "trial"]

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="forks and kills"),
    pytest.mark.timeout(180),
]

HARNESS = """
import hashlib, json, os, pathlib, shutil, signal, sys, tempfile
import nightferry
from nightferry import cache, cli, download, metadata, patches, selftest, transport
from nightferry.models import DownloadType

url, start, root, how, steps, also = sys.argv[1:]
NAME = "recyclables"
os.fsync = lambda _descriptor: None  # no power is cut here, and real ones would take minutes

def client_of(folder, **more):
    embedded = {NAME: os.path.join(start, "embedded.tflite")}
    return nightferry.ModelClient(url, cache_dir=folder, trusted_root=root, embedded=embedded,
                                  timing=nightferry.Timing(retry_base_s=0.001), **more)

def counted(number, act):
    calls = 0
    def wrap(function):
        def wrapper(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == number:
                act()
            return function(*arguments, **options)
        return wrapper
    return wrap

def spoil(number):
    if how == "kill":
        at = counted(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
    else:
        def full():
            raise OSError(28, "No space left on device")
        at = counted(number, full)
    read, write = pathlib.Path.open, at(pathlib.Path.open)
    def open_(path, mode="r", *more, **options):
        return (read if mode in ("r", "rb") else write)(path, mode, *more, **options)
    pathlib.Path.open = open_
    pathlib.Path.mkdir = at(pathlib.Path.mkdir)
    pathlib.Path.replace = at(pathlib.Path.replace)
    pathlib.Path.chmod = at(pathlib.Path.chmod)
    if how == "kill":
        pathlib.Path.unlink = at(pathlib.Path.unlink)
        os.fsync = at(os.fsync)
        os.link = at(os.link)
        os.utime = at(os.utime)
        cache.Partial.append = at(cache.Partial.append)

def work(folder):
    client = client_of(folder)
    for step in steps.split():
        try:
            if step == "sync":
                client.sync(NAME)
            elif step == "fetch":
                client.fetch_update(NAME)
            elif step == "take":
                client.get_model(NAME, DownloadType.LOCAL_MODEL)
            elif step == "ready":
                client.notify_ready(NAME)
            elif step == "fail":
                client.report_failure(NAME, "bad")
            elif step == "prune":
                client.prune(keep_previous=False)
        except nightferry.NightferryError as error:
            if how == "kill" and error.code not in also.split():
                raise

def look(folder):
    client = client_of(folder, telemetry=False)
    seen = {"phase": client.status(NAME).phase}
    for moment in ("before", "after"):
        model = client.get_model(NAME, DownloadType.LOCAL_MODEL)
        content = model.path.read_bytes()
        seen[moment] = model.label
        seen[moment + "_is_right"] = hashlib.sha256(content).hexdigest() == model.sha256
        seen["verified"] = client.verify_cache().ok
        if moment == "before":
            try:
                client.sync(NAME)
            except nightferry.NightferryError as error:
                if error.code not in also.split():
                    raise
    seen["roles"] = sorted(file.role for file in client.prune() and client.scan())
    return seen

for number in range(1, 400):
    folder = tempfile.mkdtemp(dir=os.path.dirname(start))
    shutil.copytree(start, folder, dirs_exist_ok=True)
    child = os.fork()
    if child == 0:
        try:
            spoil(number)
            work(folder)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(status)
    print(json.dumps({"number": number, "status": status, **look(folder)}), flush=True)
    shutil.rmtree(folder)
    if how == "kill" and status == 0 or how != "kill" and number == LAST:
        break
"""


@pytest.fixture
def start() -> Iterator[Path]:
    """Return a cache folder in memory, with room beside it."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        path = Path(folder) / "start"
        path.mkdir()
        (path / "embedded.tflite").write_bytes(b"the model in the app")
        yield path


@pytest.fixture
def device(make_client: ClientFactory, start: Path) -> ModelClient:
    embedded = {NAME: start / "embedded.tflite"}
    return make_client(cache_dir=start, timing=quick_timing(), embedded=embedded)


def torment(
    server: FakeServer, start: Path, root_file: Path, how: str, steps: str, also: str = "-"
) -> list[dict]:
    """Spoil the n-th write for every n; return what each next start of the app found."""
    harness = HARNESS.replace("LAST", "60")
    process = start_python(harness, server.url, start, root_file, how, steps, also)
    output, errors = process.communicate(timeout=170)
    found = [json.loads(line) for line in output.splitlines()]
    assert process.returncode == 0, errors[-3000:]
    for one in found:
        assert one["before_is_right"], one
        assert one["after_is_right"], one
        assert one["verified"], one
    if how == "kill":
        assert {one["status"] for one in found[:-1]} == {-signal.SIGKILL}, errors[-3000:]
    return found


def test_a_kill_anywhere_in_an_update_leaves_the_old_or_the_new_model(
    server: FakeServer, device: ModelClient, start: Path, root_file: Path, content: bytes
) -> None:
    server.publish(NAME, content[:1000], LABELS)
    device.sync(NAME)
    device.notify_ready(NAME)
    server.publish(NAME, content, LABELS)
    found = torment(server, start, root_file, "kill", "sync take ready")

    labels = {phase: {one["before"] for one in found if one["phase"] == phase} for phase in PHASES}
    assert all(labels[phase] == {"v1"} for phase in PHASES[:5]), labels
    assert all(labels[phase] == {"v2"} for phase in PHASES[5:]), labels
    assert found[0]["before"] == "v1"
    assert found[-1]["before"] == "v2"
    assert {one["after"] for one in found} == {"v2"}
    assert {tuple(one["roles"]) for one in found} == {("active", "previous")}
    assert len(found) > 60, "every state and every write was a place to die"


def test_a_kill_anywhere_in_an_update_by_patch(
    server: FakeServer, device: ModelClient, start: Path, root_file: Path
) -> None:
    server.publish(NAME, OLD, LABELS)
    device.sync(NAME)
    server.publish(NAME, NEW, LABELS)
    server.offer_patch(NAME, PATCH, sha256(OLD))
    server.inject(Fault("artifact", times=0))
    found = torment(server, start, root_file, "kill", "fetch")

    assert {one["before"] for one in found} == {"v1", "v2"}, "taken as soon as it is ready"
    assert {one["after"] for one in found} == {"v2"}
    assert {tuple(one["roles"]) for one in found} == {("active", "previous")}
    whole = [r for r in server.requests if r.route == "artifact" and r.sent_bytes > len(PATCH)]
    assert len(whole) == 1, "only the first install took a whole file"


def test_a_kill_anywhere_in_a_self_test_that_fails(
    server: FakeServer, device: ModelClient, start: Path, root_file: Path, content: bytes
) -> None:
    server.publish(NAME, content[:1000], LABELS)
    device.sync(NAME)
    # One that is not to be understood: then no runtime is started for each of the kills.
    server.publish(NAME, b"no model", LABELS, selftest={"format": 99, "data": "?"})
    found = torment(server, start, root_file, "kill", "sync", "selftest_unreadable")
    assert {one["before"] for one in found} == {"v1"}
    assert {one["after"] for one in found} == {"v1"}
    assert "self_test" in {one["phase"] for one in found}


def test_a_kill_anywhere_on_the_ways_back(
    server: FakeServer, device: ModelClient, start: Path, root_file: Path, content: bytes
) -> None:
    for size in (1000, 2000):
        server.publish(NAME, content[:size], LABELS)
        device.sync(NAME)
    found = torment(server, start, root_file, "kill", "fail prune")
    assert {one["before"] for one in found} == {"v1", "v2"}
    assert {one["after"] for one in found} <= {"v1", "v2"}


def test_a_kill_anywhere_while_files_are_recalled(
    server: FakeServer, device: ModelClient, start: Path, root_file: Path, content: bytes
) -> None:
    for size in (1000, 2000):
        server.publish(NAME, content[:size], LABELS)
        model = device.sync(NAME)
    server.revoke(NAME, model.sha256)
    found = torment(server, start, root_file, "kill", "sync")
    assert {one["before"] for one in found} == {"v1", "v2"}
    assert {one["after"] for one in found} == {"v1"}, "nobody keeps what is recalled"


def test_no_space_at_any_one_write_costs_no_model(
    server: FakeServer, device: ModelClient, start: Path, root_file: Path
) -> None:
    server.publish(NAME, OLD, LABELS)
    device.sync(NAME)
    server.publish(NAME, NEW, LABELS)
    server.offer_patch(NAME, PATCH, sha256(OLD))
    found = torment(server, start, root_file, "full", "sync take")
    assert {one["before"] for one in found} <= {"v1", "v2"}
    assert {one["after"] for one in found} == {"v2"}


FULL = """
import resource, signal, sys, nightferry
from nightferry.models import DownloadType
url, folder, root, limit = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
client = nightferry.ModelClient(url, cache_dir=folder, trusted_root=root)
try:
    client.sync("recyclables")
except nightferry.NightferryError as error:
    print(error.code)
print(client.get_model("recyclables", DownloadType.LOCAL_MODEL).label)
"""


@pytest.mark.parametrize("limit", [0, 100, 3_000, len(PATCH) - 1, len(NEW) // 2, len(NEW) - 1])
def test_a_disk_full_at_some_byte_of_any_file(
    server: FakeServer, device: ModelClient, start: Path, root_file: Path, limit: int
) -> None:
    """Metadata, state, patch, patched file: whichever comes first meets the limit."""
    server.publish(NAME, OLD, LABELS)
    device.sync(NAME)
    server.publish(NAME, NEW, LABELS)
    server.offer_patch(NAME, PATCH, sha256(OLD))
    process = start_python(FULL, server.url, start, root_file, limit)
    output, errors = process.communicate(timeout=60)
    assert output.splitlines()[-1] == "v1", (output, errors)
    assert device.verify_cache().ok
    assert device.sync(NAME).label == "v2"


def test_torn_states_cost_no_model(
    server: FakeServer, make_client: ClientFactory, cache_dir: Path, content: bytes
) -> None:
    server.publish(NAME, content[:1000], LABELS)
    make_client().sync(NAME)
    server.publish(NAME, content, LABELS)
    make_client().fetch_update(NAME)
    copies = sorted(cache_dir.rglob("state*.json"))
    whole = [path.read_bytes() for path in copies]
    for cut in (0, 1, len(whole[0]) // 2, len(whole[0]) - 1):
        for torn in (copies[:1], copies[1:], copies):
            for path, text in zip(copies, whole, strict=True):
                path.write_bytes(text[:cut] if path in torn else text)
            client = make_client(activation="manual")
            assert client.verify_cache().ok
            labels = [model.label for model in client.list_models()]
            assert labels == ([] if len(torn) == 2 else ["v1"])
            sent = server.sent_bytes("artifact")
            client.sync(NAME)
            assert server.sent_bytes("artifact") == sent, "the file is known by its hash"

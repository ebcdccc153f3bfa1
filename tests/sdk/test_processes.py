"""Kills, two processes on one cache, and caches that cannot be written."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nightferry
import pytest
from nightferry import DownloadType, ModelClient
from nightferry.testing import FakeServer, Fault

from .conftest import ClientFactory
from .support import LABELS, NAME, leftovers, read, start_python, wait_until

SYNC = """
import sys, nightferry
client = nightferry.ModelClient(sys.argv[1], cache_dir=sys.argv[2], trusted_root=sys.argv[3])
model = client.get_model("recyclables", nightferry.DownloadType.LATEST_MODEL)
print(model.label, model.sha256, client.flush_events())
"""


def test_a_killed_download_is_continued_by_a_new_process(
    server: FakeServer, root_file: Path, client: ModelClient, cache_dir: Path, content: bytes
) -> None:
    server.publish(NAME, b"the model before", LABELS)
    client.sync(NAME)
    server.publish(NAME, content, LABELS)
    server.inject(Fault("artifact", pause_s=0.05))
    process = start_python(SYNC, server.url, cache_dir, root_file)
    wait_until(
        lambda: any(p.stat().st_size > 60_000 for p in cache_dir.glob("partial/*.part")),
        "some bytes on the disk",
    )
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)

    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1"
    assert client.status(NAME).phase == "downloading"
    output, errors = start_python(SYNC, server.url, cache_dir, root_file).communicate(timeout=30)

    assert output.startswith("v2 "), errors
    assert read(client) == content
    resumed = [r for r in server.requests if r.route == "artifact"][-1]
    assert int(resumed.headers["Range"].removeprefix("bytes=").rstrip("-")) > 60_000
    assert leftovers(cache_dir) == []


def test_two_processes_download_once(
    server: FakeServer, root_file: Path, cache_dir: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    server.inject(Fault("artifact", times=9, pause_s=0.05))
    processes = [start_python(SYNC, server.url, cache_dir, root_file) for _ in range(3)]
    outputs = [process.communicate(timeout=30) for process in processes]

    assert [output.split()[0] for output, _ in outputs] == ["v1"] * 3, outputs
    assert server.sent_bytes("artifact") == len(content)
    devices = {r.query["device"] for r in server.requests if r.route == "update"}
    assert len(devices) == 1, "one installation, however many processes"


def test_without_a_lock_two_downloads_still_end_well(
    server: FakeServer, root_file: Path, cache_dir: Path, content: bytes
) -> None:
    """Some file systems grant every lock: the lock saves bytes and decides nothing."""
    server.publish(NAME, content, LABELS)
    server.inject(Fault("artifact", times=9, pause_s=0.02))
    grant_all = "import nightferry.files as f\nf._lock = lambda descriptor: None\n" + SYNC
    processes = [start_python(grant_all, server.url, cache_dir, root_file) for _ in range(3)]
    for process in processes:
        process.communicate(timeout=30)

    (blob,) = cache_dir.glob("blobs/sha256/*/*")
    assert blob.read_bytes() == content
    client = ModelClient(server.url, cache_dir=cache_dir, trusted_root=server.root)
    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1"
    assert client.verify_cache().ok


READ_ONLY = """
import os, sys, nightferry
from nightferry import DownloadType
url, cache_dir, elsewhere, root_path = sys.argv[1:]
root = open(root_path, "rb").read()
# Load everything while it may be read, then become somebody who may write nothing.
nightferry.ModelClient(url, cache_dir=elsewhere, trusted_root=root).sync("recyclables")
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
client = nightferry.ModelClient(url, cache_dir=cache_dir, trusted_root=root)
for kind in DownloadType:
    print(client.get_model("recyclables", kind).label)
try:
    client.fetch_update("recyclables")
except nightferry.CacheReadOnlyError as error:
    print(error.code, error)
print(len(client.list_models()), client.verify_cache().ok, client.check_for_update("recyclables"))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs another user id")
def test_a_read_only_cache_still_serves(
    server: FakeServer, root_file: Path, make_client: ClientFactory, tmp_path: Path, content: bytes
) -> None:
    with TemporaryDirectory() as reachable:  # pytest's own folders are closed to others
        cache_dir = Path(reachable) / "cache"
        server.publish(NAME, content, LABELS)
        make_client(cache_dir=cache_dir).sync(NAME)
        server.publish(NAME, content[:1000], LABELS)
        folders = [path for path in [cache_dir, *cache_dir.rglob("*")] if path.is_dir()]
        for folder in folders:
            folder.chmod(0o555)
        Path(reachable).chmod(0o755)
        process = start_python(READ_ONLY, server.url, cache_dir, tmp_path / "elsewhere", root_file)
        output, errors = process.communicate(timeout=30)
        for folder in folders:
            folder.chmod(0o755)

    lines = output.splitlines()
    assert lines[:3] == ["v1", "v1", "v1"], errors
    assert lines[3].startswith("cache_read_only The cache folder may not be written")
    assert lines[4].startswith("1 True Update(name='recyclables', label='v2'")
    assert "Traceback" not in errors


FULL_DISK = """
import resource, signal, sys, nightferry
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
client = nightferry.ModelClient(sys.argv[1], cache_dir=sys.argv[2], trusted_root=sys.argv[4])
print(client.get_model("recyclables", nightferry.DownloadType.LATEST_MODEL).label)
try:
    client.fetch_update("recyclables")
except nightferry.StorageError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as POSIX systems do")
@pytest.mark.parametrize("limit", [10_000, 65_537, 299_999])
def test_a_disk_that_is_full_at_some_byte_keeps_the_model_before(
    server: FakeServer,
    root_file: Path,
    client: ModelClient,
    cache_dir: Path,
    content: bytes,
    limit: int,
) -> None:
    server.publish(NAME, b"the model before", LABELS)
    client.sync(NAME)
    server.publish(NAME, content, LABELS)
    process = start_python(FULL_DISK, server.url, cache_dir, limit, root_file)
    output, errors = process.communicate(timeout=30)
    label, sentence = output.splitlines()
    assert label == "v1", errors
    assert "could not be written" in sentence
    assert read(client) == b"the model before"
    assert client.sync(NAME).label == "v2"
    assert read(client) == content
    assert leftovers(cache_dir) == []


# Torn disk state


def test_a_torn_state_is_made_good_from_its_copy_offline(
    server: FakeServer, make_client: ClientFactory, cache_dir: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    make_client().sync(NAME)
    (state,) = cache_dir.rglob("state.json")
    whole = state.read_bytes()
    for torn in (b"", whole[: len(whole) // 2], b"\x00" * 4096, b"null", b'{"schema": 2}', b"[]"):
        state.write_bytes(torn)
        assert make_client().get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1"
    state.unlink()
    assert make_client().get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1"
    assert make_client().sync(NAME).label == "v1"


def test_with_both_copies_torn_the_file_is_found_again_without_a_download(
    server: FakeServer, make_client: ClientFactory, cache_dir: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    make_client().sync(NAME)
    for state in cache_dir.rglob("state*.json"):
        state.write_bytes(b"{torn")
    sent = server.sent_bytes("artifact")
    client = make_client()
    assert client.list_models() == []
    assert client.sync(NAME).label == "v1"
    assert server.sent_bytes("artifact") == sent


def test_verify_finds_and_removes_damage(
    server: FakeServer, client: ModelClient, cache_dir: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    server.publish(NAME, content[:1000], LABELS)
    path = client.sync(NAME).path
    path.chmod(0o644)
    path.write_bytes(b"x" * 1000)

    report = client.verify_cache()

    assert (report.checked, report.damaged, report.ok) == (2, (path,), False)
    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1"
    assert client.sync(NAME).label == "v2"
    assert read(client) == content[:1000]
    assert client.verify_cache().ok


def test_a_file_cleared_by_the_system_falls_back_and_is_fetched_again(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    server.publish(NAME, content[:1000], LABELS)
    client.sync(NAME).path.unlink()

    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1"
    assert client.sync(NAME).label == "v2"


def test_a_forgotten_transfer_is_swept(client: ModelClient, cache_dir: Path) -> None:
    old, new = cache_dir / "partial" / "a.1.part", cache_dir / "partial" / "b.2.part"
    old.parent.mkdir(parents=True)
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    assert client.verify_cache().ok
    assert [path.name for path in old.parent.iterdir()] == ["b.2.part"]


def test_the_installation_id_is_random_and_lasts(
    server: FakeServer, make_client: ClientFactory, tmp_path: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    for folder in ("one", "one", "two"):
        make_client(cache_dir=tmp_path / folder).check_for_update(NAME)
    one, again, two = [r.query["device"] for r in server.requests if r.route == "update"]
    assert one == again != two
    (path,) = (tmp_path / "one").rglob("installation-id")
    path.write_text("torn")
    make_client(cache_dir=tmp_path / "one").check_for_update(NAME)
    asked = [r for r in server.requests if r.route == "update"]
    assert asked[-1].query["device"] not in {one, two, "torn", ""}


def test_state_says_what_it_knows(
    server: FakeServer, client: ModelClient, cache_dir: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS, future={"member": 1})
    client.sync(NAME)
    (path,) = cache_dir.rglob("state.json")
    state = json.loads(path.read_text())
    assert state["active"]["manifest"]["future"] == {"member": 1}, "unknown members are kept"
    assert sys.getsizeof(path.read_bytes()) < 10_000


def test_a_cache_folder_that_is_a_file(
    server: FakeServer, make_client: ClientFactory, tmp_path: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    (tmp_path / "file").write_text("")
    with pytest.raises(nightferry.StorageError, match=r"could not be (read|written)"):
        make_client(cache_dir=tmp_path / "file").get_model(NAME)

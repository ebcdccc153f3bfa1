"""Updates by patch: some bytes instead of the whole file, and the whole file whenever in doubt."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nightferry
import numpy as np
import pytest
from nightferry import DownloadConditions, ModelClient
from nightferry.testing import FakeServer, Fault

from worker.patches import create_patch

from .conftest import ClientFactory
from .support import LABELS, NAME, leftovers, read, wait_until

COUNT = 75_000


def weights(seed: int, noise: float) -> bytes:
    """Return float32 numbers, as a network's weights: the same ones, moved a little."""
    base = np.random.default_rng(1).normal(0, 0.1, COUNT)
    moved = np.random.default_rng(seed).normal(0, noise, COUNT // 50)
    base[-len(moved) :] += moved
    return base.astype("<f4").tobytes()


OLD, NEW = weights(2, 0.01), weights(3, 0.02)
PATCH = create_patch(OLD, NEW)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def on_offer(server: FakeServer, client: ModelClient) -> FakeServer:
    """Install the old file, release the new one."""
    server.publish(NAME, OLD, LABELS)
    client.sync(NAME)
    server.publish(NAME, NEW, LABELS)
    return server


def last_event(client: ModelClient, server: FakeServer, kind: str) -> dict:
    client.flush_events()
    return [event for event in server.events if event["type"] == kind][-1]


def test_a_patch_costs_its_own_bytes_only(
    on_offer: FakeServer, client: ModelClient, cache_dir: Path
) -> None:
    on_offer.offer_patch(NAME, PATCH, sha256(OLD))
    assert len(PATCH) < len(NEW) / 10
    before = on_offer.sent_bytes("artifact")
    update = client.check_for_update(NAME)
    assert (update.size_bytes, update.download_bytes) == (len(NEW), len(PATCH))

    heard: list[tuple[int, int]] = []
    client.fetch_update(NAME, progress=lambda done, total: heard.append((done, total)))

    assert client.activate(NAME).label == "v2"
    assert read(client) == NEW
    assert on_offer.sent_bytes("artifact") - before == len(PATCH)
    assert heard[-1] == (len(PATCH), len(PATCH))
    transfer = client.status(NAME).last_transfer
    assert (transfer.received_bytes, transfer.size_bytes, transfer.by_patch) == (
        len(PATCH),
        len(NEW),
        True,
    )
    data = last_event(client, on_offer, "downloaded")["data"]
    assert (data["received_bytes"], data["size_bytes"], data["by_patch"]) == (
        len(PATCH),
        len(NEW),
        True,
    )
    assert sorted(file.role for file in client.scan()) == ["active", "previous"]
    assert leftovers(cache_dir) == []
    assert client.verify_cache().ok


def test_a_cut_patch_is_resumed(on_offer: FakeServer, client: ModelClient) -> None:
    on_offer.offer_patch(NAME, PATCH, sha256(OLD))
    on_offer.inject(Fault("artifact", cut_at=len(PATCH) // 2))
    before = on_offer.sent_bytes("artifact")
    assert client.sync(NAME).label == "v2"
    assert on_offer.sent_bytes("artifact") - before == len(PATCH)


def test_the_embedded_model_is_a_base_too(
    server: FakeServer, make_client: ClientFactory, tmp_path: Path
) -> None:
    path = tmp_path / "app.tflite"
    path.write_bytes(OLD)
    server.publish(NAME, NEW, LABELS)
    server.offer_patch(NAME, PATCH, sha256(OLD))
    client = make_client(embedded={NAME: path})
    assert client.sync(NAME).label == "v1"
    assert read(client) == NEW
    assert server.sent_bytes("artifact") == len(PATCH)


def test_the_smallest_fitting_patch_is_taken(on_offer: FakeServer, client: ModelClient) -> None:
    on_offer.offer_patch(NAME, create_patch(NEW[:1000], NEW), sha256(NEW[:1000]))
    on_offer.offer_patch(NAME, b"tiny, of a kind nobody knows", sha256(OLD), algorithm="later")
    on_offer.offer_patch(NAME, PATCH, sha256(OLD))
    assert client.sync(NAME).label == "v2"
    assert client.status(NAME).last_transfer.by_patch


OTHER = weights(9, 0.5)


@pytest.mark.parametrize(
    ("patch", "code"),
    [
        pytest.param(PATCH[:-9], "patch_unusable:damaged", id="truncated"),
        pytest.param(PATCH[:200] + b"\x00\xff" * 9 + PATCH[218:], "patch_unusable", id="tampered"),
        pytest.param(b"NFP9" + PATCH[4:], "patch_unusable:unknown_format", id="another format"),
        pytest.param(create_patch(OTHER, NEW), "patch_unusable:other_base", id="another base"),
        pytest.param(create_patch(OLD, OTHER), "patch_unusable:other_target", id="another result"),
        pytest.param(b"<html>", "patch_unusable", id="no patch"),
    ],
)
def test_a_patch_that_does_not_lead_there_costs_the_whole_file(
    on_offer: FakeServer, client: ModelClient, cache_dir: Path, patch: bytes, code: str
) -> None:
    """The patch is signed, and bad all the same: a bug where it was made."""
    on_offer.offer_patch(NAME, patch, sha256(OLD))
    assert client.sync(NAME).label == "v2"
    assert read(client) == NEW
    transfer = client.status(NAME).last_transfer
    assert not transfer.by_patch
    assert transfer.received_bytes == len(NEW)
    assert transfer.patch_error.startswith(code)
    data = last_event(client, on_offer, "downloaded")["data"]
    assert data["patch_error"] == transfer.patch_error
    assert leftovers(cache_dir) == []
    assert sorted(file.role for file in client.scan()) == ["active", "previous"]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("artifact", flip=300), "integrity"),
        (Fault("artifact", endless=True), "integrity"),
        (Fault("artifact", status=404), "artifact_gone"),
        (Fault("artifact", status=418), "request_refused"),
        (Fault("artifact", status=200, body=b"<html>"), "protocol"),
        (Fault("artifact", times=5, status=500), "server_error"),
    ],
)
def test_a_patch_that_does_not_come_costs_the_whole_file(
    on_offer: FakeServer, client: ModelClient, cache_dir: Path, fault: Fault, code: str
) -> None:
    on_offer.offer_patch(NAME, PATCH, sha256(OLD))
    on_offer.inject(fault)
    assert client.sync(NAME).label == "v2"
    assert read(client) == NEW
    assert client.status(NAME).last_transfer.patch_error == code
    assert leftovers(cache_dir) == []


def test_a_patch_that_nobody_signed_is_not_fetched(
    on_offer: FakeServer, client: ModelClient
) -> None:
    on_offer.offer_patch(NAME, PATCH, sha256(OLD))
    offered = on_offer.answer_update(NAME, None)[1]["patches"][0]
    on_offer.publish(NAME, NEW[:-4], LABELS)
    on_offer.forge(NAME, patches=[offered])
    before = on_offer.sent_bytes("artifact")
    assert client.sync(NAME).label == "v3"
    assert client.status(NAME).last_transfer.patch_error == "patch_unusable:unlisted"
    assert on_offer.sent_bytes("artifact") - before == len(NEW) - 4


def test_a_base_that_was_damaged_costs_the_whole_file(
    on_offer: FakeServer, client: ModelClient
) -> None:
    on_offer.offer_patch(NAME, PATCH, sha256(OLD))
    path = client.status(NAME).current.path
    path.chmod(0o644)
    path.write_bytes(OLD[:-4] + b"oops")
    assert client.sync(NAME).label == "v2"
    assert read(client) == NEW
    assert client.status(NAME).last_transfer.patch_error == "patch_unusable:other_base"


@pytest.mark.parametrize("patches", [None, "many", [None, 7, {}], [{"algorithm": "nfp1"}]])
def test_patches_that_cannot_be_read_are_passed_over(
    on_offer: FakeServer, client: ModelClient, patches: object
) -> None:
    on_offer.forge(NAME, patches=patches)
    assert client.sync(NAME).label == "v2"
    assert client.status(NAME).last_transfer.patch_error == ""


def test_conditions_count_for_what_is_to_be_fetched(
    on_offer: FakeServer, client: ModelClient
) -> None:
    conditions = DownloadConditions(max_bytes=len(PATCH))
    with pytest.raises(nightferry.ConditionsNotMetError):
        client.fetch_update(NAME, conditions)
    on_offer.offer_patch(NAME, PATCH, sha256(OLD))
    assert client.fetch_update(NAME, conditions).label == "v2"


def test_bytes_on_the_wire_of_one_night_and_the_next(
    server: FakeServer, make_client: ClientFactory
) -> None:
    """First install, no change, a small night, a rollback to what is cached."""
    server.publish(NAME, OLD, LABELS)
    client = make_client(telemetry=False)

    def cost() -> tuple[int, int]:
        artifact, everything = server.sent_bytes("artifact"), sum_of(server)
        client.sync(NAME)
        return server.sent_bytes("artifact") - artifact, sum_of(server) - everything

    assert cost()[0] == len(OLD)
    assert cost() == (0, 0), "304 has no body"
    server.publish(NAME, NEW, LABELS)
    server.offer_patch(NAME, PATCH, sha256(OLD))
    assert cost()[0] == len(PATCH)
    server.publish(NAME, OLD, LABELS, reason="rollback")
    assert cost()[0] == 0
    assert read(client) == OLD


def sum_of(server: FakeServer) -> int:
    return sum(request.sent_bytes for request in server.requests)


def test_a_background_update_by_patch_is_ready_for_the_next_load(
    on_offer: FakeServer, client: ModelClient
) -> None:
    on_offer.offer_patch(NAME, PATCH, sha256(OLD))
    assert client.get_model(NAME).label == "v1"
    wait_until(lambda: client.status(NAME).phase == "pending", "the patched file")
    assert client.get_model(NAME).label == "v2"
    assert read(client) == NEW

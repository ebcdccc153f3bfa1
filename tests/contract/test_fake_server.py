"""The fake server that ships with the SDK is honest: it answers and signs as the real one does."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nightferry
import pytest
from nightferry.manifest import Manifest, parse_manifest
from nightferry.testing import FakeServer
from nightferry.transport import Transport
from pytest_django.live_server_helper import LiveServer

from server.delivery.actions import create_application_key
from server.delivery.decision_set import holder
from server.rollouts import actions as rollouts
from server.trust import queries as trust
from tests.support.factories import PREPROCESSING, make_model, make_version, publish, release
from tests.support.processes import free_port

pytestmark = pytest.mark.django_db(transaction=True)

NAME, LABELS = "recyclables", ["glass", "metal"]
SELFTEST = {"format": "nfs1", "data": "golden", "sha256": hashlib.sha256(b"golden").hexdigest()}


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body) if self.body else None


@dataclass
class Side:
    """One of the two servers, and how to release something new on it."""

    url: str
    root: bytes
    release: Callable[[bytes], object]
    roll_back: Callable[[], object]
    kill: Callable[[], object]
    recall: Callable[[], str]

    def ask(self, path: str, body: object = None, **headers: str) -> Reply:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data)
        request.add_header("Content-Type", "application/json")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return Reply(reply.status, dict(reply.headers), reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, dict(error.headers), error.read())

    def poll(self, **headers: str) -> Reply:
        return self.ask(f"/models/{NAME}/update?device=d&runtime=tflite", **headers)

    def manifest(self) -> Manifest:
        return parse_manifest(self.poll().document)

    def signed(self, name: str) -> dict[str, Any]:
        return json.loads(self.ask(f"/metadata/{name}.json").body)["signed"]

    def role(self, name: str) -> dict[str, Any]:
        """Return what a role says now, found as a client finds it."""
        timestamp = self.signed("timestamp")
        if name == "timestamp":
            return timestamp
        snapshot = self.signed(f"{timestamp['meta']['snapshot.json']['version']}.snapshot")
        if name == "snapshot":
            return snapshot
        return self.signed(f"{snapshot['meta'][f'{name}.json']['version']}.{name}")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = LiveServer(f"127.0.0.1:{free_port()}")
    yield server.url
    server.stop()


@pytest.fixture
def real(address: str) -> Side:
    model = make_model(NAME, labels=LABELS)
    versions = []

    def shown(step: Callable[[], object]) -> object:
        done = step()
        publish(model)
        holder.refresh()
        return done

    def release_new(content: bytes) -> str:
        files = {"tflite:float32": content}
        versions.append(make_version(model, content=files, selftest=SELFTEST))
        label = release(versions[-1]).label
        holder.refresh()
        return label

    def recall() -> str:
        shown(lambda: rollouts.recall_version(version=versions[-1]))
        return versions[-1].variants.get().sha256

    release_new(b"first")
    return Side(
        address,
        trust.first_root(),
        release_new,
        roll_back=lambda: shown(lambda: rollouts.roll_back(model=model)),
        kill=lambda: shown(lambda: rollouts.kill(model=model)),
        recall=recall,
    )


@pytest.fixture
def fake() -> Iterator[Side]:
    with FakeServer() as server:
        contents: list[bytes] = []

        def release_new(content: bytes) -> str:
            # The real one's test files are of their own version.
            contents.append(b"%s %s %d" % (content, NAME.encode(), len(contents) + 1))
            return release_bytes(contents[-1])

        def release_bytes(content: bytes, **more: object) -> str:
            members = {"preprocessing": PREPROCESSING, "selftest": SELFTEST}
            return server.publish(NAME, content, LABELS, **members, **more)

        def recall() -> str:
            sha256 = hashlib.sha256(contents[-1]).hexdigest()
            server.revoke(NAME, sha256)
            release_bytes(contents[-2])
            return sha256

        release_new(b"first")
        yield Side(
            server.url,
            server.root,
            release_new,
            roll_back=lambda: release_bytes(contents[-2], reason="rollback"),
            kill=lambda: server.roll_back_to_embedded(NAME),
            recall=recall,
        )


def _shape(value: object) -> object:
    """Return what kind of JSON a value is, members by name, lists by their first."""
    if isinstance(value, dict):
        return {name: _shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shape(item) for item in value[:1]]
    return "number" if isinstance(value, int | float) else type(value).__name__


def test_both_answer_update_checks_alike(real: Side, fake: Side) -> None:
    first = [side.poll() for side in (real, fake)]
    mine, theirs = (reply.document for reply in first)
    assert mine.keys() == theirs.keys()
    free = {"created_at", "metrics", "poll", "reason", "notes", "requires"}
    same = {name: value for name, value in mine.items() if name not in free}
    same["artifact"] = {**same["artifact"], "media_type": "any"}
    theirs["artifact"]["media_type"] = "any"
    assert same == {name: value for name, value in theirs.items() if name not in free}
    assert _shape(mine["poll"]) == _shape(theirs["poll"])
    for side, reply in zip((real, fake), first, strict=True):
        assert reply.headers["ETag"].startswith('"')
        again = side.poll(If_None_Match=reply.headers["ETag"])
        assert (again.status, again.body, again.headers["ETag"]) == (
            304,
            b"",
            reply.headers["ETag"],
        )
        current = side.ask(f"/models/{NAME}/update?device=d&runtime=tflite&current=v1")
        assert (current.status, current.document["kind"]) == (200, "none")
        unknown = side.ask("/models/nothing/update?device=d&runtime=tflite")
        assert (unknown.status, unknown.document["code"]) == (404, "unknown_model")
        assert unknown.headers["Content-Type"].startswith("application/problem+json")


def test_both_serve_files_alike(real: Side, fake: Side) -> None:
    answers = []
    for side in (real, fake):
        artifact = side.manifest().required_artifact()
        path = artifact.path.removeprefix("/api/v1")
        etag = f'"{artifact.sha256}"'
        asked = [
            side.ask(path),
            side.ask(path, Range="bytes=3-"),
            side.ask(path, Range="bytes=3-", If_Range=etag),
            side.ask(path, Range="bytes=3-", If_Range='"other"'),
            side.ask(path, Range=f"bytes={artifact.size_bytes}-"),
            side.ask(f"/artifacts/{'0' * 64}"),
        ]
        names = ("ETag", "Accept-Ranges", "Content-Range", "Content-Length")
        answers.append(
            [(r.status, r.body, [r.headers.get(name) for name in names]) for r in asked[:4]]
        )
        assert asked[4].headers["Content-Range"] == f"bytes */{artifact.size_bytes}"
        assert [reply.status for reply in asked[4:]] == [416, 404]
    assert answers[0] == answers[1]


def test_both_take_events_alike(real: Side, fake: Side) -> None:
    event = _event()
    mine, theirs = (side.ask("/events", {"events": [event, event]}) for side in (real, fake))
    assert (mine.status, mine.document) == (theirs.status, theirs.document)


def test_both_keep_a_model_to_the_holders_of_its_key(address: str) -> None:
    model = make_model(NAME, labels=LABELS, is_open=False)
    version = make_version(model, content={"tflite:float32": b"first"})
    release(version)
    _, key = create_application_key(name="app", models=[model])
    holder.refresh()
    sha256 = version.variants.get().sha256
    paths = [f"/models/{NAME}/update?device=d&runtime=tflite", f"/artifacts/{sha256}"]
    with FakeServer(app_key=key) as server:
        server.publish(NAME, b"first %s 1" % NAME.encode(), LABELS)
        for side in (_side(address), _side(server.url)):
            for path in paths:
                locked, opened = side.ask(path), side.ask(path, X_App_Key=key)
                assert (locked.status, locked.document["code"]) == (401, "invalid_app_key")
                assert opened.status == 200
            assert side.ask("/metadata/timestamp.json").status == 200
            refused = side.ask("/events", {"events": [_event()]}).document
            assert refused["rejected"] == [{"index": 0, "code": "not_allowed"}]


def test_both_refuse_missing_and_recalled_files_alike(real: Side, fake: Side) -> None:
    for side in (real, fake):
        side.release(b"second")
        recalled = side.recall()
        answers = [side.ask(f"/artifacts/{sha256}") for sha256 in (recalled, "0" * 64)]
        assert [(reply.status, reply.document["code"]) for reply in answers] == [
            (410, "artifact_revoked"),
            (404, "unknown_artifact"),
        ]


def _event() -> dict[str, object]:
    return {
        "event_id": str(uuid.uuid4()),
        "device": "d",
        "type": "activated",
        "model": NAME,
        "label": "v1",
        "version": 1,
        "occurred_at": "2026-01-02T03:04:05Z",
    }


def test_both_serve_metadata_alike(real: Side, fake: Side) -> None:
    for name in ("timestamp", "1.root", "1.snapshot", "1.targets", f"1.model-{NAME}"):
        mine, theirs = (side.ask(f"/metadata/{name}.json") for side in (real, fake))
        assert mine.status == theirs.status == 200, name
        assert mine.headers["Content-Type"] == theirs.headers["Content-Type"]
        for side, reply in ((real, mine), (fake, theirs)):
            again = side.ask(f"/metadata/{name}.json", If_None_Match=reply.headers["ETag"])
            assert (again.status, again.body) == (304, b"")
    for name in ("2.root", "99.snapshot", "root", "snapshot", "1.timestamp", "1.model-none"):
        mine, theirs = (side.ask(f"/metadata/{name}.json") for side in (real, fake))
        assert mine.status == theirs.status == 404, name
        assert mine.document["code"] == theirs.document["code"]


def test_both_sign_alike(real: Side, fake: Side) -> None:
    mine, theirs = (side.signed("1.root") for side in (real, fake))
    for role, facts in mine["roles"].items():
        assert theirs["roles"][role]["threshold"] == facts["threshold"]
        assert len(theirs["roles"][role]["keyids"]) == len(facts["keyids"])
    assert mine["consistent_snapshot"] is theirs["consistent_snapshot"] is True
    assert _delegated(real) == _delegated(fake)
    for role in ("timestamp", "snapshot", "targets", f"model-{NAME}"):
        mine, theirs = (side.role(role) for side in (real, fake))
        assert mine["spec_version"] == theirs["spec_version"]
        assert mine["expires"][:10] == theirs["expires"][:10], f"{role} lives as long"
    mine, theirs = (side.role(f"model-{NAME}")["targets"] for side in (real, fake))
    assert mine == theirs


def _side(url: str) -> Side:
    """Return a server that only answers."""
    return Side(url, b"", lambda _: None, lambda: None, lambda: None, lambda: "")


def _delegated(side: Side) -> list[object]:
    roles = side.role("targets")["delegations"]["roles"]
    return [(role["name"], role["paths"], role["threshold"], len(role["keyids"])) for role in roles]


def test_a_device_finds_the_same_on_both(real: Side, fake: Side, tmp_path: Path) -> None:
    stories = [_live(side, tmp_path / name) for name, side in (("real", real), ("fake", fake))]
    assert stories[0] == stories[1]


def test_both_send_devices_back_to_the_model_in_their_app(
    real: Side, fake: Side, tmp_path: Path
) -> None:
    for name, side in (("real", real), ("fake", fake)):
        device = _device(side, tmp_path / name)
        device.refresh(NAME)
        side.kill()
        assert device.refresh(NAME).embedded_channels == {"production"}
        manifest = side.manifest()
        assert (manifest.kind.value, manifest.artifact) == ("rollback_to_embedded", None)


def _live(side: Side, folder: Path) -> list[object]:
    """Follow a server through releases and recalls; return what the device was allowed."""
    device = _device(side, folder)
    floor, story = 0, []
    for step in (lambda: None, lambda: side.release(b"second"), side.roll_back):
        step()
        policy = device.refresh(NAME)
        manifest = side.manifest()
        allowed = device.authorise(manifest, floor=floor)
        floor = allowed.counter
        # The real one lists the release before until every web process serves the new one.
        assert policy.min_counter <= floor
        # When and why it was released differs; what may be installed, and how it is fed, does not.
        granted = (allowed.target, allowed.counter, allowed.mandatory)
        story += [manifest.label, granted, dict(allowed.manifest.preprocessing)]
        story += [policy.revoked, policy.embedded_channels]
    side.release(b"third")
    device.refresh(NAME)
    old = side.manifest()
    recalled = side.recall()
    policy = device.refresh(NAME)
    assert recalled in policy.revoked
    with pytest.raises(nightferry.RevokedError):
        device.authorise(old, floor=0)
    story.append(policy.revoked)
    return story


def _device(side: Side, folder: Path) -> nightferry.TufVerifier:
    transport = Transport(
        side.url,
        app_key=None,
        user_agent="test",
        request_timeout_s=10,
        stall_timeout_s=10,
        offline=False,
    )
    return nightferry.TufVerifier(
        root=side.root,
        folder=folder / "metadata",
        transport=lambda: transport,
        channel="production",
        runtime="tflite",
        accept=None,
        trust_on_first_use=False,
        timing=nightferry.Timing(),
    )

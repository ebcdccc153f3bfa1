"""Downloads that go wrong: each ends with the right bytes or a clear error, never with wrong bytes.

After every case the model that was installed before is in use still.
"""

from __future__ import annotations

import json
from pathlib import Path

import nightferry
import pytest
from nightferry import DownloadType, ModelClient
from nightferry.testing import FakeServer, Fault

from .conftest import ClientFactory
from .support import LABELS, NAME, Clock, leftovers, quick_timing, read

HTML = Fault(
    "artifact", status=200, headers=(("Content-Type", "text/html"),), body=b"<html>Log in</html>"
)


@pytest.fixture
def installed(server: FakeServer, client: ModelClient, content: bytes) -> bytes:
    """Install v1 and publish v2; return what v2 holds."""
    server.publish(NAME, b"the model before", LABELS)
    client.sync(NAME)
    server.publish(NAME, content, LABELS)
    return content


@pytest.mark.parametrize("cut_at", [0, 1, 65_535, 65_536, 100_000, 299_999])
def test_a_cut_is_continued_where_it_was(
    server: FakeServer, client: ModelClient, installed: bytes, cut_at: int
) -> None:
    server.inject(Fault("artifact", cut_at=cut_at))
    before = server.sent_bytes("artifact")

    assert client.sync(NAME).label == "v2"

    assert read(client) == installed
    assert server.sent_bytes("artifact") - before == len(installed)
    if cut_at:
        assert server.requests[-2].headers["Range"] == f"bytes={cut_at}-"


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Fault("artifact", ignore_range=True)], id="range ignored"),
        pytest.param([Fault("artifact", content_range="bytes 5-299999/300000")], id="other start"),
        pytest.param([Fault("artifact", content_range="bytes 100000-299998/299999")], id="total"),
        pytest.param([Fault("artifact", content_range="nonsense")], id="no Content-Range"),
        pytest.param([Fault("artifact", status=416)], id="416"),
        pytest.param([Fault("artifact", etag='"other"')], id="changed ETag: 200"),
        pytest.param([Fault("artifact", status=500)], id="500"),
        pytest.param([Fault("artifact", status=503, headers=(("Retry-After", "0"),))], id="503"),
        pytest.param([Fault("artifact", cut_at=0), Fault("artifact", cut_at=7)], id="more cuts"),
        pytest.param([Fault("artifact", flip=0)], id="wrong bytes in the second piece"),
    ],
)
def test_after_a_cut_anything_may_come(
    server: FakeServer, client: ModelClient, installed: bytes, cache_dir: Path, faults: list[Fault]
) -> None:
    server.inject(Fault("artifact", cut_at=100_000), *faults)
    assert client.sync(NAME).label == "v2"
    assert read(client) == installed
    assert leftovers(cache_dir) == []


def test_a_changed_validator_in_a_partial_answer_starts_again(
    server: FakeServer, client: ModelClient, installed: bytes
) -> None:
    server.inject(
        Fault("artifact", cut_at=100_000),
        Fault(
            "artifact",
            status=206,
            headers=(("Content-Range", "bytes 100000-299999/300000"), ("ETag", '"new"')),
            body=bytes(200_000),
        ),
    )
    assert client.sync(NAME).label == "v2"
    assert read(client) == installed


@pytest.mark.parametrize(
    ("fault", "error", "word"),
    [
        (Fault("artifact", flip=1000), nightferry.IntegrityError, "SHA-256"),
        (Fault("artifact", endless=True), nightferry.IntegrityError, "more than the 300000"),
        (HTML, nightferry.ProtocolError, "login page"),
        (Fault("artifact", status=200, body=b"short"), nightferry.ProtocolError, "5 bytes"),
        (Fault("artifact", times=99, status=500), nightferry.ServerError, "500"),
        (
            Fault("artifact", times=99, status=429, headers=(("Retry-After", "3600"),)),
            nightferry.ThrottledError,
            "429",
        ),
        (Fault("artifact", times=99, cut_at=0), nightferry.DownloadInterruptedError, "broke off"),
        (Fault("artifact", times=99, status=418), nightferry.RequestRefusedError, "418"),
        (Fault("artifact", times=99, status=206), nightferry.ProtocolError, "status 206"),
        (
            Fault("artifact", status=200, headers=(("Content-Encoding", "gzip"),), body=b"x"),
            nightferry.ProtocolError,
            "encoded",
        ),
    ],
)
def test_what_cannot_be_healed_is_told_and_leaves_the_model_before(
    server: FakeServer, client: ModelClient, installed: bytes, fault: Fault, error, word: str
) -> None:
    server.inject(fault)
    with pytest.raises(error, match=word) as caught:
        client.fetch_update(NAME)
    assert str(caught.value).endswith(".")
    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1"
    assert read(client) == b"the model before"
    assert client.verify_cache().checked == 1
    assert server.sent_bytes("artifact") < 20 * len(installed)


def test_retry_after_is_handed_on(
    server: FakeServer, client: ModelClient, installed: bytes
) -> None:
    server.inject(Fault("update", status=429, headers=(("Retry-After", "120"),)))
    with pytest.raises(nightferry.ThrottledError) as caught:
        client.check_for_update(NAME)
    assert caught.value.retry_after_s == 120
    asked = server.count("update")
    assert client.get_model(NAME).label == "v1"
    assert server.count("update") == asked, "no look in the background before its time"


def test_wrong_bytes_are_not_fetched_again_by_themselves_for_a_day(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    clock = Clock(server)
    client = make_client(timing=quick_timing(now=clock))
    server.publish(NAME, b"the model before", LABELS)
    client.sync(NAME)
    server.publish(NAME, content, LABELS)
    server.inject(Fault("artifact", flip=5))
    with pytest.raises(nightferry.IntegrityError):
        client.sync(NAME)
    fetched = server.count("artifact")
    assert client.sync(NAME).label == "v1"
    assert server.count("artifact") == fetched
    clock.now += 25 * 3600
    assert client.sync(NAME).label == "v2"
    failed = next(event for event in server.events if event["type"] == "failed")
    assert (failed["label"], failed["data"]["code"]) == ("v2", "integrity")


def test_bytes_of_a_failed_try_are_used_by_the_next(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    patient = make_client(timing=quick_timing(retry_attempts=1))
    server.inject(Fault("artifact", cut_at=200_000), Fault("artifact", status=503))
    with pytest.raises(nightferry.ServerError):
        patient.get_model(NAME)

    assert make_client().get_model(NAME).label == "v1"
    assert server.sent_bytes("artifact") == len(content)
    resumed = next(r for r in server.requests[::-1] if r.route == "artifact")
    assert resumed.headers["Range"] == "bytes=200000-"
    assert resumed.headers["If-Range"].strip('"') in server.blobs


def test_spoilt_bytes_of_a_failed_try_cost_one_fresh_download(
    server: FakeServer, make_client: ClientFactory, cache_dir: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    server.inject(Fault("artifact", cut_at=200_000), Fault("artifact", status=503))
    with pytest.raises(nightferry.ServerError):
        make_client(timing=quick_timing(retry_attempts=1)).get_model(NAME)
    (partial,) = cache_dir.glob("partial/*.part")
    partial.write_bytes(bytes(200_000))

    assert make_client().get_model(NAME).path.read_bytes() == content
    assert leftovers(cache_dir) == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_file_that_is_gone_asks_the_update_check_again(
    server: FakeServer, client: ModelClient, installed: bytes, status: int
) -> None:
    server.inject(Fault("artifact", status=status))
    asked = server.count("update")
    assert client.sync(NAME).label == "v2"
    assert server.count("update") == asked + 2


def test_a_file_that_stays_gone_is_told(
    server: FakeServer, client: ModelClient, installed: bytes
) -> None:
    server.inject(Fault("artifact", times=2, status=410))
    with pytest.raises(nightferry.ArtifactGoneError, match="410") as caught:
        client.sync(NAME)
    assert caught.value.retryable


def test_redirected_downloads_carry_no_credentials(
    make_client: ClientFactory, content: bytes
) -> None:
    with FakeServer() as storage, FakeServer(app_key="secret", artifacts_at=storage) as front:
        front.publish(NAME, content, LABELS)
        storage.blobs.update(front.blobs)
        storage.inject(Fault("artifact", cut_at=50_000))
        client = make_client(server=front, app_key="secret")

        assert client.get_model(NAME).path.read_bytes() == content

        assert all(request.headers["X-App-Key"] == "secret" for request in front.requests)
        assert [request.headers["X-App-Key"] for request in storage.requests] == [None, None]
        assert storage.requests[1].headers["Range"] == "bytes=50000-"
        assert storage.requests[1].headers["If-Range"] is None
        assert front.count("artifact") == 2, "the address is asked for afresh each time"


def test_a_store_with_validators_of_its_own_is_resumed_by_them(
    make_client: ClientFactory, content: bytes
) -> None:
    with FakeServer() as storage, FakeServer(artifacts_at=storage) as front:
        front.publish(NAME, content, LABELS)
        storage.blobs.update(front.blobs)
        storage.inject(
            Fault("artifact", cut_at=50_000, etag='"md5-1"'),
            Fault("artifact", cut_at=50_000, etag='"md5-1"'),
            Fault("artifact", etag='"md5-2"'),
        )
        assert make_client(server=front).get_model(NAME).path.read_bytes() == content
        ranges = [request.headers["Range"] for request in storage.requests]
        assert ranges == [None, "bytes=50000-", "bytes=100000-", None], (
            "another file: from its start"
        )
        assert all(request.headers["If-Range"] is None for request in front.requests)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "", "http://[", "gopher://h/"])
def test_redirects_lead_to_http_only(
    server: FakeServer, client: ModelClient, installed: bytes, target: str
) -> None:
    server.inject(Fault("artifact", status=302, headers=(("Location", target),)))
    with pytest.raises(nightferry.ProtocolError, match="unsafe"):
        client.fetch_update(NAME)
    assert read(client) == b"the model before"


def test_endless_redirects_end(server: FakeServer, client: ModelClient, installed: bytes) -> None:
    loop = Fault("artifact", times=99, status=302, headers=(("Location", "/api/v1/artifacts/x"),))
    server.inject(loop)
    with pytest.raises(nightferry.ProtocolError, match="redirects"):
        client.fetch_update(NAME)


def test_a_server_that_stops_talking_is_left_and_resumed(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    client = make_client(timing=quick_timing(stall_timeout_s=0.2))
    server.inject(Fault("artifact", pause_s=1.5))
    assert client.get_model(NAME).path.read_bytes() == content
    assert server.count("artifact") == 2


def test_a_server_that_does_not_answer_is_given_up_in_time(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    make_client().sync(NAME)
    hasty = make_client(timing=quick_timing(request_timeout_s=0.2))
    server.inject(Fault("update", times=2, delay_s=1.5))
    with pytest.raises(nightferry.ServerUnreachableError, match="timed out"):
        hasty.check_for_update(NAME)
    assert hasty.get_model(NAME, DownloadType.LATEST_MODEL).label == "v1"


def test_a_server_that_drips_is_given_up_in_time(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    server.publish(NAME, content, LABELS, notes="x" * 200_000)
    hasty = make_client(timing=quick_timing(request_timeout_s=0.3))
    server.inject(Fault("update", pause_s=0.1))
    with pytest.raises(nightferry.ServerUnreachableError, match="too slowly"):
        hasty.check_for_update(NAME)


# Update checks that go wrong


def _json_fault(body: bytes, media_type: str = "application/json", **more: object) -> Fault:
    return Fault("update", status=200, headers=(("Content-Type", media_type),), body=body, **more)


@pytest.mark.parametrize(
    ("fault", "error", "word"),
    [
        (_json_fault(b"<html>", "text/html"), nightferry.ProtocolError, "login page"),
        (_json_fault(b"{torn"), nightferry.ProtocolError, "not a JSON object"),
        (_json_fault(b"[]"), nightferry.ProtocolError, "not a JSON object"),
        (_json_fault(b'{"a": NaN}'), nightferry.ProtocolError, "not a JSON object"),
        (_json_fault(b"[" * 100_000), nightferry.ProtocolError, "not a JSON object"),
        (_json_fault(b"{}"), nightferry.InvalidManifestError, "spec_version"),
        (_json_fault(b'{"x": "' + b"x" * (5 << 20)), nightferry.ProtocolError, "short question"),
        (_json_fault(b"", endless=True), nightferry.ProtocolError, "short question"),
        (Fault("update", cut_at=10), nightferry.ServerUnreachableError, "broke off"),
        (Fault("update", status=500, body=b"oops"), nightferry.ServerError, "500"),
        (
            Fault("update", status=302, headers=(("Location", "http://portal.example/"),)),
            nightferry.ProtocolError,
            "login page",
        ),
        (
            Fault("update", status=400, body=b'{"code": "invalid_input", "detail": "No runtime."}'),
            nightferry.RequestRefusedError,
            r"invalid_input\): No runtime\.$",
        ),
    ],
)
def test_a_bad_answer_to_the_update_check(
    server: FakeServer, client: ModelClient, installed: bytes, fault: Fault, error, word: str
) -> None:
    server.inject(fault)
    with pytest.raises(error, match=word):
        client.check_for_update(NAME)
    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1"
    assert client.sync(NAME).label == "v2", "the next answer counts"


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ({"artifact": None}, "artifact"),
        ({"labels": ["a", 7]}, "labels"),
        ({"spec_version": 2}, "Update the nightferry package"),
        ({"kind": "explode"}, "kind"),
        ({"model": "another"}, "another"),
        ({"version": "3"}, "version"),
        ({"version": True}, "version"),
        ({"revoked": ["zz"]}, "revoked"),
        ({"enrolment": {"rollout": 1}}, r"enrolment\.arm"),
    ],
)
def test_a_manifest_without_what_is_needed_keeps_the_model(
    server: FakeServer, client: ModelClient, installed: bytes, members: dict[str, object], word: str
) -> None:
    server.amend(NAME, **members)
    with pytest.raises(nightferry.InvalidManifestError, match=word):
        client.sync(NAME)
    assert client.get_model(NAME, DownloadType.LATEST_MODEL).label == "v1"


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ({"sha256": "ABC"}, r"artifact\.sha256"),
        ({"size_bytes": 0}, r"artifact\.size_bytes"),
        ({"size_bytes": 1 << 50}, r"artifact\.size_bytes"),
        ({"path": "http://elsewhere/x"}, r"artifact\.path"),
        ({"path": "//elsewhere/x"}, r"artifact\.path"),
        ({"path": "/x\r\nHost: y"}, r"artifact\.path"),
    ],
)
def test_an_artifact_that_cannot_be(
    server: FakeServer, client: ModelClient, installed: bytes, members: dict[str, object], word: str
) -> None:
    _, manifest, _ = server.answer_update(NAME, None)
    server.amend(NAME, artifact={**manifest["artifact"], **members})
    with pytest.raises(nightferry.InvalidManifestError, match=word):
        client.fetch_update(NAME)
    assert read(client) == b"the model before"


def test_a_file_for_another_runtime_is_refused(
    server: FakeServer, client: ModelClient, installed: bytes
) -> None:
    _, manifest, _ = server.answer_update(NAME, None)
    server.amend(NAME, artifact={**manifest["artifact"], "runtime": "coreml"})
    with pytest.raises(nightferry.TrustError, match="coreml"):
        client.fetch_update(NAME)


def test_an_unchanged_decision_after_a_lost_file_is_asked_in_full(
    server: FakeServer, make_client: ClientFactory, cache_dir: Path, content: bytes
) -> None:
    """A 304 must never leave a device with a "none" and no model."""
    server.publish(NAME, content, LABELS)
    make_client().sync(NAME)
    (state,) = cache_dir.rglob("state.json")
    document = json.loads(state.read_text())
    document["etag"] = ""
    state.write_text(json.dumps(document))
    assert make_client().sync(NAME).label == "v1", "the answer was: none, v1 is right"
    (blob,) = cache_dir.glob("blobs/sha256/*/*")
    blob.unlink()

    assert make_client().get_model(NAME).path.read_bytes() == content

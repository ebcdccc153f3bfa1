"""What an app sees: which model it is given, when, and at what cost."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import nightferry
import pytest
from nightferry import DownloadConditions, DownloadType, ModelClient, ModelState
from nightferry.testing import FakeServer, Fault

from .conftest import ClientFactory
from .support import LABELS, NAME, Clock, quick_timing, read, wait_until


def test_first_model_is_downloaded_verified_and_described(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS, metrics={"accuracy": 0.9}, unheard_of={"deep": [1]})
    heard: list[tuple[int, int]] = []

    model = client.get_model(NAME, progress=lambda done, total: heard.append((done, total)))

    assert model.path.read_bytes() == content
    assert (model.name, model.label, model.version) == (NAME, "v1", 1)
    assert (model.labels, model.runtime, model.precision) == (tuple(LABELS), "tflite", "float32")
    assert model.preprocessing["width"] == 224
    assert model.size_bytes == len(content)
    assert not model.is_embedded
    assert model.state is ModelState.ACTIVE
    assert heard[-1] == (len(content), len(content))
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)


def test_a_local_model_is_returned_without_asking(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    client.get_model(NAME)
    server.publish(NAME, content[:1000], LABELS)
    asked = server.count("update")

    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1"
    assert server.count("update") == asked


def test_latest_model_asks_and_brings_in_the_new_one(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    client.get_model(NAME)
    server.publish(NAME, content[:1000], LABELS)

    assert client.get_model(NAME, DownloadType.LATEST_MODEL).label == "v2"
    assert read(client) == content[:1000]


def test_background_update_serves_the_old_and_then_the_new(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    client.get_model(NAME)
    server.publish(NAME, content[:1000], LABELS)

    assert client.get_model(NAME).label == "v1"
    wait_until(lambda: client.status(NAME).phase == "pending", "the update in the background")
    assert client.status(NAME).current.label == "v1"
    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v2"


def test_get_model_does_not_wait_for_a_server_that_hangs(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    client.get_model(NAME)
    server.inject(Fault("update", delay_s=2.0))

    assert client.get_model(NAME).label == "v1"
    assert server.count("update") == 1, "the model came before the server had answered"


def test_an_update_in_steps(server: FakeServer, client: ModelClient, content: bytes) -> None:
    server.publish(NAME, content, LABELS, notes="more jars", mandatory=True)

    update = client.check_for_update(NAME)
    assert update is not None
    assert (update.label, update.download_bytes, update.held_back) == ("v1", len(content), None)
    assert (update.notes, update.mandatory) == ("more jars", True)
    staged = client.fetch_update(NAME)
    assert staged is not None
    assert staged.state is ModelState.STAGED
    assert client.list_models() == []
    assert client.check_for_update(NAME).download_bytes == 0
    assert client.activate(NAME).label == "v1"
    assert client.check_for_update(NAME) is None
    assert client.fetch_update(NAME) is None
    client.notify_ready(NAME)
    assert client.list_models()[0].state is ModelState.CONFIRMED
    assert server.count("artifact") == 1


def test_no_change_costs_one_request_without_a_body(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    make_client().sync(NAME)
    make_client().sync(NAME)
    before = len(server.requests)

    make_client().sync(NAME)

    (request,) = server.requests[before:]
    assert (request.route, request.status, request.sent_bytes) == ("update", 304, 0)
    assert request.query["current"] == "v1"


def test_what_an_update_check_says(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    enrolment = {"rollout": "7", "arm": "treatment"}
    server.publish(NAME, content, LABELS, enrolment=enrolment)
    client = make_client(
        app_version="3.1", channel="production", accept=["int8", "float32"], device_class="low"
    )
    model = client.sync(NAME)
    client.sync(NAME)

    assert (model.enrolment.rollout, model.enrolment.arm) == ("7", "treatment")
    first, second = [r.query for r in server.requests if r.route == "update"]
    assert first["device"] == second["device"]
    assert (first["runtime"], first["channel"], first["accept"]) == (
        "tflite",
        "production",
        "int8,float32",
    )
    assert (first["app_version"], first["device_class"]) == ("3.1", "low")
    assert first["sdk_version"] == nightferry.__version__
    assert {"platform", "os_version"} <= first.keys()
    assert "current" not in first
    assert second["enrolled"] == "7:treatment"


def test_a_rollback_to_a_cached_version_downloads_nothing(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    old, new = content, content[:1000]
    server.publish(NAME, old, LABELS)
    client.sync(NAME)
    server.publish(NAME, new, LABELS)
    client.sync(NAME)
    sent = server.sent_bytes("artifact")
    server.publish(NAME, old, LABELS, reason="rollback")

    assert client.check_for_update(NAME).download_bytes == 0
    assert client.sync(NAME).label == "v3"
    assert read(client) == old
    assert server.sent_bytes("artifact") == sent


def test_the_cache_keeps_two_versions(
    server: FakeServer, client: ModelClient, cache_dir: Path, content: bytes
) -> None:
    for size in (1000, 2000, 3000):
        server.publish(NAME, content[:size], LABELS)
        client.sync(NAME)

    sizes = sorted(path.stat().st_size for path in cache_dir.glob("blobs/sha256/*/*"))
    assert sizes == [2000, 3000]


def test_models_are_listed_and_deleted(
    server: FakeServer, client: ModelClient, cache_dir: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    server.publish("signs", content, LABELS)
    server.publish("digits", content[:10], LABELS)
    for name in (NAME, "signs", "digits"):
        client.sync(name)

    assert [model.name for model in client.list_models()] == ["digits", NAME, "signs"]
    client.delete_model(NAME)
    assert client.get_model("signs", DownloadType.LOCAL_MODEL).path.read_bytes() == content
    client.delete_model("signs")
    client.delete_model("digits")
    assert client.list_models() == []
    assert list(cache_dir.glob("blobs/sha256/*/*")) == []


def test_many_threads_one_download(server: FakeServer, client: ModelClient, content: bytes) -> None:
    server.publish(NAME, content, LABELS)
    server.inject(Fault("artifact", pause_s=0.01))
    models, heard = [], []

    def get() -> None:
        models.append(client.get_model(NAME, progress=lambda done, _total: heard.append(done)))

    threads = [threading.Thread(target=get) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {model.label for model in models} == {"v1"}
    assert len(models) == 16
    assert server.count("artifact") == 1
    assert server.sent_bytes("artifact") == len(content)
    assert max(heard) == len(content)


def test_a_broken_progress_callback_does_not_cost_the_model(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    assert client.get_model(NAME, progress=lambda _done, _total: 1 / 0).label == "v1"


def test_nothing_for_this_device(server: FakeServer, client: ModelClient, content: bytes) -> None:
    server.offer_nothing(NAME)
    assert client.sync(NAME) is None
    with pytest.raises(nightferry.NoModelError, match="none installed, none embedded"):
        client.get_model(NAME)
    server.publish(NAME, content, LABELS)
    assert client.sync(NAME).label == "v1"
    server.offer_nothing(NAME)
    assert client.sync(NAME).label == "v1", "an installed model stays"


@pytest.mark.parametrize(
    ("prepare", "error", "word"),
    [
        (lambda _server: None, nightferry.UnknownModelError, "unknown_model"),
        (lambda server: server.retire(NAME), nightferry.ModelRetiredError, "retired"),
    ],
)
def test_refusals_are_told_and_an_installed_model_stays(
    server: FakeServer, client: ModelClient, content: bytes, prepare, error, word
) -> None:
    prepare(server)
    with pytest.raises(error, match=word) as caught:
        client.get_model(NAME)
    assert not caught.value.retryable
    server.publish("other", content, LABELS)
    client.sync("other")
    server.retire("other")
    with pytest.raises(nightferry.ModelRetiredError):
        client.sync("other")
    assert client.get_model("other", DownloadType.LATEST_MODEL).label == "v1"


def test_the_application_key_opens_and_its_lack_is_told(
    cache_dir: Path, content: bytes, make_client: ClientFactory
) -> None:
    with FakeServer(app_key="secret") as locked:
        locked.publish(NAME, content, LABELS)
        with pytest.raises(nightferry.UnauthorizedError, match="application key"):
            make_client(server=locked).get_model(NAME)
        assert make_client(server=locked, app_key="secret").get_model(NAME).label == "v1"


def test_conditions_hold_a_download_back_and_not_the_model(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    probe = Probe(metered=True, charging=False)
    client = make_client(device_probe=probe)
    server.publish(NAME, content, LABELS)

    for conditions, word in (
        (DownloadConditions(max_bytes=1000), "allows 1000"),
        (DownloadConditions(allow_metered=False), "unmetered"),
        (DownloadConditions(require_charging=True), "charging"),
    ):
        with pytest.raises(nightferry.ConditionsNotMetError, match=word) as caught:
            client.get_model(NAME, conditions=conditions)
        assert caught.value.retryable
    assert client.status(NAME).phase == "available"
    assert server.count("artifact") == 0
    probe.metered, probe.charging = False, True
    strict = DownloadConditions(allow_metered=False, require_charging=True)
    assert client.get_model(NAME, conditions=strict).label == "v1"
    probe.metered = None
    server.publish(NAME, content[:1000], LABELS)
    with pytest.raises(nightferry.ConditionsNotMetError, match="does not tell"):
        client.fetch_update(NAME, strict)
    kept = client.get_model(NAME, DownloadType.LATEST_MODEL, conditions=strict)
    assert kept.label == "v1", "the installed model is served meanwhile"


class Probe:
    def __init__(self, *, metered: bool | None, charging: bool | None) -> None:
        self.metered = metered
        self.charging = charging

    def is_metered(self) -> bool | None:
        return self.metered

    def is_charging(self) -> bool | None:
        return self.charging


def test_a_full_disk_is_told_before_the_download(
    server: FakeServer, client: ModelClient, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(NAME, content, LABELS)
    monkeypatch.setattr("nightferry.cache.free_bytes", lambda _folder: 2 * len(content) - 1)
    with pytest.raises(nightferry.DiskFullError, match="are free"):
        client.get_model(NAME)
    assert server.count("artifact") == 0


# Ways back


def test_a_reported_failure_falls_back_and_is_not_repeated(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    clock = Clock(server)
    client = make_client(timing=quick_timing(now=clock))
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    server.publish(NAME, content[:1000], LABELS)
    client.sync(NAME)

    assert client.report_failure(NAME, "all predictions alike").label == "v1"
    assert read(client) == content
    assert client.sync(NAME).label == "v1", "not again by itself"
    assert "less than a day ago" in client.check_for_update(NAME).held_back
    clock.now += 25 * 3600
    assert client.sync(NAME).label == "v2", "one more try after a day"
    assert client.report_failure(NAME, "still").label == "v1"
    clock.now += 1000 * 3600
    assert client.sync(NAME).label == "v1", "and no third"
    server.publish(NAME, content[:1000], LABELS)
    assert client.sync(NAME).label == "v3", "a new label names it afresh"
    client.flush_events()
    kinds = [event["type"] for event in server.events]
    assert kinds.count("failed") == kinds.count("rolled_back") == 2
    failed = next(event for event in server.events if event["type"] == "failed")
    assert failed["label"] == "v2"
    assert failed["data"] == {"code": "reported", "reason": "all predictions alike"}


def test_without_anything_to_fall_back_to_there_is_no_model(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    assert client.report_failure(NAME, "crash") is None
    with pytest.raises(nightferry.NoModelError, match="failed here"):
        client.get_model(NAME)


def test_a_revoked_file_is_dropped_and_never_comes_back(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    first = client.sync(NAME)
    server.publish(NAME, content[:1000], LABELS)
    second = client.sync(NAME)
    server.revoke(NAME, second.sha256)

    assert client.sync(NAME).label == "v1"
    assert not second.path.exists()
    assert first.path.exists()
    with pytest.raises(nightferry.TrustError, match="recalled"):
        client.fetch_update(NAME)
    server.revoke(NAME, first.sha256)
    assert client.sync(NAME) is None
    assert not first.path.exists()
    with pytest.raises(nightferry.NoModelError, match="revoked"):
        client.get_model(NAME)


# Models inside the app


@pytest.fixture
def embedded(tmp_path: Path, content: bytes) -> Path:
    """A model in the app, exported by a client of another channel's server as version v2."""
    path = tmp_path / "app" / "recyclables.tflite"
    with FakeServer() as origin:
        origin.publish(NAME, content, LABELS)
        origin.publish(NAME, content[:5000], LABELS)
        exporter = ModelClient(
            origin.url, cache_dir=tmp_path / "exporter", trusted_root=origin.root
        )
        exporter.sync(NAME)
        exporter.export_model(NAME, path)
    return path


def test_an_embedded_model_starts_offline_and_is_replaced(
    server: FakeServer, make_client: ClientFactory, embedded: Path, content: bytes
) -> None:
    client = make_client(embedded={NAME: embedded})
    model = client.get_model(NAME, DownloadType.LOCAL_MODEL)
    assert (model.label, model.is_embedded, model.labels) == ("v2", True, tuple(LABELS))
    assert model.state is ModelState.EMBEDDED
    assert server.requests == []
    for size in (10, 20, 30):
        server.publish(NAME, content[:size], LABELS)
    assert client.sync(NAME).label == "v3"
    asked = next(request for request in server.requests if request.route == "update")
    assert asked.query["current"] == "v2"
    assert client.report_failure(NAME, "bad").is_embedded


def test_a_newer_embedded_model_wins_over_an_older_installed_one(
    server: FakeServer, make_client: ClientFactory, embedded: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    make_client().sync(NAME)
    updated_app = make_client(embedded={NAME: embedded})
    assert updated_app.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v2"
    server.publish(NAME, content[:2000], LABELS)
    server.publish(NAME, content[:3000], LABELS)
    assert updated_app.sync(NAME).label == "v3"


def test_rollback_to_embedded_and_forth(
    server: FakeServer, make_client: ClientFactory, embedded: Path, content: bytes
) -> None:
    client = make_client(embedded={NAME: embedded})
    for size in (10, 20, 30):
        server.publish(NAME, content[:size], LABELS)
    client.sync(NAME)
    server.roll_back_to_embedded(NAME, reason="killed")

    assert client.check_for_update(NAME).kind == "rollback_to_embedded"
    assert client.fetch_update(NAME) is None
    assert client.activate(NAME).is_embedded
    assert client.check_for_update(NAME) is None
    server.publish(NAME, content[:30], LABELS)
    sent = server.sent_bytes("artifact")
    assert client.sync(NAME).label == "v5"
    assert server.sent_bytes("artifact") == sent, "the file was kept"


def test_rollback_to_embedded_without_one_leaves_no_model(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    server.roll_back_to_embedded(NAME)
    assert client.sync(NAME) is None
    with pytest.raises(nightferry.NoModelError):
        client.get_model(NAME)


def test_a_revoked_embedded_model_is_not_used(
    server: FakeServer, make_client: ClientFactory, embedded: Path, content: bytes
) -> None:
    client = make_client(embedded={NAME: embedded})
    server.publish(NAME, content, LABELS)
    server.revoke(NAME, client.get_model(NAME, DownloadType.LOCAL_MODEL).sha256)
    client.check_for_update(NAME)
    assert client.list_models() == []
    assert client.get_model(NAME, DownloadType.LATEST_MODEL).label == "v1"


def test_a_bare_embedded_file_is_usable_as_a_file(
    make_client: ClientFactory, tmp_path: Path
) -> None:
    path = tmp_path / "bare.tflite"
    path.write_bytes(b"weights")
    model = make_client(embedded={NAME: path}).get_model(NAME, DownloadType.LOCAL_MODEL)
    assert (model.label, model.version, model.labels) == ("embedded", 0, ())
    assert model.path == path


def test_an_embedded_model_that_is_not_what_it_says(
    server: FakeServer, make_client: ClientFactory, embedded: Path, content: bytes
) -> None:
    embedded.write_bytes(b"something else")
    client = make_client(embedded={NAME: embedded})
    with pytest.raises(nightferry.EmbeddedModelError, match="not the file"):
        client.get_model(NAME, DownloadType.LOCAL_MODEL)
    server.publish(NAME, content, LABELS)
    assert client.sync(NAME).label == "v1", "the installed model needs no embedded one"
    gone = make_client(embedded={"other": embedded.with_name("nothing")})
    with pytest.raises(nightferry.EmbeddedModelError, match="cannot be read"):
        gone.get_model("other")


# Offline


def test_the_server_may_be_gone_for_good(
    make_client: ClientFactory, cache_dir: Path, content: bytes
) -> None:
    with FakeServer() as mortal:
        mortal.publish(NAME, content, LABELS)
        make_client(server=mortal).sync(NAME)

    client = make_client(server=mortal)
    for download_type in DownloadType:
        assert client.get_model(NAME, download_type).label == "v1"
    with pytest.raises(nightferry.ServerUnreachableError, match="No usable answer") as caught:
        client.check_for_update(NAME)
    assert caught.value.retryable
    with pytest.raises(nightferry.ServerUnreachableError):
        client.get_model("never-seen")


def test_offline_mode_touches_no_network(
    server: FakeServer,
    make_client: ClientFactory,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.publish(NAME, content, LABELS)
    make_client().sync(NAME)
    seen = len(server.requests)
    monkeypatch.setenv("NIGHTFERRY_OFFLINE", "1")
    client = make_client()
    for download_type in DownloadType:
        assert client.get_model(NAME, download_type).label == "v1"
    with pytest.raises(nightferry.OfflineModeError, match="NIGHTFERRY_OFFLINE"):
        client.check_for_update(NAME)
    assert len(server.requests) == seen


# Arguments


def test_addresses_and_folders_come_from_the_environment(
    server: FakeServer, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(NAME, content, LABELS)
    with pytest.raises(nightferry.ConfigurationError, match="NIGHTFERRY_ENDPOINT"):
        ModelClient()
    monkeypatch.setenv("NIGHTFERRY_ENDPOINT", server.url + "/")
    monkeypatch.setenv("NIGHTFERRY_HOME", str(tmp_path / "home"))
    model = ModelClient(trusted_root=server.root).get_model(NAME)
    assert model.path.is_relative_to(tmp_path / "home")


@pytest.mark.parametrize(
    "url", ["models.example", "ftp://h", "http://", "http://u@h", "http://h:x", "http://h?q"]
)
def test_unusable_addresses_are_told(url: str) -> None:
    with pytest.raises(nightferry.ConfigurationError, match="address"):
        ModelClient(url)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "-x", "a" * 200, ".", "a\n"])
def test_names_cannot_leave_the_cache(client: ModelClient, name: str) -> None:
    with pytest.raises(nightferry.ConfigurationError, match="not a possible model"):
        client.get_model(name)


def test_without_a_root_nothing_is_installed_and_nobody_is_asked(
    server: FakeServer, make_client: ClientFactory, embedded: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    server.publish("installed", content, LABELS)
    make_client().sync("installed")
    asked = len(server.requests)
    rootless = make_client(trusted_root=None, embedded={NAME: embedded})
    for refused in (rootless.check_for_update, rootless.fetch_update, rootless.sync):
        with pytest.raises(nightferry.NoTrustedRootError, match=r"root\.json") as caught:
            refused(NAME)
    assert not caught.value.retryable
    assert len(server.requests) == asked
    for download_type in DownloadType:
        assert rootless.get_model(NAME, download_type).is_embedded
        assert rootless.get_model("installed", download_type).label == "v1"
    assert make_client(trusted_root=None, trust_on_first_use=True).sync(NAME).label == "v1"


def test_a_root_may_be_a_file_and_must_be_one(
    server: FakeServer, make_client: ClientFactory, tmp_path: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    path = tmp_path / "root.json"
    with pytest.raises(nightferry.ConfigurationError, match=r"root\.json"):
        make_client(trusted_root=path).sync(NAME)
    path.write_bytes(server.root)
    assert make_client(trusted_root=str(path)).sync(NAME).label == "v1"


def test_servers_and_channels_do_not_mix_in_one_cache(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    make_client().sync(NAME)
    with FakeServer() as other:
        assert make_client(server=other).list_models() == []
    assert make_client(channel="beta").list_models() == []


def test_state_is_relative_to_a_cache_that_moves(
    server: FakeServer, make_client: ClientFactory, cache_dir: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    make_client().sync(NAME)
    moved = cache_dir.rename(cache_dir.with_name("moved"))
    (state,) = moved.rglob("state.json")
    assert str(cache_dir) not in state.read_text()
    assert json.loads(state.read_text())["active"]["path"].startswith("blobs/sha256/")
    client = make_client(cache_dir=moved)
    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).path.read_bytes() == content

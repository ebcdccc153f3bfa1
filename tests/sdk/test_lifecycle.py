"""From staged to confirmed and back: activation, trial, self-test, policy, clocks, pins."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import nightferry
import numpy as np
import pytest
from nightferry import ActivationMode, DownloadConditions, DownloadType, ModelClient, ModelState
from nightferry.testing import FakeServer, Fault
from nightferry.testing.server import DEFAULT_PREPROCESSING

from tests.support.data import data_folder

from .conftest import ClientFactory
from .support import LABELS, NAME, Clock, quick_timing, read, start_python, wait_until

HOUR_S = 3600.0
DECADE_S = 10 * 365 * 24 * HOUR_S


def events_of(client: ModelClient, server: FakeServer, kind: str) -> list[dict]:
    client.flush_events()
    return [event for event in server.events if event["type"] == kind]


def poll(client: ModelClient, server: FakeServer) -> None:
    """Let the client look in the background once, as polling does."""
    asked = server.count("update")
    client.get_model(NAME)
    wait_until(lambda: server.count("update") > asked, "the look in the background")
    wait_until(
        lambda: client.status(NAME).phase in {"pending", "trial", "confirmed", "available"},
        "its end",
    )


# When a release is used


@pytest.mark.parametrize(
    ("mode", "mandatory", "at_once"),
    [
        ("next_load", False, False),
        ("next_load", True, True),
        ("immediate", False, True),
        ("manual", False, False),
        ("manual", True, False),
    ],
)
def test_what_comes_in_the_background_is_used_when_the_mode_says(
    server: FakeServer,
    make_client: ClientFactory,
    content: bytes,
    mode: str,
    mandatory: bool,
    at_once: bool,
) -> None:
    client = make_client(activation=ActivationMode(mode))
    server.publish(NAME, content, LABELS)
    assert client.get_model(NAME).label == "v1", "the first one is used in every mode"
    server.publish(NAME, content[:1000], LABELS, mandatory=mandatory)
    poll(client, server)
    wanted = "trial" if at_once else "pending"
    wait_until(lambda: client.status(NAME).phase == wanted, wanted)
    status = client.status(NAME)
    assert status.current.label == ("v2" if at_once else "v1")
    assert at_once or status.staged.label == "v2"
    taken = client.get_model(NAME, DownloadType.LOCAL_MODEL).label
    assert taken == ("v1" if mode == "manual" else "v2")
    assert client.activate(NAME).label == "v2"


def test_manual_means_only_activate(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    client = make_client(activation="manual")
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    server.publish(NAME, content[:1000], LABELS)
    assert client.sync(NAME).label == "v1"
    assert client.get_model(NAME, DownloadType.LATEST_MODEL).label == "v1"
    server.roll_back_to_embedded(NAME)
    assert client.sync(NAME).label == "v1"
    with pytest.raises(nightferry.NoModelError):
        client.activate(NAME)
    with pytest.raises(ValueError, match="sometimes"):
        make_client(activation="sometimes")


def test_polling_tells_of_what_is_ready(make_client: ClientFactory, content: bytes) -> None:
    with FakeServer(poll={"jitter_pct": 20}) as eager:
        eager.publish(NAME, content, LABELS)
        timing = quick_timing(first_poll_within_s=0, poll_interval_s=0.02)
        client = make_client(server=eager, timing=timing)
        client.sync(NAME)
        eager.publish(NAME, content[:10], LABELS)
        told: list[nightferry.Model] = []
        client.start_polling(told.append)
        wait_until(lambda: bool(told), "the news")
        client.stop_polling()
        assert [(model.label, model.state) for model in told] == [("v2", ModelState.STAGED)]
        assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v2"


# Trial

START = """
import os, sys, nightferry
url, cache_dir, root, *steps = sys.argv[1:]
client = nightferry.ModelClient(url, cache_dir=cache_dir, trusted_root=root)
model = client.get_model("recyclables", nightferry.DownloadType.LOCAL_MODEL)
again = nightferry.ModelClient(url, cache_dir=cache_dir, trusted_root=root)
again.get_model("recyclables", nightferry.DownloadType.LOCAL_MODEL)
if "ready" in steps:
    client.notify_ready("recyclables")
print(model.label, model.state.value, client.status("recyclables").phase, flush=True)
os._exit(1)
"""


@pytest.fixture
def start(server: FakeServer, cache_dir: Path, root_file: Path) -> Callable[..., str]:
    """Return what starts an app that takes the model and ends badly."""

    def run(*steps: str) -> str:
        process = start_python(START, server.url, cache_dir, root_file, *steps)
        output, errors = process.communicate(timeout=30)
        assert output, errors
        return output.strip()

    return run


def test_two_starts_in_vain_end_a_trial_and_one_does_not(
    server: FakeServer, client: ModelClient, content: bytes, start: Callable[..., str]
) -> None:
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    client.notify_ready(NAME)
    server.publish(NAME, content[:1000], LABELS)
    client.sync(NAME)

    assert start() == "v2 active trial"
    assert start() == "v2 active trial", "one start in vain proves nothing"
    assert start() == "v1 confirmed rolled_back"
    assert client.status(NAME).phase == "rolled_back"
    assert read(client) == content
    assert client.sync(NAME).label == "v1"
    assert "v2 failed here (crashed)" in client.status(NAME).held_back
    (failed,) = events_of(client, server, "failed")
    assert (failed["label"], failed["data"]["code"]) == ("v2", "crashed")
    (rolled_back,) = events_of(client, server, "rolled_back")
    assert (rolled_back["data"]["to"], rolled_back["data"]["reason"]) == ("v1", "crashed")


WAYS_OUT = {
    "nothing": "",
    "exit": "sys.exit(2)",
    "close": "client.close(); again.close(); os._exit(0)",
    "with": "with client, again: pass\nos._exit(0)",
}


@pytest.mark.parametrize("way_out", WAYS_OUT.values(), ids=WAYS_OUT)
def test_starts_that_end_in_order_are_no_crashes_and_three_confirm(
    server: FakeServer,
    client: ModelClient,
    cache_dir: Path,
    root_file: Path,
    content: bytes,
    way_out: str,
) -> None:
    for size in (1000, 2000):
        server.publish(NAME, content[:size], LABELS)
        client.sync(NAME)
    script = START.replace("os._exit(1)", way_out)
    phases, warned = [], []
    for _ in range(4):
        process = start_python(script, server.url, cache_dir, root_file)
        output, errors = process.communicate(timeout=30)
        phases.append(output.strip())
        warned.append("notify_ready" in errors)
    assert phases == ["v2 active trial"] * 3 + ["v2 confirmed confirmed"]
    assert warned == [False, True, True, False]
    assert not events_of(client, server, "failed")
    (confirmed,) = events_of(client, server, "confirmed")
    assert confirmed["data"] == {"by": "starts"}


def test_an_error_that_ends_the_app_is_a_crash(
    server: FakeServer, client: ModelClient, cache_dir: Path, root_file: Path, content: bytes
) -> None:
    for size in (1000, 2000):
        server.publish(NAME, content[:size], LABELS)
        client.sync(NAME)
    script = START.replace("os._exit(1)", "with client, again: raise KeyError('no such label')")
    for expected in ("v2 active trial", "v2 active trial", "v1 active rolled_back"):
        process = start_python(script, server.url, cache_dir, root_file)
        assert process.communicate(timeout=30)[0].strip() == expected


def test_crashes_count_in_a_row(
    server: FakeServer,
    client: ModelClient,
    cache_dir: Path,
    root_file: Path,
    content: bytes,
    start: Callable[..., str],
) -> None:
    for size in (1000, 2000):
        server.publish(NAME, content[:size], LABELS)
        client.sync(NAME)
    in_order = START.replace("os._exit(1)", "")
    assert start() == "v2 active trial"
    process = start_python(in_order, server.url, cache_dir, root_file)
    assert process.communicate(timeout=30)[0].strip() == "v2 active trial"
    assert start() == "v2 active trial"
    assert start() == "v2 active trial"
    assert start() == "v1 active rolled_back"


def test_one_process_is_one_start_however_often_it_closes_its_client(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    for size in (1000, 2000):
        server.publish(NAME, content[:size], LABELS)
        make_client().sync(NAME)
    for _ in range(5):
        with make_client() as client:
            assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v2"
    assert client.status(NAME).phase == "trial"


WORKER = START.replace("os._exit(1)", "sys.stdin.read(1); os._exit(1)")


def test_many_processes_at_once_are_no_crash(
    server: FakeServer, client: ModelClient, cache_dir: Path, root_file: Path, content: bytes
) -> None:
    for size in (1000, 2000):
        server.publish(NAME, content[:size], LABELS)
        client.sync(NAME)
    workers = []
    try:
        for _ in range(4):
            worker = start_python(WORKER, server.url, cache_dir, root_file, stdin=subprocess.PIPE)
            workers.append(worker)
            assert worker.stdout.readline() == "v2 active trial\n"
    finally:
        for worker in workers:
            worker.communicate("x", timeout=30)
    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1", "they ended in vain"


def test_a_confirmed_release_may_be_started_for_ever(
    server: FakeServer, client: ModelClient, content: bytes, start: Callable[..., str]
) -> None:
    for size in (1000, 2000):
        server.publish(NAME, content[:size], LABELS)
        client.sync(NAME)
    assert start("ready") == "v2 active confirmed"
    for _ in range(3):
        assert start() == "v2 confirmed confirmed"


def test_a_trial_with_nothing_to_return_to_goes_on(
    server: FakeServer, client: ModelClient, content: bytes, start: Callable[..., str]
) -> None:
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    for _ in range(4):
        assert start() == "v1 active trial"


def test_the_way_back_leads_to_what_was_confirmed(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content[:1000], LABELS)
    client.sync(NAME)
    client.notify_ready(NAME)
    for size in (2000, 3000):
        server.publish(NAME, content[:size], LABELS)
        client.sync(NAME)
    assert client.status(NAME).previous_label == "v1", "v2 has never proved itself"
    assert client.report_failure(NAME, "bad").label == "v1"


PREDICT = """
import os, sys, nightferry
from PIL import Image
url, cache_dir, root, times = sys.argv[1:]
client = nightferry.ModelClient(url, cache_dir=cache_dir, trusted_root=root)
predictor = client.load("recyclables", num_threads=1)
for _ in range(int(times)):
    predictor.predict(Image.new("RGB", (32, 32)), top=1)
print(predictor.model.label, client.status("recyclables").phase, flush=True)
os._exit(1)
"""


@pytest.fixture(scope="module")
def network() -> tuple[bytes, list[str]]:
    """Return a real uint8 MobileNetV2 and its labels."""
    weights = data_folder("weights")
    names = (weights / "imagenet_labels.txt").read_text().splitlines()
    labels = [f"{number} {name}" for number, name in enumerate(names)]  # two names come twice
    return (weights / "tf2_mobilenet_v2_1.0_224_ptq.tflite").read_bytes(), labels


def test_good_predictions_confirm_over_several_starts(
    server: FakeServer,
    client: ModelClient,
    cache_dir: Path,
    root_file: Path,
    network: tuple[bytes, list[str]],
) -> None:
    content, labels = network
    server.publish(NAME, b"the model before", LABELS)
    client.sync(NAME)
    server.publish(NAME, content, labels)
    client.sync(NAME)
    phases = []
    for times in (4, 0, 0, 5, 1):
        process = start_python(PREDICT, server.url, cache_dir, root_file, times)
        output, errors = process.communicate(timeout=60)
        assert output.startswith("v2 "), errors
        phases.append(output.split()[1])
    assert phases == ["trial", "trial", "trial", "trial", "confirmed"]
    (confirmed,) = events_of(client, server, "confirmed")
    assert confirmed["data"] == {"by": "predictions"}


# Self-test


def selftest_of(pixels: np.ndarray, outputs: list[float]) -> dict[str, object]:
    height, width, _ = pixels.shape
    picture = {"width": width, "height": height}
    picture["rgb"] = base64.b64encode(pixels.tobytes()).decode()
    document = {"inputs": [picture], "outputs": [outputs], "tolerance": 0.05}
    data = json.dumps({**document, "max_latency_ms": 60_000.0})
    return {"format": 1, "data": data, "sha256": hashlib.sha256(data.encode()).hexdigest()}


def test_a_self_test_lets_right_answers_pass_and_wrong_ones_not(
    server: FakeServer, make_client: ClientFactory, network: tuple[bytes, list[str]]
) -> None:
    content, labels = network
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    server.publish(NAME, content, labels)
    client = make_client(activation="manual")
    client.sync(NAME)
    enlarged = pixels.repeat(7, axis=0).repeat(7, axis=1)
    answers = dict(client.load(NAME, num_threads=1).predict(enlarged))
    outputs = [answers[label] for label in labels]
    server.publish(NAME, content, labels, selftest=selftest_of(pixels, outputs))
    client.sync(NAME)
    assert client.status(NAME).phase == "pending"
    assert client.activate(NAME).label == "v2"

    wrong = [*outputs[1:], outputs[0]]
    server.publish(NAME, content, labels, selftest=selftest_of(pixels, wrong))
    with pytest.raises(nightferry.SelfTestWrongTop1Error):
        client.sync(NAME)
    assert client.status(NAME).phase == "failed"
    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v2"
    assert client.activate(NAME).label == "v2", "it cannot be forced either"
    (failed,) = events_of(client, server, "failed")
    assert (failed["label"], failed["data"]["code"]) == ("v3", "selftest_wrong_top1")
    assert client.sync(NAME).label == "v2", "not again by itself"


def test_a_file_that_is_no_model_is_never_used(
    server: FakeServer, client: ModelClient, content: bytes, cache_dir: Path
) -> None:
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    selftest = selftest_of(np.zeros((8, 8, 3), np.uint8), [1.0, 0.0, 0.0])
    server.publish(NAME, b"TFL3 but not really", LABELS, selftest=selftest)
    assert client.get_model(NAME, DownloadType.LATEST_MODEL).label == "v1"
    assert client.status(NAME).phase == "failed"
    (failed,) = events_of(client, server, "failed")
    assert failed["data"]["code"] == "selftest_unrunnable"
    assert [file.label for file in client.scan()] == ["v1"], "the failed file is gone"
    assert client.get_model(NAME).label == "v1"


def test_a_selftest_that_was_not_signed_is_refused(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    selftest = selftest_of(np.zeros((8, 8, 3), np.uint8), [1.0, 0.0, 0.0])
    server.publish(NAME, content, LABELS, selftest=selftest)
    forged = selftest_of(np.ones((8, 8, 3), np.uint8), [0.0, 1.0, 0.0])
    server.forge(NAME, selftest=forged)
    with pytest.raises(nightferry.ManifestMismatchError, match="selftest"):
        client.sync(NAME)


# What is signed


def test_an_unsigned_list_revokes_nothing_and_a_signed_one_does_also_after_304(
    make_client: ClientFactory, content: bytes
) -> None:
    clock = Clock()
    with FakeServer(now=clock) as server:
        client = make_client(server=server, timing=quick_timing(now=clock))
        for size in (1000, 2000):
            server.publish(NAME, content[:size], LABELS)
            model = client.sync(NAME)
        server.forge(NAME, revoked=[model.sha256])
        assert client.sync(NAME).label == "v2", "whoever answers may not take a model away"
        server.sign_policy(NAME, revoked=[model.sha256])
        clock.now += HOUR_S
        assert client.sync(NAME).label == "v2"
        assert server.requests[-1].status == 304
        clock.now += 12 * HOUR_S
        assert client.sync(NAME).label == "v1"
        assert not model.path.exists()
        (left,) = events_of(client, server, "rolled_back")
        assert left["data"]["reason"] == "revoked"


@pytest.mark.parametrize(
    ("leave", "error"),
    [
        (lambda server: server.offer_nothing(NAME), None),
        (lambda server: server.retire(NAME), nightferry.ModelRetiredError),
        (
            lambda server: server.inject(Fault("update", status=404, body=b"{}")),
            nightferry.UnknownModelError,
        ),
    ],
    ids=["204", "410", "404"],
)
def test_a_recall_counts_with_the_next_look_whatever_the_answer(
    server: FakeServer, client: ModelClient, content: bytes, leave: Callable, error: type | None
) -> None:
    server.publish(NAME, content, LABELS)
    model = client.sync(NAME)
    server.revoke(NAME, model.sha256)
    leave(server)
    if error is None:
        assert client.check_for_update(NAME) is None
    else:
        with pytest.raises(error):
            client.check_for_update(NAME)
    assert client.status(NAME).current is None
    assert not model.path.exists()


def test_what_has_lain_ready_for_long_is_not_used_before_the_policy_is_known(
    make_client: ClientFactory, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    with FakeServer(now=clock) as server:
        client = make_client(server=server, timing=quick_timing(now=clock))
        server.publish(NAME, content, LABELS)
        client.sync(NAME)
        server.publish(NAME, content[:1000], LABELS)
        staged = client.fetch_update(NAME)
        clock.now += 13 * HOUR_S
        monkeypatch.setenv("NIGHTFERRY_OFFLINE", "1")
        offline = make_client(server=server, timing=quick_timing(now=clock))
        assert offline.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1"
        assert offline.activate(NAME).label == "v1", "nobody knows whether it was recalled"
        monkeypatch.delenv("NIGHTFERRY_OFFLINE")
        server.revoke(NAME, staged.sha256)
        assert client.activate(NAME).label == "v1"
        assert client.status(NAME).staged is None
        server.publish(NAME, content[:2000], LABELS)
        client.fetch_update(NAME)
        clock.now += 13 * HOUR_S
        assert client.activate(NAME).label == "v3"


def test_bytes_that_came_damaged_are_fetched_again_for_ever(
    make_client: ClientFactory, content: bytes
) -> None:
    clock = Clock()
    with FakeServer(now=clock) as server:
        client = make_client(server=server, timing=quick_timing(now=clock))
        server.publish(NAME, content, LABELS)
        client.sync(NAME)
        server.publish(NAME, content[:1000], LABELS)
        for wait_s, span in ((HOUR_S, "an hour"), (24 * HOUR_S, "a day"), (24 * HOUR_S, "a day")):
            server.inject(Fault("artifact", flip=5))
            with pytest.raises(nightferry.IntegrityError):
                client.sync(NAME)
            assert span in client.status(NAME).held_back
            clock.now += wait_s - 60
            assert client.sync(NAME).label == "v1"
            clock.now += 61
        assert client.sync(NAME).label == "v2"


def test_where_there_is_no_model_none_is_given_up(
    make_client: ClientFactory, content: bytes
) -> None:
    clock = Clock()
    with FakeServer(now=clock) as server:
        client = make_client(server=server, timing=quick_timing(now=clock))
        server.publish(NAME, content, LABELS)
        client.sync(NAME)
        for _ in range(2):
            client.report_failure(NAME, "bad")
            clock.now += 25 * HOUR_S
            assert client.sync(NAME).label == "v1"


def test_the_root_of_another_repository_lets_counters_begin_anew(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    for size in (1000, 2000, 3000):
        server.publish(NAME, content[:size], LABELS)
        make_client().sync(NAME)
    server.repository.rotate("root", "timestamp")
    server.publish(NAME, content[:4000], LABELS)
    rotated = server.repository.files["2.root.json"]
    assert make_client(trusted_root=rotated).sync(NAME).label == "v4"
    with FakeServer() as other:
        other.publish(NAME, content, LABELS)
        server.repository, server.blobs = other.repository, other.blobs
        server._models = other._models
        with pytest.raises(nightferry.TrustError):
            make_client(trusted_root=rotated).sync(NAME)
        stranger = make_client(trusted_root=other.root)
        assert stranger.status(NAME).current.label == "v4", "what is in use stays till then"
        assert stranger.sync(NAME).label == "v1"


def test_a_newer_root_of_the_same_repository_keeps_the_counters(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    for size in (1000, 2000):
        server.publish(NAME, content[:size], LABELS)
        make_client().sync(NAME)
    server.repository.rotate("root")
    server.sign_otherwise(NAME, counter=1)
    server.sign_policy(NAME, min_counter=0)
    server.amend(NAME, label="v9", version=9)
    rotated = server.repository.files["2.root.json"]
    with pytest.raises(nightferry.CounterTooLowError, match="below 2"):
        make_client(trusted_root=rotated).sync(NAME)


def test_a_recalled_embedded_model_stays_recalled_when_the_state_is_lost(
    server: FakeServer,
    make_client: ClientFactory,
    cache_dir: Path,
    tmp_path: Path,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shipped = tmp_path / "shipped.tflite"
    shipped.write_bytes(content)
    server.publish(NAME, content, LABELS)
    recalled = make_client(embedded={NAME: shipped}).sync(NAME).sha256
    server.publish(NAME, content[:1000], LABELS)
    server.revoke(NAME, recalled)
    make_client(embedded={NAME: shipped}).sync(NAME)
    for path in cache_dir.rglob("state*.json"):
        path.write_bytes(b"{torn")
    monkeypatch.setenv("NIGHTFERRY_OFFLINE", "1")
    with pytest.raises(nightferry.NightferryError):
        make_client(embedded={NAME: shipped}).get_model(NAME)


def test_a_root_that_is_not_there_stops_no_embedded_model(
    make_client: ClientFactory, tmp_path: Path
) -> None:
    shipped = tmp_path / "shipped.tflite"
    shipped.write_bytes(b"weights")
    missing = tmp_path / "missing.json"
    client = make_client(trusted_root=missing, embedded={NAME: shipped})
    assert client.get_model(NAME).is_embedded
    with pytest.raises(nightferry.ConfigurationError, match=r"missing\.json"):
        client.check_for_update(NAME)


def test_an_honest_answer_mends_what_is_remembered_of_the_release_in_use(
    server: FakeServer, make_client: ClientFactory, cache_dir: Path, content: bytes
) -> None:
    means = {"mean": [123.675, 127.5, 127.5]}
    server.publish(NAME, content, LABELS, preprocessing={**DEFAULT_PREPROCESSING, **means})
    make_client().sync(NAME)
    for path in cache_dir.rglob("state*.json"):
        path.write_text(path.read_text().replace("123.675", '"123.675"'))
    assert make_client().status(NAME).current.preprocessing["mean"][0] == "123.675"
    server.forge(NAME, notes="another answer")
    assert make_client().sync(NAME).preprocessing["mean"] == means["mean"]
    assert server.count("artifact") == 1


def test_an_answer_that_lied_under_an_honest_etag_is_asked_for_again(
    server: FakeServer, client: ModelClient, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    _, document, etag = server.answer_update(NAME, None)
    lie = json.dumps({**document, "labels": LABELS[::-1]}).encode()
    server.inject(Fault("update", status=200, headers=(("ETag", etag),), body=lie))
    with pytest.raises(nightferry.ManifestMismatchError):
        client.sync(NAME)
    assert client.sync(NAME).labels == tuple(LABELS)


def test_a_number_beyond_all_numbers_harms_nothing(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    make_client().sync(NAME)
    document = json.dumps(server.answer_update(NAME, None)[1])
    lie = document.replace('"metrics": {}', '"metrics": {"accuracy": 1e400}').encode()
    server.inject(Fault("update", status=200, body=lie))
    with pytest.raises(nightferry.NightferryError):
        make_client().check_for_update(NAME)
    assert make_client().status(NAME).current.label == "v1"


def test_a_server_held_still_is_noticed_and_the_model_stays(
    make_client: ClientFactory, content: bytes
) -> None:
    clock = Clock()
    with FakeServer(now=clock) as server:
        client = make_client(server=server, timing=quick_timing(now=clock))
        server.publish(NAME, content, LABELS)
        client.sync(NAME)
        server.repository.stop_signing()
        clock.now += 25 * HOUR_S
        with pytest.raises(nightferry.MetadataExpiredError):
            client.sync(NAME)
        for download_type in DownloadType:
            assert client.get_model(NAME, download_type).label == "v1"
        (failed,) = events_of(client, server, "failed")
        assert failed["data"]["code"] == "metadata_expired"


@pytest.mark.parametrize("years_off", [-DECADE_S, DECADE_S])
def test_a_clock_ten_years_off_keeps_the_model_and_installs_nothing(
    server: FakeServer, make_client: ClientFactory, content: bytes, years_off: float
) -> None:
    clock = Clock(server)
    device = Clock()
    client = make_client(timing=quick_timing(now=device))
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    device.now += years_off
    server.publish(NAME, content[:1000], LABELS)
    with pytest.raises(nightferry.ClockWrongError, match="clock"):
        client.sync(NAME)
    for download_type in DownloadType:
        assert client.get_model(NAME, download_type).label == "v1"
    assert client.verify_cache().ok
    (failed,) = events_of(client, server, "failed")
    assert failed["data"]["code"] == "clock_wrong"
    device.now = clock.now
    assert client.sync(NAME).label == "v2"


def test_the_embedded_model_is_ordered_by_signature_only(
    server: FakeServer, make_client: ClientFactory, tmp_path: Path, content: bytes
) -> None:
    bare = tmp_path / "bare.tflite"
    bare.write_bytes(b"weights")
    client = make_client(embedded={NAME: bare})
    server.publish(NAME, content, LABELS)
    client.sync(NAME)
    server.roll_back_to_embedded(NAME)
    server.sign_policy(NAME, embedded=["beta"])
    assert client.sync(NAME).label == "v1"
    assert "no signed policy" in client.check_for_update(NAME).held_back
    assert client.activate(NAME).label == "v1"
    server.sign_policy(NAME, embedded=["production"])
    server.amend(NAME, notes="another answer")
    assert client.sync(NAME).is_embedded


def test_an_older_release_is_refused_and_the_floor_outlasts_the_process(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    first = server.answer_update(NAME, None)[1]
    server.publish(NAME, content[:1000], LABELS)
    make_client().sync(NAME)
    server.amend(NAME, **{m: first[m] for m in ("label", "version", "artifact")})
    server.sign_otherwise(NAME, counter=1)
    server.sign_policy(NAME, min_counter=0)
    client = make_client()
    with pytest.raises(nightferry.CounterTooLowError, match="below 2"):
        client.sync(NAME)
    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v2"
    (failed,) = events_of(client, server, "failed")
    assert failed["data"]["code"] == nightferry.CounterTooLowError.code


def test_what_waits_to_be_used_is_dropped_when_it_is_withdrawn(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    """Also where somebody goes on answering that nothing has changed."""
    clock = Clock(server)
    client = make_client(timing=quick_timing(now=clock))
    for size in (1000, 2000):
        server.publish(NAME, content[:size], LABELS)
        client.fetch_update(NAME)
        if size == 1000:
            client.activate(NAME)
    assert client.status(NAME).phase == "pending"
    server.sign_policy(NAME, min_counter=3)
    clock.now += 13 * HOUR_S
    with pytest.raises(nightferry.CounterTooLowError):
        client.sync(NAME)
    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1"
    assert client.activate(NAME).label == "v1"


# Pausing


class Probe:
    """A device whose network becomes metered after some questions."""

    def __init__(self, good_answers: int) -> None:
        self.good_answers = good_answers

    def is_metered(self) -> bool:
        self.good_answers -= 1
        return self.good_answers < 0

    def is_charging(self) -> bool:
        return True


def test_a_download_pauses_when_conditions_end_and_goes_on_later(
    server: FakeServer, make_client: ClientFactory, content: bytes
) -> None:
    server.publish(NAME, b"the model before", LABELS)
    make_client().sync(NAME)
    server.publish(NAME, content, LABELS)
    probe = Probe(3)
    client = make_client(device_probe=probe)
    unmetered = DownloadConditions(allow_metered=False)
    with pytest.raises(nightferry.ConditionsNotMetError, match="unmetered"):
        client.fetch_update(NAME, unmetered)
    assert client.status(NAME).phase == "paused"
    assert client.get_model(NAME, DownloadType.LOCAL_MODEL).label == "v1"
    probe.good_answers = 99
    before = server.sent_bytes("artifact")
    assert client.fetch_update(NAME, unmetered).label == "v2"
    transfer = client.status(NAME).last_transfer
    assert transfer.resumed_bytes > 0
    assert transfer.received_bytes + transfer.resumed_bytes == len(content)
    assert server.sent_bytes("artifact") - before == transfer.received_bytes


def test_stopping_to_poll_pauses_the_download(make_client: ClientFactory, content: bytes) -> None:
    with FakeServer(poll={"jitter_pct": 20}) as eager:
        eager.publish(NAME, content, LABELS)
        eager.inject(Fault("artifact", pause_s=0.1))
        timing = quick_timing(first_poll_within_s=0, poll_interval_s=60)
        client = make_client(server=eager, timing=timing)
        client.start_polling(models=[NAME])
        wait_until(lambda: client.status(NAME).phase == "downloading", "a download")
        client.stop_polling()
        assert client.status(NAME).phase == "paused"
        assert client.sync(NAME).label == "v1"


# The cache


def test_pinned_releases_stay_and_unused_files_go(
    server: FakeServer, client: ModelClient, cache_dir: Path, content: bytes
) -> None:
    for size in (1000, 2000, 3000, 4000):
        server.publish(NAME, content[:size], LABELS)
        client.sync(NAME)
        if size == 1000:
            client.pin(NAME)
    stray = cache_dir / "blobs" / "sha256" / "ab" / ("ab" * 32)
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"x" * 77)
    roles = {file.label: file.role for file in client.scan()}
    assert roles == {"v1": "pinned", "v3": "previous", "v4": "active", "": "unused"}
    assert client.status(NAME).pinned_labels == ("v1",)

    report = client.prune()
    assert (report.removed, report.freed_bytes) == ((stray,), 77)
    assert client.prune(keep_previous=False).freed_bytes == 3000
    sent = server.sent_bytes("artifact")
    server.publish(NAME, content[:1000], LABELS, reason="rollback")
    assert client.sync(NAME).label == "v5"
    assert server.sent_bytes("artifact") == sent
    assert client.status(NAME).last_transfer.received_bytes == 0
    client.unpin(NAME)
    assert client.status(NAME).pinned_labels == ()
    with pytest.raises(nightferry.NoModelError, match="v9"):
        client.pin(NAME, "v9")


def test_a_state_from_before_signed_metadata_is_taken_over(
    server: FakeServer, make_client: ClientFactory, cache_dir: Path, content: bytes
) -> None:
    server.publish(NAME, content, LABELS)
    make_client().sync(NAME)
    for path in cache_dir.rglob("state*.json"):
        new = json.loads(path.read_text())
        kept = ("offered", "etag", "checked_at", "retry_at", "failures", "revoked")
        old = {"schema": 1, "phase": "idle", "staged": None, "previous": None}
        active = {member: new["active"][member] for member in ("manifest", "path")}
        old["active"] = {**active, "confirmed": False}
        path.write_text(json.dumps({**old, **{member: new[member] for member in kept}}))
    client = make_client()
    model = client.get_model(NAME, DownloadType.LOCAL_MODEL)
    assert (model.label, model.state) == ("v1", ModelState.CONFIRMED)
    server.publish(NAME, content[:1000], LABELS)
    assert client.sync(NAME).label == "v2"
    assert client.report_failure(NAME, "bad").label == "v1"

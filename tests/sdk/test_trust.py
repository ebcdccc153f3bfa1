"""What a device installs when the server, the network or its own clock cannot be trusted."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import nightferry
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nightferry import TufVerifier, files
from nightferry.manifest import Manifest, parse_manifest
from nightferry.testing import FakeServer, Fault
from nightferry.testing.server import DEFAULT_PREPROCESSING
from nightferry.transport import Transport
from nightferry.trust import read_root

from .support import LABELS, NAME, quick_timing, start_python

YEAR_S = 365 * 86400.0
HOUR_S = 3600.0

Device = Callable[..., TufVerifier]


class Clock:
    """The time, which a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[FakeServer]:
    with FakeServer(now=clock) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "scope" / "metadata"


@pytest.fixture
def device(server: FakeServer, folder: Path, clock: Clock) -> Device:
    def make(**options: object) -> TufVerifier:
        timing = quick_timing(now=clock, retry_attempts=2)
        transport = Transport(
            server.url,
            app_key="secret",
            user_agent="test",
            request_timeout_s=timing.request_timeout_s,
            stall_timeout_s=timing.stall_timeout_s,
            offline=False,
        )
        chosen = {
            "root": server.root,
            "folder": folder,
            "transport": lambda: transport,
            "channel": "production",
            "runtime": "tflite",
            "accept": None,
            "trust_on_first_use": False,
            "timing": timing,
            **options,
        }
        return TufVerifier(**chosen)

    return make


def manifest_of(server: FakeServer, name: str = NAME) -> Manifest:
    _, document, _ = server.answer_update(name, None)
    return parse_manifest(document)


def install(server: FakeServer, verifier: TufVerifier, *, floor: int = 0):
    """Do what a device does when the update check offers something new."""
    verifier.refresh(NAME)
    return verifier.authorise(manifest_of(server), floor=floor)


def test_a_signed_release_may_be_installed(server, device, content):
    server.publish(NAME, content, LABELS, mandatory=True, selftest={"data": "golden"})
    allowed = install(server, device())
    assert (allowed.counter, allowed.mandatory) == (1, True)
    assert allowed.target.size_bytes == len(content)
    assert allowed.target.path == f"/api/v1/artifacts/{allowed.target.sha256}"


def test_nothing_new_costs_two_requests(server, device, content):
    server.publish(NAME, content, LABELS)
    verifier = device()
    verifier.refresh(NAME)
    before = server.count("metadata")
    verifier.refresh(NAME)
    names = [request.path.rpartition("/")[2] for request in server.requests[before:]]
    assert names == ["2.root.json", "timestamp.json"]


def test_an_app_without_a_root_installs_nothing_unless_it_says_so(server, device, content):
    server.publish(NAME, content, LABELS)
    with pytest.raises(nightferry.NoTrustedRootError, match="trust_on_first_use=True"):
        device(root=None).refresh(NAME)
    assert server.count("metadata") == 0

    believing = device(root=None, trust_on_first_use=True)
    assert install(server, believing).counter == 1
    with FakeServer() as stranger:
        stranger.repository.rotate("root", "timestamp")
        server.repository.restore(stranger.repository.files)
        server.repository.files["1.root.json"] = stranger.repository.files["2.root.json"]
    with pytest.raises(nightferry.TrustError):
        device(root=None, trust_on_first_use=True).refresh(NAME)


def test_a_first_root_that_cannot_be_read_is_not_asked_for_again(server, device, content, folder):
    server.publish(NAME, content, LABELS)
    believing = {"root": None, "trust_on_first_use": True}
    install(server, device(**believing))
    first = folder / "first_root.json"
    known = first.read_bytes()
    first.unlink()
    first.mkdir()
    with pytest.raises(nightferry.StorageError):
        device(**believing).refresh(NAME)
    assert sum(r.path.endswith("/1.root.json") for r in server.requests) == 1
    first.rmdir()
    first.write_bytes(known)
    (folder / "timestamp.json").unlink(missing_ok=True)
    (folder / "timestamp.json").mkdir()
    assert install(server, device(**believing)).counter == 1
    assert first.read_bytes() == known, "damage to the rest leaves it alone"


LIES = {
    "another file's hash": {"sha256": "0" * 64},
    "another size": {"size_bytes": 5},
    "another precision": {"precision": "int8"},
}


@pytest.mark.parametrize("members", LIES.values(), ids=LIES)
def test_an_answer_that_was_changed_on_its_way(server, device, content, members):
    server.publish(NAME, content, LABELS)
    artifact = server.answer_update(NAME, None)[1]["artifact"]
    server.forge(NAME, artifact={**artifact, **members})
    with pytest.raises(nightferry.ManifestMismatchError, match=next(iter(members))):
        install(server, device())


@pytest.mark.parametrize(
    "members",
    [
        {"label": "v9"},
        {"version": 9},
        {"labels": ["can", "jar", "cup"]},
        {"preprocessing": {"width": 1}},
        {"selftest": {"data": "other"}},
        {"selftest": {"data": 7}},
        {"channel": "beta"},
    ],
    ids=lambda members: next(iter(members)),
)
def test_what_the_app_relies_on_is_signed(server, device, content, members):
    server.publish(NAME, content, LABELS)
    server.forge(NAME, **members)
    with pytest.raises(nightferry.ManifestMismatchError, match=next(iter(members))):
        install(server, device())


MEANS = {
    "text of a fraction": ["123.675", 127.5, 127.5],
    "text of a whole number": [123.675, 127.5, "128"],
    "true for one": [True, 127.5, 127.5],
    "another number": [123.67, 127.5, 127.5],
    "a text in place of three numbers": "123.675",
}


@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS)
def test_what_was_signed_as_a_number_is_a_number(server, device, content, mean):
    usual = manifest_of_new(server, content, mean=[123.675, 127.5, 128.0])
    server.forge(NAME, preprocessing={**usual, "mean": mean})
    with pytest.raises(nightferry.ManifestMismatchError, match="preprocessing"):
        install(server, device())
    server.forge(NAME, preprocessing={**usual, "width": 224.0, "mean": [123.675, 127.5, 128]})
    signed = install(server, device()).manifest.preprocessing
    assert signed["mean"] == [123.675, 127.5, 128.0]
    assert type(signed["width"]) is int, "however the answer writes it"


def manifest_of_new(server: FakeServer, content: bytes, **members: object) -> dict[str, object]:
    """Publish a release with these members of its preprocessing; return all of them."""
    preprocessing = {**DEFAULT_PREPROCESSING, **members}
    server.publish(NAME, content, LABELS, preprocessing=preprocessing)
    return preprocessing


@pytest.mark.parametrize("wrapper", [{"format": 99}, {"sha256": "0" * 64}, {"more": 1}])
def test_what_is_wrapped_around_a_self_test_counts_for_nothing(server, device, content, wrapper):
    sha256 = hashlib.sha256(b"golden").hexdigest()
    selftest = {"format": 1, "data": "golden", "sha256": sha256}
    server.publish(NAME, content, LABELS, selftest=selftest)
    server.forge(NAME, selftest={**selftest, **wrapper})
    assert install(server, device()).manifest.selftest == selftest


@pytest.mark.parametrize(
    ("signed", "error"),
    [
        ({"runtime": "coreml"}, nightferry.WrongVariantError),
        ({"channel": "beta"}, nightferry.WrongVariantError),
        ({"model": "other"}, nightferry.ManifestMismatchError),
        ({"min_sdk": "99.1"}, nightferry.SdkTooOldError),
        ({"counter": 1}, nightferry.CounterTooLowError),
        ({"counter": "2"}, nightferry.MetadataInvalidError),
        ({"kind": "patch"}, nightferry.MetadataInvalidError),
        ({"labels": None}, nightferry.MetadataInvalidError),
    ],
)
def test_a_listed_file_that_is_not_for_this_device(server, device, content, signed, error):
    server.publish(NAME, content[:10], LABELS)
    server.publish(NAME, content, LABELS)
    server.sign_otherwise(NAME, **signed)
    with pytest.raises(error):
        install(server, device())
    server.sign_otherwise(NAME)
    assert install(server, device()).counter == 2


def test_a_precision_that_the_app_does_not_accept(server, device, content):
    server.publish(NAME, content, LABELS)
    with pytest.raises(nightferry.WrongVariantError, match="int8"):
        install(server, device(accept=["int8"]))
    assert install(server, device(accept=["int8", "float32"]))


def test_an_unlisted_path(server, device, content):
    server.publish(NAME, content, LABELS)
    server.unlist(NAME)
    with pytest.raises(nightferry.TargetUnlistedError, match=f"{NAME}/production/v1"):
        install(server, device())
    server.forge(NAME, artifact={**server.answer_update(NAME, None)[1]["artifact"], "target": ""})
    with pytest.raises(nightferry.TargetUnlistedError):
        install(server, device())


def test_another_models_file_under_this_name(server, device, content):
    server.publish("other", content, LABELS)
    stolen = server.answer_update("other", None)[1]["artifact"]
    server.publish(NAME, content[:10], LABELS)
    server.forge(NAME, artifact=stolen)
    with pytest.raises(nightferry.TargetUnlistedError):
        install(server, device())


def test_counters_only_rise(server, device, content):
    server.publish(NAME, content, LABELS)
    with pytest.raises(nightferry.CounterTooLowError, match="none below 5"):
        install(server, device(), floor=5)
    server.sign_policy(NAME, min_counter=3)
    with pytest.raises(nightferry.CounterTooLowError, match="none below 3"):
        install(server, device())


def test_a_rollback_is_the_old_file_with_a_higher_counter(server, device, content):
    server.publish(NAME, content, LABELS)
    first = install(server, device())
    server.publish(NAME, content[:10], LABELS)
    server.publish(NAME, content, LABELS, reason="rollback")
    again = install(server, device(), floor=2)
    assert (again.target, again.counter) == (first.target, 3)


def test_a_recalled_file(server, device, content):
    server.publish(NAME, content, LABELS)
    sha256 = manifest_of(server).required_artifact().sha256
    server.revoke(NAME, sha256)
    verifier = device()
    assert verifier.refresh(NAME).revoked == {sha256}
    with pytest.raises(nightferry.RevokedError):
        verifier.authorise(manifest_of(server), floor=0)


def test_the_policy_names_channels_that_return_to_the_app(server, device, content):
    server.publish(NAME, content, LABELS)
    server.roll_back_to_embedded(NAME)
    assert device().refresh(NAME).embedded_channels == {"production"}
    server.publish(NAME, content, LABELS)
    assert device().refresh(NAME).embedded_channels == frozenset()


def test_patches_are_signed_too(server, device, content):
    server.publish(NAME, content, LABELS)
    old = manifest_of(server).required_artifact().sha256
    server.publish(NAME, content[::-1], LABELS)
    new = manifest_of(server).required_artifact().sha256
    patch_sha256 = server.offer_patch(NAME, b"patch", old)
    verifier = device()
    verifier.refresh(NAME)
    patch = verifier.authorise_patch(NAME, old, new)
    assert patch.target.sha256 == patch_sha256
    assert (patch.target.size_bytes, patch.algorithm, patch.from_sha256) == (5, "nfp1", old)
    assert verifier.authorise_patch(NAME, new, old) is None


# Metadata that are not what they should be


SPOILT = {
    "timestamp signed by a stranger": (
        lambda server: server.repository.sign_with_a_stranger("timestamp"),
        nightferry.MetadataInvalidError,
    ),
    "snapshot signed by a stranger": (
        lambda server: server.repository.sign_with_a_stranger("snapshot"),
        nightferry.MetadataInvalidError,
    ),
    "targets signed by a stranger": (
        lambda server: server.repository.sign_with_a_stranger("targets"),
        nightferry.MetadataInvalidError,
    ),
    "model signed by a stranger": (
        lambda server: server.repository.sign_with_a_stranger(f"model-{NAME}"),
        nightferry.MetadataInvalidError,
    ),
    "next root signed by a stranger": (
        lambda server: server.repository.sign_with_a_stranger("root"),
        nightferry.MetadataInvalidError,
    ),
    "timestamp expired": (
        lambda server: server.repository.expire("timestamp"),
        nightferry.MetadataExpiredError,
    ),
    "snapshot expired": (
        lambda server: server.repository.expire("snapshot"),
        nightferry.MetadataExpiredError,
    ),
    "model expired": (
        lambda server: server.repository.expire(f"model-{NAME}"),
        nightferry.MetadataExpiredError,
    ),
    "root expired": (
        lambda server: server.repository.expire("root"),
        nightferry.MetadataExpiredError,
    ),
    "a web page for the next root": (
        lambda server: server.inject(
            Fault("metadata", file="2.root.json", status=200, body=b"<html>Log in</html>")
        ),
        nightferry.MetadataInvalidError,
    ),
    "a web page for everything": (
        lambda server: server.inject(
            Fault("metadata", times=9, status=200, body=b"<html>Log in</html>")
        ),
        nightferry.MetadataInvalidError,
    ),
    "no timestamp": (
        lambda server: server.inject(Fault("metadata", file="timestamp.json", status=404)),
        nightferry.MetadataMissingError,
    ),
    "a timestamp without end": (
        lambda server: server.inject(Fault("metadata", file="timestamp.json", endless=True)),
        nightferry.MetadataInvalidError,
    ),
    "a server in trouble": (
        lambda server: server.inject(Fault("metadata", times=9, status=503)),
        nightferry.ServerError,
    ),
    "a server that has no time": (
        lambda server: server.inject(
            Fault("metadata", status=429, headers=(("Retry-After", "600"),))
        ),
        nightferry.ThrottledError,
    ),
    "a door": (
        lambda server: server.inject(Fault("metadata", times=2, status=403)),
        nightferry.UnauthorizedError,
    ),
    "a redirect in circles": (
        lambda server: server.inject(
            Fault(
                "metadata",
                times=9,
                status=302,
                headers=(("Location", "/api/v1/metadata/timestamp.json"),),
            )
        ),
        nightferry.ProtocolError,
    ),
}


@pytest.mark.parametrize(("spoil", "error"), SPOILT.values(), ids=SPOILT)
def test_spoilt_metadata_change_nothing(server, device, content, spoil, error):
    server.publish(NAME, content[:10], LABELS)
    verifier = device()
    known = verifier.refresh(NAME)
    good = server.repository.checkpoint()
    server.publish(NAME, content, LABELS)
    spoil(server)
    with pytest.raises(error) as caught:
        device().refresh(NAME)
    assert str(caught.value).endswith(".")
    if "next root" not in str(spoil):
        assert device().known_policy(NAME) in {known, nightferry.Policy(2)}
    assert good


@pytest.mark.parametrize("role", ["timestamp", "2.snapshot", "2.targets", "1.model-recyclables"])
@pytest.mark.parametrize("place", [0, 40, -200, -1])
def test_a_flipped_byte_is_noticed(server, device, content, role, place):
    server.publish(NAME, content, LABELS)
    server.inject(Fault("metadata", file=f"{role}.json", flip=place))
    with pytest.raises(nightferry.TrustError):
        device().refresh(NAME)
    assert install(server, device()).counter == 1, "and does not stay"


def test_old_metadata_played_back(server, device, content):
    server.publish(NAME, content[:10], LABELS)
    old = server.repository.checkpoint()
    server.publish(NAME, content, LABELS)
    device().refresh(NAME)
    server.repository.restore(old)
    with pytest.raises(nightferry.MetadataRollbackError, match="restored from an old backup"):
        device().refresh(NAME)
    assert device().known_policy(NAME) == nightferry.Policy(2)


def test_a_snapshot_that_belongs_to_another_timestamp(server, device, content):
    server.publish(NAME, content[:10], LABELS)
    old = server.repository.files["2.snapshot.json"]
    server.publish(NAME, content, LABELS)
    server.repository.files["3.snapshot.json"] = old
    with pytest.raises(nightferry.MetadataRollbackError):
        device().refresh(NAME)


def test_a_server_held_still_is_noticed(server, device, content, clock):
    server.publish(NAME, content, LABELS)
    verifier = device()
    allowed = install(server, verifier)
    server.repository.stop_signing()
    clock.now += 13 * HOUR_S
    assert verifier.authorise(manifest_of(server), floor=0) == allowed, "refreshed, still good"
    clock.now += 13 * HOUR_S
    with pytest.raises(nightferry.MetadataExpiredError, match="holds new metadata back"):
        verifier.authorise(manifest_of(server), floor=0)
    assert device().known_policy(NAME) == nightferry.Policy(1), "recalls hold for ever"


@pytest.mark.parametrize("years", [-10, -1, 1, 10])
def test_a_clock_that_is_years_off(server, device, content, clock, years):
    server.publish(NAME, content, LABELS)
    right = clock.now
    server.now = lambda: right
    install(server, device())
    clock.now += years * YEAR_S
    with pytest.raises(nightferry.ClockWrongError, match=r"Set (it|the clock)\."):
        device().refresh(NAME)
    clock.now = right
    assert install(server, device()).counter == 1


def test_a_clock_that_is_two_days_behind(server, device, content, clock):
    server.publish(NAME, content, LABELS)
    right = clock.now
    server.now = lambda: right
    clock.now -= 49 * HOUR_S
    with pytest.raises(nightferry.ClockWrongError, match="behind"):
        device().refresh(NAME)


def test_keys_are_replaced_one_root_after_another(server, device, content):
    server.publish(NAME, content[:10], LABELS)
    device().refresh(NAME)
    for kinds in [("timestamp",), ("root",), ("models", "targets", "snapshot"), ("root",)]:
        server.repository.rotate(*kinds)
    server.publish(NAME, content, LABELS)
    assert install(server, device()).counter == 2
    assert device().known_policy(NAME) == nightferry.Policy(2)


def test_an_unknown_model_has_the_empty_policy(server, device, content):
    server.publish("other", content, LABELS)
    assert device().refresh(NAME) == nightferry.Policy()


# The folder of trusted metadata


def _break_into_pieces(folder: Path) -> None:
    for path in [*folder.glob("*.json"), *folder.glob("*/*.json")]:
        path.write_bytes(path.read_bytes()[:50])


def _put_folders_in_place_of_files(folder: Path) -> None:
    for path in folder.glob("*.json"):
        path.unlink()
        (path / "inside").mkdir(parents=True)


def _put_a_file_in_place_of_it(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


@pytest.mark.parametrize(
    "damage",
    [shutil.rmtree, _break_into_pieces, _put_folders_in_place_of_files, _put_a_file_in_place_of_it],
)
def test_a_damaged_folder_heals(server, device, content, folder, damage):
    server.publish(NAME, content, LABELS)
    install(server, device())
    damage(folder)
    assert device().known_policy(NAME) is None
    assert install(server, device()).counter == 1
    assert device().known_policy(NAME) == nightferry.Policy(1)


@given(place=st.integers(0, 2000), role=st.sampled_from(["root", "timestamp", f"model-{NAME}"]))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damage_on_the_disk_is_never_believed(server, device, folder, place, role):
    if not folder.exists():
        server.publish(NAME, b"model", LABELS)
    policy = device().refresh(NAME)
    path = folder / f"{role}.json"
    whole = bytearray(path.read_bytes())
    whole[place % len(whole)] ^= 1
    path.write_bytes(whole)
    assert device().known_policy(NAME) in {None, policy}
    assert install(server, device()).counter == 1


def test_many_on_one_folder(server, device, content):
    server.publish(NAME, content, LABELS)
    verifiers = [device() for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        for number in range(2, 8):
            server.publish(NAME, content[:number], LABELS)
            counters = {a.counter for a in threads.map(lambda v: install(server, v), verifiers)}
            assert counters == {number}
    assert device().known_policy(NAME) == nightferry.Policy(7)


def test_names_carry_no_version_and_nothing_is_a_link(server, device, content, folder):
    server.publish(NAME, content, LABELS)
    install(server, device())
    names = {path.name for path in folder.glob("*.json")}
    roles = {"first_root", "root", "timestamp", "snapshot", "targets", f"model-{NAME}"}
    assert names == {f"{role}.json" for role in roles}
    assert not [path for path in folder.rglob("*") if path.is_symlink()]


READ_ONLY = """
import os, sys, time
from pathlib import Path
import nightferry, nightferry.metadata
from nightferry.transport import Transport
url, folder, elsewhere, now = sys.argv[1], *map(Path, sys.argv[2:4]), float(sys.argv[4])
transport = Transport(
    url, app_key=None, user_agent="t", request_timeout_s=5, stall_timeout_s=5, offline=False
)
def verifier(folder):
    return nightferry.TufVerifier(
        root=(elsewhere / "root.json").read_bytes(), folder=folder, transport=lambda: transport,
        channel="production", runtime="tflite", accept=None, trust_on_first_use=False,
        timing=nightferry.Timing(now=lambda: now),
    )
# Load everything while it may be read, then become somebody who may write nothing.
verifier(elsewhere / "metadata").refresh("recyclables")
reader = verifier(folder)
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for ask in (reader.known_policy, reader.refresh, reader.known_policy):
    print(ask("recyclables").min_counter)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs another user id")
def test_a_folder_that_may_not_be_written(server, device, content, clock, tmp_path):
    (tmp_path / "root.json").write_bytes(server.root)
    with TemporaryDirectory() as reachable:  # pytest's own folders are closed to others
        folder = Path(reachable) / "scope" / "metadata"
        server.publish(NAME, content, LABELS)
        install(server, device(folder=folder))
        kept = (folder / "timestamp.json").read_bytes()
        server.publish(NAME, content[:10], LABELS)
        for path in [Path(reachable), *Path(reachable).rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        process = start_python(READ_ONLY, server.url, folder, tmp_path, clock.now)
        output, errors = process.communicate(timeout=60)
        Path(reachable).chmod(0o755)
        for path in Path(reachable).rglob("*"):
            path.chmod(0o755)
        assert (folder / "timestamp.json").read_bytes() == kept
    assert output.split() == ["1", "2", "2"], errors
    assert not errors


def test_a_disk_that_is_full(server, device, content, folder, monkeypatch):
    server.publish(NAME, content, LABELS)
    install(server, device())
    monkeypatch.setattr(files.os, "fsync", _no_space)
    server.publish(NAME, content[:10], LABELS)
    with pytest.raises(nightferry.DiskFullError):
        device().refresh(NAME)
    monkeypatch.undo()
    assert device().known_policy(NAME) == nightferry.Policy(1)
    assert install(server, device()).counter == 2


def _no_space(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# Roots and transport


@pytest.mark.parametrize("rubbish", [b"", b"<html>", b"\xff\xfe", b'{"signed": {}}'])
def test_a_root_that_is_none(server, device, content, rubbish):
    server.publish(NAME, content, LABELS)
    with pytest.raises(nightferry.ConfigurationError, match=r"root\.json"):
        device(root=rubbish).refresh(NAME)


def test_a_root_of_another_server(server, device, content):
    server.publish(NAME, content, LABELS)
    with FakeServer(now=server.time) as other:
        other.repository.rotate("root", "timestamp")
        foreign = other.repository.files["2.root.json"]
    with pytest.raises(nightferry.MetadataInvalidError):
        device(root=foreign).refresh(NAME)


def test_roots_are_read_from_files(server, tmp_path):
    path = tmp_path / "root.json"
    path.write_bytes(server.root)
    assert read_root(path) == read_root(str(path)) == read_root(server.root) == server.root
    assert read_root(bytearray(server.root)) == server.root
    assert read_root(None) is None
    for wrong in (tmp_path / "none.json", tmp_path, b"<html>"):
        with pytest.raises(nightferry.ConfigurationError, match="root"):
            read_root(wrong)


def test_a_cut_is_continued(server, device, content):
    server.publish(NAME, content, LABELS)
    server.inject(Fault("metadata", file="1.model-recyclables.json", cut_at=100))
    device().refresh(NAME)
    again = server.requests[-1]
    assert again.headers["Range"] == "bytes=100-"


def test_the_application_key_stays_at_its_server(server, device, content, clock):
    server.publish(NAME, content, LABELS)
    with FakeServer(now=clock) as elsewhere:
        elsewhere.repository.restore(server.repository.files)
        for name in ("timestamp.json", "2.snapshot.json"):
            location = f"{elsewhere.url}/api/v1/metadata/{name}"
            server.inject(
                Fault("metadata", file=name, status=302, headers=(("Location", location),))
            )
        assert install(server, device()).counter == 1
        assert elsewhere.count("metadata") == 2
        assert all(request.headers["X-App-Key"] is None for request in elsewhere.requests)
    assert server.requests[-1].headers["X-App-Key"] == "secret"

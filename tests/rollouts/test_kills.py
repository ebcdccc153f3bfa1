"""Killed anywhere in the signing of a release: devices get the old or the new one, and it is valid.

Once at every write, commit and signature in turn; once on a whole server, whose worker is killed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from server.delivery.decision_set import holder
from server.registry.models import Model
from server.rollouts import actions, queries
from tests.support.data import REPOSITORY
from tests.support.factories import make_model, make_version, publish, release
from tests.support.server import LiveServer, running_server
from tests.trust.device import Device
from tests.trust.test_kills import rounds


@pytest.mark.django_db(transaction=True)
def test_at_every_write_commit_and_signature(tmp_path: Path) -> None:
    model = make_model()
    release(make_version(model))
    devices = [Device(tmp_path / "remembers")]

    def sign_the_next(number: int) -> None:
        newer = make_version(Model.objects.get(pk=model.pk))
        actions.release_version(version=newer, reason=f"round {number}")
        publish(model)

    for number in rounds(sign_the_next):
        devices = [devices[0], Device(tmp_path / f"fresh-{number}")]
        served = offered(model)
        assert_signed(devices, served)
        if queries.is_signed(model):
            continue
        # Whoever comes next goes on, and devices get what the killed process was about to sign.
        publish(model)
        assert offered(model)["label"] == f"v{newest_label(model)}"
        assert_signed(devices, offered(model))
    assert number > 40


def newest_label(model: Model) -> int:
    return model.channels.get().next_label - 1


def offered(model: Model) -> dict[str, Any]:
    """Return the manifest that devices are offered, which there always is."""
    holder.close()
    decisions = holder.refresh()
    manifests = decisions.models[model.slug].manifests
    (found,) = (
        one
        for one in manifests.values()
        if one["artifact"]
        and (one["artifact"]["runtime"], one["artifact"]["precision"]) == ("tflite", "int8")
    )
    return found


def assert_signed(devices: list[Device], manifest: dict[str, Any]) -> None:
    """See that a device that was here before, and one that was not, find what is offered."""
    artifact = manifest["artifact"]
    for device in devices:
        device.refresh()
        listed = device._updater.get_targetinfo(artifact["target"])
        assert listed is not None
        assert listed.hashes == {"sha256": artifact["sha256"]}
        assert listed.custom["label"] == manifest["label"]
        policy = device._updater.get_targetinfo("recyclables/policy").custom
        assert policy["min_counter"] <= listed.custom["counter"]
        assert artifact["sha256"] not in policy["revoked"]


MAKE_VERSIONS = """
import django
django.setup()
from tests.support import factories
model = factories.make_model()
for _ in range(4):
    factories.make_version(model)
"""


def test_a_server_whose_worker_is_killed_while_it_signs(tmp_path: Path) -> None:
    # Its own database: other tests may be using the one that is configured.
    quick = {"JOB_LEASE_S": "2", "JOB_REAP_S": "1", "JOB_RESEND_S": "2", "DATABASE_URL": ""}
    with running_server(tmp_path / "server", **quick) as server:
        extra = {"DJANGO_SETTINGS_MODULE": "server.settings"}
        command = [sys.executable, "-c", MAKE_VERSIONS]
        subprocess.run(command, cwd=REPOSITORY, env={**server.env, **extra}, check=True)
        put(server, 1)
        wait_for_label(server, "v1")
        root = fetch(f"{server.url}/api/v1/metadata/1.root.json")
        for number, wait_s in enumerate((0.05, 0.3, 0.9), start=2):
            put(server, number)
            time.sleep(wait_s)
            os.kill(worker_of(server), signal.SIGKILL)
            assert poll(server)["label"] in {f"v{number - 1}", f"v{number}"}
            wait_for_label(server, f"v{number}")
            assert_found_over_http(server, root, tmp_path / f"device-{number}")


def put(server: LiveServer, version: int) -> None:
    path = "/models/recyclables/channels/production/releases"
    made = server.call("POST", path, {"version": version})
    assert (made["label"], made["state"]) == (f"v{version}", "signing")


def poll(server: LiveServer) -> dict[str, Any]:
    answer: dict[str, Any] = server.call(
        "GET", "/models/recyclables/update?device=d&runtime=tflite"
    )
    return answer


def wait_for_label(server: LiveServer, label: str) -> None:
    deadline = time.monotonic() + 120
    while (poll(server) or {}).get("label") != label:
        assert time.monotonic() < deadline, server.log()[-5000:]
        time.sleep(0.1)


def worker_of(server: LiveServer) -> int:
    return int(re.findall(r"^worker *\| started, process (\d+)", server.log(), re.MULTILINE)[-1])


def assert_found_over_http(server: LiveServer, root: bytes, folder: Path) -> None:
    """See with a client of The Update Framework what the poll offers; fetch it."""
    artifact = poll(server)["artifact"]
    folder.mkdir()
    client = Updater(
        str(folder),
        f"{server.url}/api/v1/metadata/",
        target_dir=str(folder),
        fetcher=Fetcher(),
        bootstrap=root,
    )
    client.refresh()
    listed = client.get_targetinfo(artifact["target"])
    assert listed is not None
    assert listed.hashes == {"sha256": artifact["sha256"]}
    listed.verify_length_and_hashes(fetch(server.url + artifact["path"]))


class Fetcher(FetcherInterface):
    """Plain HTTP that closes what it opens."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            return iter([fetch(url)])
        except urllib.error.HTTPError as error:
            error.close()
            raise DownloadHTTPError(str(error), error.code) from error


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        content: bytes = answer.read()
    return content

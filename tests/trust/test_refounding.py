"""A repository anew, once two root keys are gone: new apps follow, old ones keep what they have."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import nightferry
import pytest
from django.core.management import CommandError
from django.utils import timezone
from nightferry.errors import MetadataInvalidError
from tuf.api.exceptions import RepositoryError

from server.http.models import AuditEntry
from server.rollouts.models import Signing
from server.trust import actions, queries, roles, signers
from server.trust.models import MetadataFile
from tests.support import factories
from tests.support.server import ROOT, LiveServer, running_server
from tests.trust.device import Device, look
from tests.trust.factories import make_ecdsa_key, make_target, publish, reroot
from tests.trust.test_command import keygen, trust

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper

WORDS = "leave old apps behind"


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Type the last of these when asked."""
    words = [WORDS]
    monkeypatch.setattr("builtins.input", lambda _: words[-1])
    return words


@pytest.mark.django_db
@pytest.mark.usefixtures("typed")
def test_new_apps_follow_and_old_ones_never_do(tmp_path: Path) -> None:
    target, digits = make_target("one"), make_target("digits", model="digits")
    publish(target)
    publish(digits, model="digits")
    old_root = queries.first_root()
    away = Device(tmp_path / "away")
    away.refresh()
    reroot(signers.settings.TRUST_KEYS)
    before = queries.current_versions()
    names = {str(file) for file in MetadataFile.objects.all()}
    old = [away, Device(tmp_path / "up to date"), Device(tmp_path / "first", old_root)]
    look(old[1:], [target, digits])

    out = trust("refound")

    assert "Apps that carry the present root, or one before it, keep the models" in out
    new = Device(tmp_path / "new")
    look([new], [target, digits])
    # No name is used twice: caches keep files for a year.
    served = {str(file) for file in MetadataFile.objects.filter(is_archived=False)}
    assert not served & names
    assert all(queries.current_versions()[role] > version for role, version in before.items())
    # Who takes the first root on trust asks for version 1.
    assert queries.metadata_file("1.root.json") == queries.first_root() != old_root
    for device in old:
        with pytest.raises(RepositoryError):
            device.refresh()
    entry = AuditEntry.objects.get(action="trust.refound")
    assert entry.detail["old_root_sha256"] != entry.detail["new_root_sha256"]
    assert "files of an earlier repository" in trust("status")

    changed, later = make_target("two", label="v2"), timezone.now() + dt.timedelta(days=200)
    publish(changed)
    actions.read_back(role=roles.role_of("recyclables"), targets=[changed])
    assert roles.ROOT in actions.renew(now=later).signed
    look([new, Device(tmp_path / "fresh", queries.first_root())], [changed, digits], later)
    assert MetadataFile.objects.filter(is_archived=True).count() == len(names)
    with pytest.raises(RepositoryError):
        old[0].refresh(later)


@pytest.mark.django_db
def test_nothing_happens_without_the_words_nor_with_an_old_key(
    tmp_path: Path, typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CommandError, match="There is no root yet"):
        trust("refound")
    publish(make_target())
    device = Device(tmp_path / "device")
    keys = sorted(signers.settings.TRUST_KEYS.iterdir())

    typed.append("yes")
    with pytest.raises(CommandError, match="Nothing was changed"):
        trust("refound")
    typed.append(WORDS)
    (timestamp,) = signers.files_of("timestamp")
    with pytest.raises(CommandError, match="other keys than the present one, also for timestamp"):
        trust("refound", "--public", f"timestamp={timestamp.with_suffix('.pub')}")
    assert sorted(signers.settings.TRUST_KEYS.iterdir()) == keys
    make_ecdsa_key(tmp_path / "elsewhere")
    with pytest.raises(CommandError, match="The key that signs timestamp is not at hand"):
        trust("refound", "--public", f"timestamp={tmp_path / 'elsewhere.pub'}")

    publish(make_target("two"))
    look([device], [make_target("two")])
    monkeypatch.setenv("TRUST_TIMESTAMP_KEY", (tmp_path / "elsewhere").read_text())
    trust("refound")
    look([Device(tmp_path / "new")], [make_target("two")])


@pytest.mark.django_db
@pytest.mark.usefixtures("typed")
def test_people_sign_the_new_root_elsewhere(tmp_path: Path, settings: SettingsWrapper) -> None:
    publish(make_target())
    people = [keygen(tmp_path / f"person {number}", "root") for number in range(3)]
    targets = keygen(tmp_path / "person 3", "targets")
    settings.TRUST_KEYS = tmp_path / "new keys"
    online = [keygen(settings.TRUST_KEYS, kind) for kind in roles.ONLINE]
    public = [*people, targets, *online]
    given = [f"{path.name.partition('-')[0]}={path.with_suffix('.pub')}" for path in public]
    given = [item for pair in given for item in ("--public", pair)]
    before = queries.trusted_root()

    out = trust("refound", *given, "--export", tmp_path / "out")

    assert "trust refound --signed" in out
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files] == ["2.root.json", "3.targets.json"]
    trust("sign", files[0], "--key", people[0])
    trust("sign", files[1], "--key", targets)
    with pytest.raises(CommandError, match="which is not enough"):
        trust("refound", "--signed", *files)
    assert queries.trusted_root() == before
    trust("sign", files[0], "--key", people[1])
    trust("refound", "--signed", *files)
    look([Device(tmp_path / "device")], [make_target()])
    assert "made" not in trust("status")
    assert not signers.files_of("root")


@pytest.mark.django_db
@pytest.mark.usefixtures("typed")
def test_releases_keep_their_counters_and_are_compared_again() -> None:
    model = factories.make_model()
    factories.release(factories.make_version(model))

    trust("refound")

    signing = Signing.objects.get(pk=model.pk)
    assert (signing.next_counter, signing.wanted > signing.signed) == (2, True)
    assert "up to date" in factories.publish(model)
    assert factories.release(factories.make_version(model)).counter == 2


_RELEASE = """
import os, django
os.environ["DJANGO_SETTINGS_MODULE"] = "server.settings"
django.setup()
from tests.support import factories
from server.registry.models import Model
model = Model.objects.filter(slug="recyclables").first() or factories.make_model()
factories.release(factories.make_version(model))
"""


def _release(server: LiveServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RELEASE], cwd=ROOT, env=server.env, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_apps_with_the_new_root_install_and_others_keep_their_model(tmp_path: Path) -> None:
    with running_server(tmp_path / "data") as server:

        def app(root: str, cache: str) -> nightferry.ModelClient:
            return nightferry.ModelClient(
                server.url, trusted_root=tmp_path / root, cache_dir=tmp_path / cache,
                telemetry=False,
            )  # fmt: skip

        _release(server)
        server.manage("trust", "root", "--output", str(tmp_path / "old.json"))
        for cache in ("stays", "updated"):
            with app("old.json", cache) as client:
                assert client.sync("recyclables").label == "v1"
                client.notify_ready("recyclables")

        done = subprocess.run(
            [sys.executable, "manage.py", "trust", "refound"], cwd=ROOT, env=server.env,
            input=f"{WORDS}\n", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        server.manage("trust", "root", "--output", str(tmp_path / "new.json"))
        _release(server)
        offered = "/models/recyclables/update?device=d-1&runtime=tflite"
        deadline = time.monotonic() + 60
        while server.call("GET", offered)["label"] != "v2":
            assert time.monotonic() < deadline, "the web process did not notice the release"
            time.sleep(0.2)

        with app("old.json", "stays") as client:
            with pytest.raises(MetadataInvalidError, match="not signed by the keys that this app"):
                client.sync("recyclables")
            assert client.status("recyclables").current.label == "v1"
        for cache in ("new", "updated"):
            with app("new.json", cache) as client:
                assert client.sync("recyclables").label == "v2"

"""Killed at every statement, commit and signature: devices see a whole, and it can go on."""

from __future__ import annotations

import itertools
import json
import os
import signal
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from securesystemslib.signer import CryptoSigner, Signature
from tuf.api.metadata import Metadata

from server.trust import actions, queries, roles, signers
from server.trust.models import Draft, MetadataFile
from server.trust.targets import SignedTarget
from tests.trust.device import Device, look
from tests.trust.factories import make_target, publish, reroot, rotate

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper

pytestmark = pytest.mark.django_db(transaction=True)


class Killer:
    """Kills the process at its n-th point; a point is before and after each write and signature."""

    def __init__(self, number: int) -> None:
        self._left = number

    def point(self) -> None:
        """Count, and end here when it is the turn."""
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def arm(self) -> None:
        """Watch this process from now on."""
        commit, sign = BaseDatabaseWrapper._commit, CryptoSigner.sign

        def watched_commit(database: BaseDatabaseWrapper) -> Any:
            self.point()
            done = commit(database)
            self.point()
            return done

        def watched_sign(signer: CryptoSigner, payload: bytes) -> Signature:
            self.point()
            made = sign(signer, payload)
            self.point()
            return made

        BaseDatabaseWrapper._commit = watched_commit
        CryptoSigner.sign = watched_sign
        connection.execute_wrappers.append(self._watch_statement)

    def _watch_statement(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        writes = sql.startswith(("INSERT", "UPDATE", "DELETE"))
        if writes:
            self.point()
        done = execute(sql, params, many, context)
        if writes:
            self.point()
        return done


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write down whatever any process signs, before it can be killed for it."""
    path = tmp_path / "record"
    sign = CryptoSigner.sign

    def noted_sign(signer: CryptoSigner, payload: bytes) -> Signature:
        made = sign(signer, payload)
        signed = json.loads(payload)
        # The keys of all models are one: the first part of a path tells them apart.
        model = next(iter(signed.get("targets", {})), "").partition("/")[0]
        line = json.dumps([made.keyid, signed["_type"], model, signed["version"], payload.hex()])
        with path.open("a") as file:
            file.write(line + "\n")
        return made

    monkeypatch.setattr(CryptoSigner, "sign", noted_sign)
    return path


def run_and_kill(action: Callable[[], object], number: int) -> bool:
    """Run in a process of its own that dies at its n-th point; return whether it died."""
    connection.close()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            Killer(number).arm()
            action()
            status = 0
        except Exception:  # noqa: BLE001 - this process must not come back into the test
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status in {0, signal.SIGKILL}
    return os.WIFSIGNALED(status)


def assert_signed_once(record: Path) -> None:
    """See that no key signed two contents under one version of a role."""
    contents = defaultdict(set)
    for line in record.read_text().splitlines():
        *name, payload = json.loads(line)
        contents[tuple(name)].add(payload)
    assert contents
    assert [key for key, found in contents.items() if len(found) > 1] == []


class Watch:
    """Stored bytes, by name: they must never change."""

    def __init__(self) -> None:
        self._seen: dict[str, bytes] = {}

    def look(self) -> None:
        """Compare with what was seen before."""
        now = {str(file): bytes(file.content) for file in MetadataFile.objects.all()}
        assert self._seen.items() <= now.items()
        self._seen = now


def rounds(action: Callable[[int], object]) -> Iterator[int]:
    """Kill an action at its first point, its second, and so on until it survives."""
    for number in itertools.count(1):
        died = run_and_kill(partial(action, number), number)
        yield number
        if not died:
            return


@pytest.mark.parametrize("before", ["nothing", "a release"])
def test_publishing(tmp_path: Path, record: Path, before: str) -> None:
    """Publish for a new model, and for one that devices know."""
    watch = Watch()
    other, current = make_target(model="other"), make_target("release 0")
    publish(other, model="other")
    if before == "a release":
        publish(current)
    old = Device(tmp_path / "old")
    old.refresh()

    def make(number: int) -> SignedTarget:
        model = "recyclables" if before == "a release" else f"model{number}"
        return make_target(f"release {number}", model=model)

    def release(number: int) -> None:
        publish(make(number), model=make(number).path.partition("/")[0])

    for number in rounds(release):
        watch.look()
        fresh = Device(tmp_path / f"fresh {number}", queries.first_root())
        look([old, fresh], [other])
        if before == "a release":
            # The one or the other, nothing between.
            assert fresh.sees(current) is not fresh.sees(make(number))
        release(number)
        watch.look()
        assert not Draft.objects.exists()
        current = make(number)
        look([old, fresh], [other, current])
    assert number > 15
    assert_signed_once(record)


@pytest.mark.parametrize("kind", ["models", "targets", "root"])
def test_other_keys(tmp_path: Path, record: Path, settings: SettingsWrapper, kind: str) -> None:
    """Appoint another key; either all that it signs is new, or nothing is.

    A new key of the targets role changes root, targets, snapshot and timestamp together.
    """
    watch = Watch()
    target = make_target()
    publish(target)
    old = Device(tmp_path / "old")

    def appoint(_: int) -> None:
        if kind == roles.ROOT:
            reroot(settings.TRUST_KEYS)
        else:
            rotate(kind)

    for number in rounds(appoint):
        watch.look()
        fresh = Device(tmp_path / f"fresh {number}", queries.first_root())
        look([old, fresh], [target])
        actions.renew()
        publish(target := make_target(f"release {number}"))
        watch.look()
        look([old, fresh], [target])
    assert number > 10
    if kind != roles.ROOT:
        # Keys named for one command sign before a draft is stored: the server, which could not
        # finish it, must not be held up. What they signed and nobody stored, nobody saw.
        assert_signed_once(record)


def test_several_publish_at_once(tmp_path: Path, record: Path) -> None:
    """Each waits for the others, or helps them; nothing is signed twice and nothing is lost."""
    targets = [make_target(model=f"model{number}") for number in range(6)]
    connection.close()
    children = []
    for target in targets:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                publish(target, model=target.path.partition("/")[0])
                status = 0
            except Exception:  # noqa: BLE001 - this process must not come back into the test
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(targets)

    look([Device(tmp_path / "device", queries.first_root())], targets)
    assert queries.current_versions()["root"] == 1
    assert len(signers.files_of(roles.ROOT)) == 3
    assert_signed_once(record)


def test_the_first_start(tmp_path: Path, settings: SettingsWrapper) -> None:
    """Make keys and root; the next start goes on with the keys that are there."""
    for number in itertools.count(1):
        settings.TRUST_KEYS = tmp_path / f"keys {number}"
        died = run_and_kill(actions.ensure_repository, number)
        roots = queries.metadata_file("1.root.json")
        kept = set(signers.files_of(roles.ROOT))
        actions.ensure_repository()
        publish(make_target())
        assert kept <= set(signers.files_of(roles.ROOT))
        assert len(signers.files_of(roles.ROOT)) == 3
        assert roots in (None, queries.first_root())
        assert (settings.TRUST_KEYS / "1.root.json").read_bytes() == queries.first_root()
        assert Metadata.from_bytes(queries.first_root()).signed.roles["root"].threshold == 2
        look([Device(tmp_path / f"device {number}")], [make_target()])
        MetadataFile.objects.all().delete()
        if not died:
            break
    assert number > 10

"""Other keys: devices that were away follow, and a key that was taken is worth nothing."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.utils import timezone
from tuf.api.exceptions import BadVersionNumberError

from server.domain.errors import Conflict
from server.trust import actions, plans, queries, repository, roles, signers
from server.trust.models import Draft, MetadataFile
from tests.trust.device import Device, look
from tests.trust.factories import make_target, publish, reroot, rotate

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper

pytestmark = pytest.mark.django_db
ROTATABLE = (roles.TARGETS, roles.MODELS, roles.SNAPSHOT, roles.TIMESTAMP)


@pytest.mark.parametrize("kind", ROTATABLE)
def test_devices_follow_a_new_key_and_the_old_one_signs_no_more(
    tmp_path: Path, settings: SettingsWrapper, kind: str
) -> None:
    target = make_target()
    publish(target)
    publish(make_target(model="digits"), model="digits")
    device = Device(tmp_path / "device")
    device.refresh()
    (old,) = signers.files_of(kind)

    rotate(kind)

    old.rename(tmp_path / "taken.pem")
    fresh = Device(tmp_path / "fresh", queries.first_root())
    look([device, fresh], [target])
    changed = make_target("two")
    publish(changed)
    publish(make_target(model="glass"), model="glass")
    actions.renew(now=timezone.now() + dt.timedelta(days=100))
    look([device, fresh], [changed])
    for path in signers.files_of(kind):
        path.unlink()
    (tmp_path / "taken.pem").rename(old)
    with pytest.raises(Conflict):
        publish(make_target(model="more"), model="more")


def test_a_device_with_the_first_root_follows_any_number_of_roots(tmp_path: Path) -> None:
    target = make_target()
    publish(target)
    old, older = (Device(tmp_path / name) for name in ("old", "older"))
    old.refresh()

    for kind in (roles.TIMESTAMP, roles.SNAPSHOT, roles.TARGETS):
        rotate(kind)
    made = reroot(signers.settings.TRUST_KEYS)
    reroot(tmp_path / "safe", made)
    rotate(roles.TIMESTAMP, keyring=signers.Keyring([*(tmp_path / "safe").glob("*.pem")]))

    assert queries.current_versions()[roles.ROOT] == 7
    look([old, older, Device(tmp_path / "new")], [target])


def test_two_of_the_old_and_two_of_the_new_keys_make_a_root(
    tmp_path: Path, settings: SettingsWrapper
) -> None:
    target = make_target()
    publish(target)
    device = Device(tmp_path / "device")
    old = signers.files_of(roles.ROOT)
    new = [signers.make_key(tmp_path / "new", roles.ROOT) for _ in range(3)]
    for path in old:
        path.rename(path.with_suffix(".away"))
    old = [path.with_suffix(".away") for path in old]
    plan = plans.replace_root_keys([signers.read_public(path) for path in new])

    for at_hand in (old, new, [old[0], *new], [*old, new[0]], []):
        with pytest.raises(Conflict) as caught:
            actions.change(plan=plan, keyring=signers.Keyring(at_hand))
        assert caught.value.code == "signing_key_missing"
        assert queries.current_versions()[roles.ROOT] == 1
    actions.change(plan=plan, keyring=signers.Keyring([*old[:2], *new[1:]]))

    look([device], [target])
    assert queries.current_versions()[roles.ROOT] == 2


def test_a_key_signs_for_a_kind_once() -> None:
    publish(make_target())
    key = signers.Keyring().public_key(roles.TIMESTAMP)
    assert key is not None

    with pytest.raises(Conflict) as caught:
        actions.change(plan=plans.rotate(roles.TIMESTAMP, key))

    assert caught.value.code == "key_in_use"


@pytest.mark.parametrize("kind", [roles.MODELS, roles.SNAPSHOT, roles.TIMESTAMP])
def test_a_key_lost_in_the_middle_of_publishing_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    target, next_target = make_target("one"), make_target("two")
    publish(target)
    device = Device(tmp_path / "device")
    device.refresh()
    finish = repository.finish
    with monkeypatch.context() as patch:
        # As if killed between the drafts and their signatures.
        patch.setattr(repository, "finish", lambda *_, **__: None)
        publish(next_target)
    assert Draft.objects.count() == 3
    for path in signers.files_of(kind):
        path.unlink()
    with pytest.raises(Conflict, match=f"trust rotate {kind}"):
        finish(signers.Keyring())
    look([device], [target])

    rotate(kind)

    assert publish(next_target).is_new
    look([device, Device(tmp_path / "fresh")], [next_target])


def test_devices_come_back_after_the_database_went_back_in_time(tmp_path: Path) -> None:
    publish(make_target("one"))
    backup = {*MetadataFile.objects.values_list("pk", flat=True)}
    publish(make_target("two"))
    publish(make_target("three"))
    ahead = Device(tmp_path / "ahead")
    ahead.refresh()
    MetadataFile.objects.exclude(pk__in=backup).delete()
    with pytest.raises(BadVersionNumberError):
        ahead.refresh()

    rotate(roles.TIMESTAMP)
    rotate(roles.SNAPSHOT)

    look([ahead, Device(tmp_path / "fresh")], [make_target("one")])
    publish(make_target("four"))
    look([ahead], [make_target("four")])

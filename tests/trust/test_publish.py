"""What is published, as a real client sees it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.db import transaction
from django.utils import timezone
from tuf.api.exceptions import ExpiredMetadataError

from server.domain.errors import Conflict, DomainError, InvalidInput
from server.trust import actions, queries, roles
from server.trust.models import MetadataChanged, MetadataFile
from server.trust.targets import SignedTarget
from tests.trust.device import Device, look
from tests.trust.factories import make_policy, make_target, publish

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper

pytestmark = pytest.mark.django_db
ROLE = roles.role_of("recyclables")


def test_a_device_finds_what_was_published_and_nothing_withdrawn(tmp_path: Path) -> None:
    first, policy = make_target("one", counter=1), make_policy(min_counter=1)
    published = publish(first, policy)
    device = Device(tmp_path / "device")
    look([device], [first, policy])
    assert (published.role, published.is_new) == (1, True)

    second = make_target("two", label="v2", counter=2)
    assert publish(second, policy).role == 2

    fresh = Device(tmp_path / "fresh", queries.first_root())
    look([device, fresh], [second, policy])
    assert not device.lists(first.path)
    assert not fresh.lists(first.path)


def test_models_have_roles_of_their_own(tmp_path: Path) -> None:
    glass, digits = make_target(), make_target("digits", model="digits")
    publish(glass)
    publish(digits, model="digits")

    look([Device(tmp_path / "device")], [glass, digits])
    with pytest.raises(InvalidInput) as caught:
        publish(digits)
    assert caught.value.code == "target_outside_role"


def test_the_same_targets_are_signed_once() -> None:
    first = publish(make_target(), make_policy())
    again = publish(make_policy(), make_target())

    assert not again.is_new
    assert (again.role, again.targets, again.snapshot, again.timestamp) == (
        first.role,
        first.targets,
        first.snapshot,
        first.timestamp,
    )


def test_a_role_may_list_nothing_any_more(tmp_path: Path) -> None:
    target = make_target()
    publish(target)
    device = Device(tmp_path / "device")
    device.refresh()

    publish()
    assert not publish().is_new

    device.refresh()
    assert not device.lists(target.path)
    actions.read_back(role=ROLE, targets=[])
    assert queries.current_versions()[ROLE] == 2


def test_reading_back_notices_what_devices_would_not_see() -> None:
    target = make_target(counter=1)
    publish(target)

    actions.read_back(role=ROLE, targets=[target])

    for wrong in ([], [make_target("other", counter=1)], [make_target(counter=2)]):
        with pytest.raises(DomainError) as caught:
            actions.read_back(role=ROLE, targets=wrong)
        assert caught.value.code == "read_back_failed"
    with pytest.raises(DomainError, match="is not delegated"):
        actions.read_back(role="model-unknown", targets=[])
    publish(target, make_policy(), now=timezone.now() - dt.timedelta(hours=25))
    with pytest.raises(DomainError, match="expired"):
        actions.read_back(role=ROLE, targets=[target, make_policy()])


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (make_target(label="v2", preprocessing={"mean": [123.675]}), "fraction_in_custom"),
        (SignedTarget("recyclables/policy", "ab", -1), "invalid_target"),
        (SignedTarget("recyclables/other", "ab" * 32, 1), "target_outside_role"),
    ],
)
def test_what_cannot_be_signed_is_refused_and_nothing_changes(
    target: SignedTarget, code: str
) -> None:
    publish(make_target())
    before = queries.current_versions()

    with pytest.raises(InvalidInput) as caught:
        publish(make_target(), target)

    assert caught.value.code == code
    assert queries.current_versions() == before


def test_an_expired_timestamp_is_refused(tmp_path: Path) -> None:
    now = timezone.now()
    publish(make_target(), now=now)
    device = Device(tmp_path / "device")
    device.refresh(now + dt.timedelta(hours=23))

    with pytest.raises(ExpiredMetadataError):
        device.refresh(now + dt.timedelta(hours=25))


def test_only_what_was_signed_is_served() -> None:
    assert queries.metadata_file("timestamp.json") is None
    assert not queries.is_initialised()
    publish(make_target())

    served = [
        "timestamp.json",
        "1.root.json",
        "1.snapshot.json",
        "1.targets.json",
        f"1.{ROLE}.json",
    ]
    assert [name for name in served if queries.metadata_file(name) is None] == ["1.snapshot.json"][
        :0
    ]
    refused = (
        "1.timestamp.json", "root.json", "2.root.json", "01.root.json", "../1.root.json",
        "9999999999.root.json", "1.Root.json", "1.root.json\n", "", "1.model-unknown.json",
    )  # fmt: skip
    assert [name for name in refused if queries.metadata_file(name) is not None] == []


def test_what_is_signed_cannot_be_changed_nor_taken_back() -> None:
    publish(make_target())
    file = MetadataFile.objects.get(role=ROLE)

    with pytest.raises(MetadataChanged):
        file.save()


@pytest.mark.django_db(transaction=True)
def test_publishing_within_a_transaction_is_refused() -> None:
    with pytest.raises(RuntimeError, match="durable"), transaction.atomic():
        publish(make_target())


def test_lost_keys_and_a_lost_database_are_told_from_a_first_start(
    settings: SettingsWrapper,
) -> None:
    assert actions.ensure_repository()
    assert not actions.ensure_repository()
    assert str(settings.TRUST_KEYS) in actions.first_start_notice()
    keys = sorted(settings.TRUST_KEYS.glob("*.pem"))
    assert [path.name.partition("-")[0] for path in keys] == [
        "models", "root", "root", "root", "snapshot", "targets", "timestamp",
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert settings.TRUST_KEYS.stat().st_mode & 0o777 == 0o700
    root = queries.trusted_root()

    for path in keys:
        path.rename(path.with_suffix(".away"))
    for attempt in (lambda: publish(make_target()), actions.require_keys, actions.renew):
        with pytest.raises(Conflict) as caught:
            attempt()
        assert caught.value.code in {"role_not_delegated", "signing_key_missing"}
    assert queries.trusted_root() == root
    assert list(settings.TRUST_KEYS.glob("*.pem")) == []

    MetadataFile.objects.all().delete()
    with pytest.raises(Conflict, match="Restore") as caught:
        publish(make_target())
    assert caught.value.code == "trust_metadata_lost"


def test_a_new_model_needs_the_key_of_the_targets_role(settings: SettingsWrapper) -> None:
    publish(make_target())
    (key,) = settings.TRUST_KEYS.glob("targets-*.pem")
    key.unlink()
    before = queries.current_versions()

    with pytest.raises(Conflict, match="trust delegate digits") as caught:
        publish(make_target(model="digits"), model="digits")

    assert caught.value.code == "role_not_delegated"
    assert queries.current_versions() == before
    assert publish(make_target("two")).is_new

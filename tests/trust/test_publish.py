"""What is published, as a real TUF client sees it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from server.domain.errors import DomainError
from server.trust import actions
from server.trust.targets import SignedTarget
from tests.trust.device import Device

pytestmark = pytest.mark.django_db

ROLE = "model-recyclables"
PATHS = ("recyclables/policy", "recyclables/patches/*", "recyclables/*/*/*")


def target(content: str, label: str = "v1", **custom: Any) -> SignedTarget:
    data = content.encode()
    path = f"recyclables/production/{label}/tflite-int8"
    return SignedTarget(
        path, hashlib.sha256(data).hexdigest(), len(data), {"kind": "artifact"} | custom
    )


def publish(*targets: SignedTarget, **options: Any):
    return actions.publish(role=ROLE, paths=PATHS, targets=targets, **options)


def test_a_device_finds_what_was_published(tmp_path: Path) -> None:
    wanted = target("one", counter=1)

    published = publish(wanted)

    device = Device(tmp_path / "device")
    device.refresh()
    assert device.sees(wanted)
    assert (published.role, published.is_new) == (1, True)
    actions.read_back(role=ROLE, targets=[wanted])
    with pytest.raises(DomainError, match="do not see"):
        actions.read_back(role=ROLE, targets=[target("two", counter=1)])
    with pytest.raises(DomainError, match="do not see"):
        actions.read_back(role=ROLE, targets=[])


def test_the_same_targets_are_signed_once(tmp_path: Path) -> None:
    first = publish(target("one"))
    again = publish(target("one"))

    assert not again.is_new
    assert (again.role, again.snapshot, again.timestamp) == (
        first.role,
        first.snapshot,
        first.timestamp,
    )

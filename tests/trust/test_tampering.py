"""What somebody writes into the database without a key is never signed."""

from __future__ import annotations

import json

import pytest

from server.domain.errors import Conflict
from server.trust import actions, queries, roles
from server.trust.models import Draft, MetadataFile
from tests.trust.factories import make_target, publish

ROLE = roles.role_of("recyclables")

pytestmark = pytest.mark.django_db(transaction=True)


def _forged() -> tuple[MetadataFile, bytes]:
    """Return the role's newest file, and another content for its next version."""
    file = MetadataFile.objects.filter(role=ROLE).order_by("-version").first()
    document = json.loads(bytes(file.content))
    (target,) = document["signed"]["targets"].values()
    target["hashes"]["sha256"] = "ee" * 32
    return file, json.dumps(document).encode()


def test_a_draft_of_somebody_else_is_never_signed() -> None:
    publish(make_target())
    file, forged = _forged()
    document = json.loads(forged)
    document["signed"]["version"] += 1
    document["signatures"] = []
    Draft.objects.create(
        role=ROLE,
        version=file.version + 1,
        content=json.dumps(document).encode(),
        created_at=file.created_at,
    )

    actions.renew()

    assert not Draft.objects.exists()
    assert queries.current_versions()[ROLE] == file.version


def test_changed_metadata_are_not_signed_again() -> None:
    publish(make_target())
    file, forged = _forged()
    MetadataFile.objects.filter(pk=file.pk).update(content=forged)
    with pytest.raises(Conflict) as raised:
        publish()
    assert raised.value.code == "metadata_changed"
    assert actions.listed_targets(role=ROLE) == []

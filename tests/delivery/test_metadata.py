"""Signed metadata as devices fetch them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.registry.queries import get_model
from server.rollouts import actions as rollouts
from server.trust import queries as trust
from tests.support.factories import make_model, make_version, publish, release

pytestmark = pytest.mark.django_db
METADATA = "/api/v1/metadata/"


@pytest.fixture
def current(db: Any) -> dict[str, int]:
    release(make_version(make_model(is_open=False)))
    return trust.current_versions()


def test_everybody_may_fetch_the_files_that_a_version_names(client, current):
    timestamp = client.get(f"{METADATA}timestamp.json")
    assert timestamp.status_code == 200
    assert timestamp["Content-Type"] == "application/json"
    assert timestamp["Cache-Control"] == "no-cache"
    said = timestamp.json()["signed"]["meta"]["snapshot.json"]["version"]
    assert said == current["snapshot"]
    for role in ("root", "targets", "snapshot", "model-recyclables"):
        answer = client.get(f"{METADATA}{current[role]}.{role}.json")
        assert answer.status_code == 200, role
        assert "immutable" in answer["Cache-Control"]
        assert json.loads(answer.content)["signatures"]


def test_a_file_that_is_known_is_not_sent_again(client, current):
    address = f"{METADATA}timestamp.json"
    first = client.get(address)
    again = client.get(address, headers={"If-None-Match": first["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = client.head(address)
    assert (head.status_code, head.content, head["ETag"]) == (200, b"", first["ETag"])
    model = get_model("recyclables")
    rollouts.kill(model=model)
    publish(model)
    assert client.get(address, headers={"If-None-Match": first["ETag"]}).status_code == 200
    assert client.post(address).status_code == 405


@pytest.mark.parametrize(
    "name",
    ["99.root.json", "1.timestamp.json", "root.json", "snapshot-0a1b2c3d.pem", "..", "0"],
)
def test_nothing_else_is_there_and_no_cache_remembers_that(client, current, name):
    answer = client.get(f"{METADATA}{name}")
    assert answer.status_code == 404
    assert answer.json()["code"] == "unknown_metadata"
    assert answer["Cache-Control"] == "no-store"

"""The artifacts of released models, as the whole server sends them in each of its ways."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from tests.http.conformance import (
    CASES,
    CONTENT,
    WAYS,
    Case,
    Subject,
    ask,
    assert_conforms,
    assert_head_conforms,
    place_for,
    request,
    serving,
)
from tests.support.data import REPOSITORY

pytestmark = pytest.mark.services

# In a process of its own: the database and the blobs are those of the server under test.
_RELEASE = """
import json, random, sys
import django
django.setup()
from server import blobs
from server.delivery.actions import create_application_key
from server.registry import actions as registry
from tests.http.conformance import CONTENT
from tests.support import factories

def release(slug, content, is_open):
    model = factories.make_model(slug, is_open=is_open)
    version = registry.draft_version(
        model=model, source="uploaded", labels=["glass", "metal"], lineage=factories.LINEAGE,
        preprocessing=factories.PREPROCESSING,
    )
    blob = blobs.store().put_bytes(content)
    registry.add_variant(
        version=version, runtime="tflite", precision="int8", sha256=blob.sha256,
        size_bytes=blob.size_bytes, media_type="application/vnd.tflite",
        filename=f"{slug}-3.tflite", is_shipped=True,
    )
    factories.release(registry.publish_version(version=version, metrics={}))
    return model, blob.sha256

_, everybody = release("recyclables", CONTENT, True)
keyed, few = release("signs", CONTENT[::-1], False)
_, key = create_application_key(name="an app", models=[keyed])
print(json.dumps({"open": everybody, "keyed": few, "key": key}))
"""


@dataclass(frozen=True)
class Served:
    """One running server: its address, the open and the keyed file, and the key."""

    way: str
    url: str
    open_sha256: str
    keyed_sha256: str
    key: str

    @property
    def subject(self) -> Subject:
        """Return the open model's file, which holds the table's content."""
        return Subject(
            way=self.way,
            url=f"{self.url}/api/v1/artifacts/{self.open_sha256}",
            sha256=self.open_sha256,
            media_type="application/vnd.tflite",
            disposition='attachment; filename="recyclables-3.tflite"',
        )

    @property
    def keyed(self) -> Subject:
        """Return the keyed model's file."""
        return replace(
            self.subject,
            url=f"{self.url}/api/v1/artifacts/{self.keyed_sha256}",
            sha256=self.keyed_sha256,
            cache_control="private, max-age=31536000, immutable",
        )


@pytest.fixture(scope="module", params=WAYS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Release an open and a keyed model on a server of its own for each way of sending."""
    folder = tmp_path_factory.mktemp("server")
    s3 = request.getfixturevalue("s3_server") if request.param.endswith("s3") else None
    place = place_for(request.param, folder / "blobs", s3)
    own = {
        "NIGHTFERRY_DATA": str(folder),
        "DATABASE_URL": f"sqlite:///{folder / 'database.sqlite3'}",
        "DJANGO_SETTINGS_MODULE": "server.settings",
        "DECISION_REFRESH_S": "1",
        "LOG_LEVEL": "ERROR",
    }
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **place.env, **own}
    _run(["manage.py", "migrate", "--verbosity", "0"], env)
    made = json.loads(_run(["-c", _RELEASE], env).splitlines()[-1])
    with serving(place, "server.wsgi:application", own) as (url, _):
        served = Served(request.param, url, made["open"], made["keyed"], made["key"])
        _wait_until_known(served.subject)
        yield served


def _run(arguments: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _wait_until_known(subject: Subject) -> None:
    """Wait until the web process has read the releases from the database."""
    deadline = time.monotonic() + 30
    while request(subject.url, "HEAD", {}).status != 200:
        assert time.monotonic() < deadline, "the file never appeared"
        time.sleep(0.1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says.replace(" ", "-"))
def test_an_artifact_conforms(served: Served, case: Case) -> None:
    assert_conforms(served.subject, case, ask(served.subject, "GET", case.headers))
    assert_head_conforms(served.subject, case, ask(served.subject, "HEAD", case.headers))


def test_a_keyed_artifact_takes_its_key_and_stays_out_of_shared_caches(served: Served) -> None:
    for others in ({}, {"X_App_Key": "nfk_wrong"}):
        refused = ask(served.keyed, "GET", {}, **others)
        assert refused.status == 401
        assert json.loads(refused.body)["code"] == "invalid_app_key"
        assert "immutable" not in refused.headers.get("Cache-Control", "")
    whole = ask(served.keyed, "GET", {}, X_App_Key=served.key)
    assert (whole.status, whole.body) == (200, CONTENT[::-1])
    part = ask(served.keyed, "GET", {"Range": "bytes=3-9"}, X_App_Key=served.key)
    assert (part.status, part.body) == (206, CONTENT[::-1][3:10])
    known = ask(served.keyed, "GET", {"If-None-Match": "{etag}"}, X_App_Key=served.key)
    assert known.status == 304
    for answer in (whole, part, known):
        if not answer.redirected:
            assert answer.headers["Cache-Control"] == served.keyed.cache_control
    # A redirect names a secret address for a while: nobody may keep it.
    first = request(served.keyed.url, "GET", {"X-App-Key": served.key})
    assert first.status == (302 if served.way.startswith("redirect") else 200)
    assert first.status == 200 or first.headers["Cache-Control"] == "no-store"


def test_what_is_not_released_is_not_there(served: Served) -> None:
    for sha256 in ("0" * 64, served.open_sha256.upper(), served.open_sha256[:63]):
        url = f"{served.url}/api/v1/artifacts/{sha256}"
        for headers in ({}, {"Range": "bytes=0-9"}, {"If-None-Match": "*"}):
            answer = request(url, "GET", headers)
            assert answer.status == 404
            assert "immutable" not in answer.headers.get("Cache-Control", "")


def test_other_methods_are_refused(served: Served) -> None:
    for method in ("POST", "PUT", "DELETE"):
        answer = request(served.subject.url, method, {})
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, HEAD"

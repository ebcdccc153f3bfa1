"""Over a real server and real databases: uploads at once, bodies too large, helpers that go."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.photos.people import encoded, picture
from tests.support import services
from tests.support.data import REPOSITORY

AT_ONCE = 6


class Phone:
    """A volunteer's phone: one connection a call, as the phone's own HTTP library."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.token = ""
        body = {
            "nickname": f"p-{uuid.uuid4().hex[:8]}",
            "consent_version": "1",
            "consent": {"train": True},
        }
        status, answer = self.call(
            "POST", "/volunteers", json.dumps(body).encode(), "application/json"
        )
        assert status == 201
        self.token = answer["token"]

    def call(self, method: str, path: str, body: bytes = b"", kind: str = "", **headers: str):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if kind:
            headers["Content-Type"] = kind
        connection.request(method, f"/api/v1{path}", body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, json.loads(content) if content else None

    def send(self, image: bytes, **headers: str):
        fields = {"model": "things", "label": "glass"}
        parts = [
            f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        ]
        parts.append(
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\n'
            b"Content-Type: image/jpeg\r\n\r\n" + image + b"\r\n--b--\r\n"
        )
        kind = "multipart/form-data; boundary=b"
        return self.call("POST", "/photos", b"".join(parts), kind, **headers)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request, tmp_path_factory) -> Iterator[services.Web]:
    data: Path = tmp_path_factory.mktemp(request.param)
    for label in ("glass", "metal"):
        (data / "import" / label).mkdir(parents=True)
        (data / "import" / label / "1.jpg").write_bytes(picture(ord(label[0])))
    env = {"NIGHTFERRY_DATA": str(data), "DATABASE_URL": "", "BLOB_STORE_URL": ""}
    if request.param == "postgresql":
        postgresql = request.getfixturevalue("postgresql_server")
        env["DATABASE_URL"] = postgresql.create_database()
    for command in (["migrate", "-v0"], ["import_photos", "things", str(data / "import")]):
        subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=REPOSITORY,
            env={**os.environ, **env},
            check=True,
            capture_output=True,
            timeout=180,
        )
    with services.waitress("server.wsgi:application", threads=AT_ONCE, env=env) as web:
        yield web


def at_once(calls):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [job.result() for job in [pool.submit(call) for call in calls]]


def test_one_photo_sent_at_once_from_many_hands_is_one_photo(server):
    phone = Phone(server.port)
    answers = at_once([lambda: phone.send(picture(1), **{"Idempotency-Key": "k"})] * AT_ONCE)
    assert sorted(status for status, _ in answers) == [200] * (AT_ONCE - 1) + [201]
    assert len({answer["id"] for _, answer in answers}) == 1


def test_near_duplicates_sent_at_once_do_not_slip_past_each_other(server):
    phone = Phone(server.port)
    versions = [encoded(picture(2), quality=quality) for quality in range(60, 60 + AT_ONCE)]
    answers = at_once([lambda image=image: phone.send(image) for image in versions])
    assert sorted(status for status, _ in answers) == [201] + [422] * (AT_ONCE - 1)


def test_bytes_survive_when_one_of_two_owners_leaves_as_the_other_arrives(server):
    for seed in range(10, 14):
        leaver, comer = Phone(server.port), Phone(server.port)
        _, left = leaver.send(picture(seed))
        _, (_, came) = at_once(
            [
                lambda leaver=leaver, left=left: leaver.call("DELETE", f"/photos/{left['id']}"),
                lambda comer=comer, seed=seed: comer.send(picture(seed)),
            ]
        )
        if "id" not in came:
            # It came a moment later, and withdrawn photos stay out.
            assert came["code"] == "withdrawn_photo"
            continue
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        headers = {"Authorization": f"Bearer {comer.token}"}
        connection.request("GET", f"/api/v1/photos/{came['id']}/image", headers=headers)
        assert connection.getresponse().status == 200
        connection.close()


def test_a_body_over_the_limit_is_answered_413_and_the_server_goes_on(server):
    phone = Phone(server.port)
    status, problem = phone.send(bytes(21 * 2**20))
    assert (status, problem["code"]) == (413, "too_large")
    status, _ = phone.send(picture(3))
    assert status == 201

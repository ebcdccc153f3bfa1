from __future__ import annotations

import json
import time
import uuid
from wsgiref.util import setup_testing_defaults

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from server.delivery.actions import create_application_key, revoke_application_key
from server.delivery.decision_set import holder
from server.registry.actions import retire_model
from server.registry.models import Variant
from server.rollouts import actions as rollouts
from server.telemetry import actions as telemetry
from tests.support.factories import make_model, make_version, publish, release

pytestmark = pytest.mark.django_db


def poll(client: Client, model: str = "recyclables", *, headers=None, **query):
    query = {"device": "d-1", "runtime": "tflite", **query}
    return client.get(f"/api/v1/models/{model}/update", query, headers=headers or {})


@pytest.fixture
def released():
    model = make_model()
    release(make_version(model))
    holder.refresh()
    return model


def test_a_poll_gets_the_manifest_and_then_304_with_no_query(
    client, released, django_assert_num_queries
):
    with django_assert_num_queries(0):
        answer = poll(client)
    manifest = answer.json()
    assert answer.status_code == 200
    assert (manifest["label"], manifest["version"], manifest["kind"]) == ("v1", 1, "update")
    assert manifest["artifact"]["precision"] == "float16"
    assert manifest["labels"] == ["glass", "metal"]
    with django_assert_num_queries(0):
        again = poll(client, current="v1", headers={"If-None-Match": answer["ETag"]})
    assert again.status_code == 304
    assert again.content == b""
    assert again["ETag"] == answer["ETag"]
    assert poll(client, current="v1").json()["kind"] == "none"


def test_every_member_of_the_contract_is_there_and_no_address_expires(client, released):
    manifest = poll(client).json()
    assert set(manifest) == {
        "spec_version",
        "model",
        "channel",
        "label",
        "version",
        "kind",
        "reason",
        "created_at",
        "mandatory",
        "notes",
        "artifact",
        "patches",
        "labels",
        "preprocessing",
        "signature",
        "selftest",
        "requires",
        "metrics",
        "enrolment",
        "revoked",
        "policy",
        "poll",
        "telemetry",
    }
    assert manifest["artifact"]["path"] == f"/api/v1/artifacts/{manifest['artifact']['sha256']}"
    assert manifest["artifact"]["target"] == "recyclables/production/v1/tflite-float16"
    assert "http" not in json.dumps(manifest)


def test_nothing_is_offered_before_it_is_signed(client, released):
    release(make_version(released))
    rollouts.kill(model=released)
    holder.refresh()
    # Version 1 is to be served again, and nobody has signed that yet: devices keep what they have.
    assert poll(client).status_code == 204
    publish(released)
    holder.refresh()
    assert poll(client).json()["label"] == "v3"
    rollouts.kill(model=released)
    holder.refresh()
    assert poll(client).status_code == 204
    publish(released)
    holder.refresh()
    assert poll(client).json()["kind"] == "rollback_to_embedded"


def test_a_new_release_changes_the_tag_and_a_kill_names_what_is_revoked(client, released):
    first = poll(client)
    release(make_version(released))
    holder.refresh()
    second = poll(client, headers={"If-None-Match": first["ETag"]})
    assert second.status_code == 200
    assert second.json()["label"] == "v2"
    rollouts.kill(model=released, reason="answers nonsense")
    publish(released)
    holder.refresh()
    third = poll(client, headers={"If-None-Match": second["ETag"]}).json()
    assert (third["label"], third["version"]) == ("v3", 1)
    assert second.json()["artifact"]["sha256"] in third["revoked"]
    assert third["artifact"]["sha256"] not in third["revoked"]
    gone = client.get(second.json()["artifact"]["path"])
    assert (gone.status_code, gone.json()["code"]) == (410, "artifact_revoked")
    rollouts.kill(model=released)
    publish(released)
    holder.refresh()
    last = poll(client).json()
    assert (last["kind"], last["artifact"]) == ("rollback_to_embedded", None)
    assert len(last["revoked"]) == 6


def test_a_recall_changes_the_tag_on_every_channel_that_ever_served_the_files(client, released):
    bad = make_version(released)
    release(bad)
    release(make_version(released))
    holder.refresh()
    before = poll(client)
    assert before.json()["revoked"] == []
    # Devices of production may still hold the file, though production serves another by now.
    rollouts.recall_version(version=bad, reason="answers nonsense")
    publish(released)
    holder.refresh()
    after = poll(client, headers={"If-None-Match": before["ETag"]})
    assert after.status_code == 200
    assert {one.sha256 for one in bad.variants.all()} <= set(after.json()["revoked"])
    # One that was killed on another channel is told on this one as well.
    release(make_version(released), channel="beta")
    holder.refresh()
    before = poll(client)
    rollouts.kill(model=released, channel="beta")
    publish(released)
    holder.refresh()
    assert poll(client, headers={"If-None-Match": before["ETag"]}).status_code == 200


def test_who_asks_between_a_kill_and_its_signature_is_told_again_once_it_is_signed(
    client, released
):
    release(make_version(released), channel="beta")
    holder.refresh()
    before = poll(client)
    usual = before.json()["poll"]["interval_s"]
    assert rollouts.kill(model=released, channel="beta") is None
    holder.refresh()
    # The policy does not say so yet: whoever looks now learns nothing, and is to come back soon.
    between = poll(client, headers={"If-None-Match": before["ETag"]})
    assert between.status_code == 200
    assert between.json()["label"] == before.json()["label"]
    assert between.json()["poll"]["interval_s"] == 900 < usual
    publish(released)
    holder.refresh()
    after = poll(client, headers={"If-None-Match": between["ETag"]})
    assert after.status_code == 200
    assert after.json()["revoked"] == between.json()["revoked"]
    assert after.json()["policy"] != between.json()["policy"]
    assert after.json()["poll"]["interval_s"] == usual
    # Another signature that revokes nothing more is no news to those whose release stays.
    release(make_version(released), channel="beta")
    holder.refresh()
    assert poll(client, headers={"If-None-Match": after["ETag"]}).status_code == 304


def test_a_device_that_nothing_fits_gets_204(client, released):
    assert poll(client, accept="float64").status_code == 204
    assert poll(client, channel="beta").status_code == 204
    make_model("empty")
    rollouts.touch_decisions()
    holder.refresh()
    assert poll(client, "empty").status_code == 204


def test_errors_are_problems_with_stable_codes(client, released):
    cases = {
        (400, "missing_device"): poll(client, device=""),
        (400, "invalid_runtime"): poll(client, runtime="onnx"),
        (404, "unknown_model"): poll(client, "nothing"),
    }
    retire_model(model=released, actor=None)
    rollouts.touch_decisions()
    holder.refresh()
    cases[410, "model_retired"] = poll(client)
    for (status, code), answer in cases.items():
        assert answer.status_code == status
        assert answer["Content-Type"] == "application/problem+json"
        assert answer.json()["code"] == code


def test_a_closed_model_opens_with_its_key_until_that_is_revoked(client):
    model, other = make_model("closed", is_open=False), make_model("other", is_open=False)
    release(make_version(model))
    key, text = create_application_key(name="app", models=[model])
    holder.refresh()
    assert poll(client, "closed").status_code == 401
    assert poll(client, "closed", headers={"X-App-Key": "guess"}).status_code == 401
    opened = poll(client, "closed", headers={"X-App-Key": text})
    assert opened.status_code == 200
    assert poll(client, other.slug, headers={"X-App-Key": text}).status_code == 401
    path = opened.json()["artifact"]["path"]
    assert client.get(path).status_code == 401
    opened = client.get(path, headers={"X-App-Key": text})
    assert opened.status_code == 200
    assert b"".join(opened.streaming_content)
    assert "private" in opened["Cache-Control"]
    revoke_application_key(key=key, actor=None)
    holder.refresh()
    assert poll(client, "closed", headers={"X-App-Key": text}).status_code == 401


def test_artifacts_come_whole_in_ranges_and_as_head(client, released):
    artifact = poll(client).json()["artifact"]
    whole = client.get(artifact["path"])
    body = b"".join(whole.streaming_content)
    assert whole["ETag"] == f'"{artifact["sha256"]}"'
    assert len(body) == artifact["size_bytes"]
    assert "immutable" in whole["Cache-Control"]
    part = client.get(artifact["path"], headers={"Range": "bytes=3-5"})
    assert (part.status_code, b"".join(part.streaming_content)) == (206, body[3:6])
    head = client.head(artifact["path"])
    assert (head.status_code, head["Content-Length"]) == (200, str(len(body)))
    assert client.get(f"/api/v1/artifacts/{'0' * 64}").status_code == 404


def test_a_photo_or_any_other_blob_is_not_an_artifact(client, released):
    from server import blobs

    secret = blobs.store().put_bytes(b"a volunteer's photo")
    assert client.get(f"/api/v1/artifacts/{secret.sha256}").status_code == 404


@pytest.mark.django_db(transaction=True)
def test_a_web_process_notices_a_release_by_itself(client, settings):
    settings.DECISION_REFRESH_S = 0.05
    model = make_model()
    assert poll(client).status_code == 204
    release(make_version(model))
    deadline = time.monotonic() + 20
    while poll(client).status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert poll(client).json()["label"] == "v1"
    # Its thread's connection must be gone before the test's database is.
    holder.close()


def test_the_short_way_of_a_poll_says_the_same_as_the_long_one(client, released):
    from server.wsgi import application

    def ask(query: str, **headers: str):
        environ: dict = {}
        setup_testing_defaults(environ)
        environ |= {
            "PATH_INFO": "/api/v1/models/recyclables/update",
            "QUERY_STRING": query,
            "HTTP_HOST": "localhost",
            **headers,
        }
        seen: dict = {}

        def start(status, headers, exc_info=None):
            seen.update(status=int(status.split()[0]), headers=dict(headers))

        answer = application(environ, start)
        body = b"".join(answer)
        getattr(answer, "close", lambda: None)()
        return seen["status"], seen["headers"], body

    with CaptureQueriesContext(connection) as queries:
        status, headers, body = ask("device=d-1&runtime=tflite")
        again = ask("device=d-1&runtime=tflite", HTTP_IF_NONE_MATCH=headers["ETag"])
        nothing = ask("device=d-1&runtime=tflite&channel=beta")
    assert len(queries) == 0
    assert status == 200
    long = poll(client)
    assert body == long.content
    assert headers["ETag"] == long["ETag"]
    assert headers["Content-Length"] == str(len(body))
    assert (again[0], again[2]) == (304, b"")
    assert (nothing[0], nothing[2]) == (204, b"")
    refused = ask("device=&runtime=tflite")
    assert refused[0] == 400
    assert json.loads(refused[2])["code"] == "missing_device"


def test_a_device_gets_the_fastest_file_measured_on_its_class(client):
    model = make_model()
    content = {"tflite:float16": b"f16", "tflite:int8": b"i8", "tflite:palette": b"p"}
    made = make_version(model, content=content)
    accuracies = {"float16": 0.9, "int8": 0.88, "palette": 0.6}
    for variant in made.variants.all():
        Variant.objects.filter(pk=variant.pk).update(
            metrics={"accuracy": accuracies[variant.precision], "count": 100}
        )
    release(made)
    files = dict(made.variants.values_list("precision", "sha256"))
    for precision, milliseconds in {"float16": 20, "int8": 8, "palette": 2}.items():
        _benchmark(files[precision], milliseconds, device_class="phone-a")
    _benchmark(files["float16"], 3, device_class="phone-b", count=5)
    telemetry.drain(now=timezone.now())
    accept = "float16,int8,palette"

    def chosen(device_class: str) -> str:
        answer = poll(client, accept=accept, device_class=device_class)
        return answer.json()["artifact"]["precision"]

    holder.refresh()
    assert chosen("phone-a") == "float16"
    rollouts.set_delivery_policy(model=model, policy={"prefer": "fastest"})
    holder.refresh()
    # The palette is faster still, and loses more than the policy's three points.
    assert chosen("phone-a") == "int8"
    # Five inferences are too few to say anything of a class.
    assert chosen("phone-b") == chosen("phone-c") == "float16"
    assert poll(client, accept="float16", device_class="phone-a").json()["artifact"]["precision"] \
        == "float16"  # fmt: skip


def _benchmark(sha256: str, latency_ms: float, *, device_class: str, count: int = 50) -> None:
    event = {
        "event_id": str(uuid.uuid4()), "device": "d-9", "type": "benchmark",
        "model": "recyclables", "channel": "production", "label": "v1", "sha256": sha256,
        "device_class": device_class, "occurred_at": timezone.now().isoformat(),
        "data": {"latency_ms": latency_ms, "count": count},
    }  # fmt: skip
    assert not telemetry.record_events([event], may_report=lambda _: True).rejected

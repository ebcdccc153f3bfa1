"""What is signed of releases, when devices hear of them, and what patches they are offered."""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from server import blobs
from server.delivery.decision_set import holder
from server.domain.errors import Conflict, DomainError
from server.jobs import names
from server.jobs.models import Job
from server.registry import actions as registry
from server.registry.models import Model, ModelVersion
from server.rollouts import actions, queries
from server.rollouts.models import Patch, Release, Signing
from server.trust import actions as trust
from server.trust import queries as trust_queries
from tests.support.factories import make_model, make_version, publish, release
from worker.pipelines import patching, publishing

pytestmark = pytest.mark.django_db


def signed(model: Model) -> dict[str, dict[str, Any]]:
    """Return what the model's signed metadata list: the custom of each target by its path."""
    import json

    name = f"model-{model.slug}"
    version = trust_queries.current_versions()[name]
    document = json.loads(trust_queries.metadata_file(f"{version}.{name}.json"))
    return {path: target["custom"] for path, target in document["signed"]["targets"].items()}


def policy(model: Model) -> dict[str, Any]:
    return signed(model)[f"{model.slug}/policy"]


def served(model: Model, channel: str = "production") -> str | None:
    facts = holder.refresh().models[model.slug].channels[channel].release
    return facts.label if facts else None


def files(version: ModelVersion) -> set[str]:
    return set(version.variants.values_list("sha256", flat=True))


def test_devices_keep_the_old_release_until_the_new_one_is_signed():
    model = make_model()
    first = release(make_version(model))
    assert (served(model), first.state) == ("v1", "announced")
    second = actions.release_version(version=make_version(model))
    assert (served(model), second.state) == ("v1", "signing")
    assert not queries.is_signed(model)
    publish(model)
    second.refresh_from_db()
    assert (served(model), second.state) == ("v2", "announced")
    assert queries.is_signed(model)


def test_what_is_signed_is_what_channels_serve_now():
    model = make_model()
    release(make_version(model))
    custom = signed(model)["recyclables/production/v1/tflite-int8"]
    assert custom == {
        "kind": "artifact", "model": "recyclables", "channel": "production", "label": "v1",
        "version": 1, "counter": 1, "runtime": "tflite", "precision": "int8", "min_sdk": "0.1.0",
        "mandatory": False, "labels": ["glass", "metal"], "requires": {}, "selftest_sha256": "",
        "preprocessing": custom["preprocessing"],
    }  # fmt: skip
    # Canonical JSON has no fractions.
    assert custom["preprocessing"]["mean"] == ["123.675", "116.28", "103.53"]
    assert policy(model) == {
        "kind": "policy", "model": "recyclables", "min_counter": 1, "revoked": [], "embedded": [],
    }  # fmt: skip
    release(make_version(model), channel="beta")
    release(make_version(model))
    labels = {path.rpartition("/")[0] for path in signed(model)}
    both = {"recyclables", "recyclables/production/v1", "recyclables/production/v2"}
    assert labels == {*both, "recyclables/beta/v1"}
    assert policy(model)["min_counter"] == 1

    # What was replaced stays listed for a minute, for those who were just told of it.
    publishing.catch_up(now=timezone.now())
    assert policy(model)["min_counter"] == 1
    publishing.catch_up(now=timezone.now() + actions.SETTLE_AFTER)
    labels = {path.rpartition("/")[0] for path in signed(model)}
    assert labels == {"recyclables", "recyclables/production/v2", "recyclables/beta/v1"}
    assert policy(model)["min_counter"] == 2


def test_the_counter_grows_over_all_channels_and_a_rollback_raises_it():
    model = make_model()
    one, two = make_version(model), make_version(model)
    made = [
        actions.release_version(version=one),
        actions.release_version(version=one, channel="beta"),
        actions.release_version(version=two),
        actions.roll_back(model=model),
    ]
    assert [(r.label, r.counter) for r in made] == [("v1", 1), ("v1", 2), ("v2", 3), ("v3", 4)]
    made[2].refresh_from_db()
    assert made[2].state == "passed over"


def test_a_kill_is_felt_at_once_and_replaced_when_signed():
    model = make_model()
    one, two = make_version(model), make_version(model)
    release(one)
    release(two)
    actions.kill(model=model, reason="wrong labels")
    assert served(model) is None
    assert files(two) <= holder.refresh().revoked
    publish(model)
    assert served(model) == "v3"
    assert set(policy(model)["revoked"]) == files(two)
    assert policy(model)["min_counter"] == 3


def test_devices_return_to_the_embedded_model_once_the_policy_says_so():
    model = make_model()
    version = make_version(model)
    release(version)
    actions.kill(model=model)
    facts = holder.refresh().models[model.slug].channels["production"]
    assert "waits to be signed" in facts.hold
    publish(model)
    facts = holder.refresh().models[model.slug].channels["production"]
    assert (facts.release, facts.hold) == (None, "")
    assert policy(model) == {
        "kind": "policy", "model": "recyclables", "min_counter": 2,
        "revoked": sorted(files(version)), "embedded": ["production"],
    }  # fmt: skip
    release(make_version(model))
    assert policy(model)["embedded"] == []
    # The next time, too, nothing is said before it is signed.
    actions.kill(model=model)
    assert holder.refresh().models[model.slug].channels["production"].hold


def test_a_kill_between_signing_and_announcing_is_not_undone(monkeypatch):
    model = make_model()
    release(make_version(model))
    actions.release_version(version=make_version(model))
    monkeypatch.setattr(trust, "read_back", lambda **_: actions.kill(model=model))
    publish(model)
    monkeypatch.undo()
    assert served(model) == "v1"
    assert not queries.is_signed(model)
    publish(model)
    assert served(model) == "v3"
    assert Release.objects.get(label_number=2).state == "killed"


def test_a_version_is_recalled_from_every_channel_for_good(client):
    model = make_model()
    one, two = make_version(model), make_version(model)
    twin = make_version(model)
    same, other = two.variants.get(precision="int8"), twin.variants.get(precision="int8")
    type(other).objects.filter(pk=other.pk).update(sha256=same.sha256)
    for version in (one, two):
        release(version)
    release(two, channel="beta")
    release(twin, channel="twins")
    actions.recall_version(version=two, reason="leaks")
    assert (served(model), served(model, "beta"), served(model, "twins")) == (None, None, None)
    publish(model)
    assert (served(model), served(model, "beta"), served(model, "twins")) == ("v3", None, None)
    assert set(policy(model)["revoked"]) == files(two) | files(twin)
    assert policy(model)["embedded"] == ["beta", "twins"]
    with pytest.raises(Conflict) as raised:
        actions.release_version(version=two, channel="gamma")
    assert raised.value.code == "version_revoked"
    before = Signing.objects.get().wanted
    actions.recall_version(version=two)
    assert Signing.objects.get().wanted == before


def test_recall_over_rest_and_by_command(client, admin_user, capsys):
    model = make_model()
    release(make_version(model))
    release(make_version(model))
    client.force_login(admin_user)
    address = "/api/v1/models/recyclables/versions/{}/recall"
    answer = client.post(address.format(2), {"reason": "leaks"}, content_type="application/json")
    body = answer.json()
    assert (answer.status_code, body["is_signed"], body["reason"]) == (202, False, "leaks")
    assert body["channels"][0]["serves"]["state"] == "signing"
    publish(model)
    answer = client.post(address.format(2), {}, content_type="application/json")
    assert (answer.status_code, answer.json()["reason"]) == (200, "leaks")
    missing = client.post(address.format(9), {}, content_type="application/json")
    assert missing.json()["code"] == "unknown_version"
    call_command("recall", "recyclables", "1", "--reason", "leaks too")
    assert "production serves nothing." in capsys.readouterr().out


def test_a_signing_that_fails_is_told_and_made_up_for(monkeypatch):
    model = make_model()
    release(make_version(model))
    actions.release_version(version=make_version(model))

    def refuse(**_: object) -> None:
        raise Conflict("The key of snapshot is not here.", code="signing_key_missing")

    monkeypatch.setattr(trust, "publish", refuse)
    with pytest.raises(DomainError):
        publish(model)
    assert queries.signing_failure(model) == "The key of snapshot is not here."
    soon = timezone.now() + queries.SIGNING_IS_LATE
    later = timezone.now() + queries.PATCHES_ARE_LATE
    publishing.catch_up(now=later)
    assert served(model) == "v1"
    monkeypatch.undo()
    publishing.catch_up(now=soon)  # patches are being built, which the first device shall have
    assert served(model) == "v1"
    publishing.catch_up(now=later)
    assert served(model) == "v2"
    assert queries.signing_failure(model) == ""


def test_of_two_processes_that_sign_at_once_the_older_view_never_comes_last(monkeypatch):
    model = make_model()
    two = [release(make_version(model)), release(make_version(model))][1]
    read_back, calls = trust.read_back, []

    def overtaken(**what: Any) -> None:
        calls.append(what)
        if len(calls) == 1:
            # Before the first process looks at what it signed, another signs a kill.
            actions.kill(model=model)
            publish(model)
        read_back(**what)

    actions.release_version(version=make_version(model), channel="beta")
    monkeypatch.setattr(trust, "read_back", overtaken)
    publish(model)
    assert len(calls) == 3
    assert set(policy(model)["revoked"]) == files(two.version)
    assert (served(model), served(model, "beta")) == ("v3", "v1")
    assert queries.is_signed(model)
    stale = actions.Publication(model, 1, (), (), (), ["production"])
    assert actions.announce(publication=stale) == []
    assert model.channels.get(name="production").embedded_at is None


def test_what_waits_is_not_put_off_by_what_comes_later():
    model = make_model()
    release(make_version(model))
    actions.release_version(version=make_version(model))
    since = Signing.objects.get().wanted_at
    actions.release_version(version=make_version(model), channel="beta")
    assert Signing.objects.get().wanted_at == since


def test_equal_content_is_signed_once_however_often_it_is_asked_for():
    model = make_model()
    release(make_version(model))
    before = trust_queries.current_versions()
    for _ in range(3):
        publish(model)
    assert trust_queries.current_versions() == before


def weights(seed: int, changed: int = 0) -> bytes:
    """Return bytes like those of a network, some of them changed."""
    content = bytearray(random.Random(seed).randbytes(200_000))
    content[:changed] = random.Random(99).randbytes(changed)
    return bytes(content)


def test_patches_are_built_from_the_last_bases_and_offered_when_they_save(client):
    model = make_model()
    nights = [
        make_version(
            model, content={"tflite:int8": weights(1, changed), "coreml:float16": weights(n)}
        )
        for n, changed in enumerate((0, 200, 400, 600, 800, 1000))
    ]
    for version in nights[:-1]:
        release(version)
    last = actions.release_version(version=nights[-1])
    job = Job.objects.filter(name=names.BUILD_PATCHES).latest("created_at")
    assert job.args == {"release_id": last.pk, "model": "recyclables"}

    built = patching.build_patches(last, store=blobs.store())
    assert len(built) == 2 * queries.PATCH_BASES
    offered = [patch for patch in built if patch.state == Patch.State.OFFERED]
    assert {patch.to_variant.precision for patch in offered} == {"int8"}
    assert {patch.from_variant.version.number for patch in offered} == {2, 3, 4, 5}
    assert all("saves too little" in p.refusal for p in built if p not in offered)
    assert patching.build_patches(last, store=blobs.store()) == []  # nothing is tried twice

    publish(model)
    holder.refresh()
    poll = "/api/v1/models/recyclables/update?device=d&runtime=tflite&accept=int8"
    manifest = client.get(poll).json()
    assert len(manifest["patches"]) == 4
    for patch in manifest["patches"]:
        path = f"recyclables/patches/{patch['from_sha256']}-{manifest['artifact']['sha256']}"
        assert signed(model)[path]["algorithm"] == patch["algorithm"]
        data = b"".join(client.get(patch["path"]).streaming_content)
        assert len(data) == patch["size_bytes"] < 200_000 * actions.LARGEST_PATCH


def test_patches_from_or_to_revoked_files_are_neither_signed_nor_served(client):
    model = make_model()
    versions = [make_version(model, content={"tflite:int8": weights(1, n)}) for n in (0, 90, 180)]
    for version in versions:
        patching.build_patches(actions.release_version(version=version), store=blobs.store())
        publish(model)
    holder.refresh()
    poll = "/api/v1/models/recyclables/update?device=d&runtime=tflite"
    to_killed = client.get(poll).json()["patches"][0]["path"]
    assert client.head(to_killed).status_code == 200
    actions.recall_version(version=versions[2])
    publish(model)
    holder.refresh()
    assert client.get(to_killed).status_code == 404
    assert not [path for path in signed(model) if files(versions[2]) & set(path.split("-"))]
    manifest = client.get(poll).json()
    assert manifest["version"] == 2
    froms = {patch["from_sha256"] for patch in manifest["patches"]}
    assert froms == files(versions[0])


def test_a_patch_that_cannot_be_built_does_not_block_the_release(monkeypatch):
    model = make_model()
    release(make_version(model))
    new = actions.release_version(version=make_version(model))

    def fail(old: bytes, new: bytes) -> bytes:
        raise ValueError("no common anchor")

    monkeypatch.setattr(patching.patches, "create_patch", fail)
    job = Job.objects.get(name=names.BUILD_PATCHES)
    assert not Job.objects.filter(name=names.PUBLISH, unique_key__endswith=":2").exists()

    class Context:
        args = job.args

        def check_alive(self) -> None:
            pass

    assert "0 of 3 patches" in patching.run(Context())["outcome"]
    assert Job.objects.filter(name=names.PUBLISH, unique_key__endswith=":2").exists()
    assert all("no common anchor" in patch.refusal for patch in Patch.objects.all())
    publish(model)
    assert served(model) == new.label


def test_metadata_are_renewed_every_hour():
    release(make_version(make_model()))
    before = trust_queries.current_versions()
    publishing.renew(now=timezone.now() + dt.timedelta(hours=2))
    after = trust_queries.current_versions()
    assert after["timestamp"] == before["timestamp"] + 1
    assert after["root"] == before["root"]


def test_a_retired_model_lists_its_policy_only():
    model = make_model()
    bad, good = make_version(model), make_version(model)
    release(bad)
    release(good)
    never_released = make_model("digits")

    registry.retire_model(model=model, actor=None)
    registry.retire_model(model=never_released, actor=None)

    assert not queries.is_signed(model)
    publish(model)
    assert signed(model).keys() == {"recyclables/policy"}
    # Devices keep what they have, until somebody recalls it.
    assert policy(model)["revoked"] == []
    assert not Signing.objects.filter(pk=never_released.pk).exists()
    actions.recall_version(version=bad, reason="mislabelled")
    publish(model)
    assert policy(model)["revoked"] == sorted(files(bad))

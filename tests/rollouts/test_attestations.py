"""Whoever writes the database, but has no key, puts no file on a device."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.management import call_command

from server import blobs
from server.delivery.decision_set import holder
from server.http.models import AuditEntry
from server.registry.models import Model, ModelVersion, Variant
from server.rollouts import actions, queries, releasing
from server.rollouts.models import Release
from server.trust import queries as trust_queries
from tests.support.factories import make_model, make_version, publish, release

pytestmark = pytest.mark.django_db


def signed(model: Model) -> dict[str, dict[str, Any]]:
    """Return what the model's signed metadata list: each target by its path."""
    name = f"model-{model.slug}"
    version = trust_queries.current_versions()[name]
    return json.loads(trust_queries.metadata_file(f"{version}.{name}.json"))["signed"]["targets"]


def files(model: Model) -> set[str]:
    return {target["hashes"]["sha256"] for target in signed(model).values()}


def policy(model: Model) -> dict[str, Any]:
    return signed(model)[f"{model.slug}/policy"]["custom"]


def served(model: Model) -> str | None:
    facts = holder.refresh().models[model.slug].channels["production"].release
    return facts.label if facts else None


def insert_version(old: ModelVersion, *, number: int = 99) -> ModelVersion:
    """Write rows as a taken-over web process can: reversed labels, and a file of its own."""
    blob = blobs.store().put_bytes(b"a network of somebody else's")
    version = ModelVersion.objects.get(pk=old.pk)
    version.pk, version._state.adding = None, True
    version.number, version.labels = number, list(reversed(old.labels))
    version.save()
    variant = old.variants.get(runtime="tflite", precision="float16")
    variant.pk, variant._state.adding = None, True
    variant.version, variant.sha256, variant.size_bytes = version, blob.sha256, blob.size_bytes
    Variant.objects.bulk_create([variant])
    return version


def insert_release(version: ModelVersion) -> Release:
    channel = releasing.lock_channel(version.model, "production")
    written = releasing.append(
        channel, version, kind=Release.Kind.UPDATE, actor=None, reason="inserted"
    )
    actions.request_publication(model=version.model)
    return written


def test_rows_without_the_key_are_never_signed_and_block_nothing_else():
    model = make_model()
    recalled, good = make_version(model), make_version(model)
    release(recalled)
    release(good)
    release(recalled, channel="beta")
    bad = insert_version(good)
    written = insert_release(bad)
    own = bad.variants.get(precision="float16").sha256

    actions.recall_version(version=recalled, reason="mislabelled")
    # It may even claim the file that is recalled, as its own.
    twin = Variant.objects.get(version=recalled, precision="int8")
    twin.pk, twin._state.adding, twin.version = None, True, bad
    Variant.objects.bulk_create([twin])
    outcome = publish(model)

    assert "99 is not attested" in outcome
    assert own not in files(model)
    assert set(good.variants.values_list("sha256", flat=True)) <= files(model)
    assert set(policy(model)["revoked"]) == {v.sha256 for v in recalled.variants.all()}
    assert policy(model)["embedded"] == ["beta"]
    written.refresh_from_db()
    assert (served(model), written.state) == ("v2", "signing")
    assert "`python manage.py attest recyclables 99`" in queries.signing_failure(model)
    publish(model)
    noted = AuditEntry.objects.filter(action="release.not_signed")
    assert [entry.subject for entry in noted] == [str(written)]


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["metal", "glass"]},
        {"preprocessing": {}},
        {"source": "trained"},
        {"attestation": ""},
        {"labels": None},
        {"number": 7},
    ],
)
def test_an_attested_version_is_signed_only_as_it_was_made(change: dict[str, Any]):
    model = make_model()
    version = make_version(model)
    if change.get("labels", 1) is None:
        change = {"labels": {"not": "a list"}, "attestation": "a1:worker:é"}
    ModelVersion.objects.filter(pk=version.pk).update(**change)
    version.refresh_from_db()
    assert release(version).announced_at is None
    assert signed(model).keys() == {"recyclables/policy"}


def test_an_attested_version_is_not_signed_for_another_model():
    mine, other = make_model("mine"), make_model("other")
    version = make_version(mine)
    releasing.append(
        releasing.lock_channel(other, "production"),
        version,
        kind=Release.Kind.UPDATE,
        actor=None,
        reason="inserted",
    )
    publish(other)
    assert signed(other).keys() == {"other/policy"}


def test_what_was_signed_before_there_were_attestations_goes_on_being_served():
    model = make_model()
    version = make_version(model)
    release(version)
    before = signed(model)
    ModelVersion.objects.filter(pk=version.pk).update(attestation="")
    insert_release(insert_version(version))
    publish(model)
    assert signed(model) == before
    assert served(model) == "v1"


def test_uploaded_models_wait_for_a_person_where_that_is_set(settings, capsys):
    settings.TRUST_UPLOADED_MODELS = "confirm"
    model = make_model()
    version = make_version(model)
    waiting = release(version)
    assert (waiting.announced_at, served(model)) == (None, None)
    assert "was uploaded" in queries.signing_failure(model)

    call_command("attest", "recyclables", "1", "--yes")

    shown = capsys.readouterr().out
    assert "glass, metal" in shown
    assert all(variant.sha256 in shown for variant in version.variants.all())
    publish(model)
    assert (served(model), queries.signing_failure(model)) == ("v1", "")


def test_without_its_key_nothing_new_is_signed_and_kills_get_through(settings):
    model = make_model()
    first, second = make_version(model), make_version(model)
    release(first)
    (settings.TRUST_KEYS / "attestation.key").unlink()
    settings.TRUST_IS_EMBEDDED = False
    assert release(second).announced_at is None
    assert "attestation key is not here" in queries.signing_failure(model)
    actions.recall_version(version=first, reason="mislabelled")
    publish(model)
    assert set(policy(model)["revoked"]) == {v.sha256 for v in first.variants.all()}

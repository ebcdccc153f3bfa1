"""What operators decide in the admin: each decision says first what it will do."""

from __future__ import annotations

import io
import re
from typing import Any

from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from server.delivery.models import ApplicationKey
from server.http.models import AuditEntry
from server.registry.models import Model, ModelVersion
from server.rollouts import actions as rollouts
from server.rollouts import queries
from server.rollouts.models import Recall
from server.training.models import TrainingRun
from tests.registry.networks import keras_file
from tests.support.factories import publish

ADMIN = reverse("admin:index")


def _policy(**changed: Any) -> dict[str, Any]:
    """Return the policy's part of the model form as a browser sends it."""
    from server.domain.policy import TrainingPolicy

    values = {**vars(TrainingPolicy()), **changed}
    return {
        f"policy_{name}": list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not False
    }


def test_a_model_is_made_with_labels_and_only_the_policy_that_differs(admin_client: Any) -> None:
    page = reverse("admin:registry_model_add")
    body = {
        "slug": "birds", "name": "Birds", "labels": "robin\n\n wren \n", "nightly_at": "03:15",
        "nightly_enabled": "on", **_policy(margin=0.05),
    }  # fmt: skip
    assert admin_client.post(page, body).status_code == 302
    model = Model.objects.get(slug="birds")
    assert [label.name for label in model.labels.all()] == ["robin", "wren"]
    assert model.training_policy == {"margin": 0.05}
    assert model.nightly_at == "03:15"
    assert AuditEntry.objects.filter(action="model.create", actor__isnull=False).exists()

    refused = admin_client.post(page, body | {"slug": "Birds!", "labels": "robin\nrobin"})
    assert refused.status_code == 200
    assert b"Each label may stand in the list once." in refused.content
    again = admin_client.post(page, body)
    assert b"already exists" in again.content


def test_a_policy_that_does_not_hold_together_is_refused_with_its_reason(
    admin_client: Any, model: Model
) -> None:
    page = reverse("admin:registry_model_change", args=[model.pk])
    inline = {"labels-TOTAL_FORMS": 0, "labels-INITIAL_FORMS": 0}
    body = {"name": "Recyclables", "nightly_enabled": "on", **inline}
    refused = admin_client.post(page, body | _policy(test_share=0.9))
    assert b"leave at least a fifth for training" in refused.content
    assert admin_client.post(page, body | _policy(margin=0.1, seed=7)).status_code == 302
    assert Model.objects.get(pk=model.pk).training_policy == {"margin": 0.1, "seed": 7}
    assert admin_client.post(page, body | _policy(seed=7)).status_code == 302
    assert Model.objects.get(pk=model.pk).training_policy == {"seed": 7}


def test_release_roll_back_and_kill_say_what_devices_will_do_and_do_it(
    admin_client: Any, model: Model
) -> None:
    channel = model.channels.get()
    page = reverse("admin:rollouts_channel_roll_back", args=[channel.pk])
    asked = admin_client.get(page).content.decode()
    assert "Version 1 is released again as v3, in place of v2 (version 2)." in asked
    assert queries.current_release(channel).label == "v2"  # asking does nothing
    admin_client.post(page, {"reason": "wrong on glass"})
    assert queries.current_release(channel).version.number == 1
    nothing_older = admin_client.get(page).content.decode()
    assert "nothing to go back to" in nothing_older

    newest = model.versions.get(number=2)
    page = reverse("admin:rollouts_release_add", query={"version": newest.pk})
    asked = admin_client.get(page).content.decode()
    assert "All of them are offered version 2 at their next check" in asked
    body = {"version": newest.pk, "channel": "production", "reason": "fixed"}
    assert admin_client.post(page, body).status_code == 302
    assert queries.current_release(channel).label == "v4"
    twice = admin_client.post(page, body)
    assert twice.status_code == 409
    assert "production serves" in twice.content.decode()

    page = reverse("admin:rollouts_channel_kill", args=[channel.pk])
    asked = admin_client.get(page).content.decode()
    assert "v4 (version 2) is revoked" in asked
    admin_client.post(page, {"reason": "leaks"})
    assert queries.current_release(channel).version.number == 1
    assert channel.releases.filter(killed_reason="leaks", version=newest).count() == 2


def test_a_recall_says_what_it_takes_along_and_signing_shows_where_it_stands(
    admin_client: Any, model: Model
) -> None:
    channel = model.channels.get()
    newest = model.versions.get(number=2)
    page = reverse("admin:rollouts_recall_add", query={"version": newest.pk})
    asked = admin_client.get(page).content.decode()
    assert "Every file of version 2 is revoked on every channel" in asked
    assert "production serves it now, and goes back to version 1." in asked
    assert not Recall.objects.exists()
    body = {"version": newest.pk, "reason": "cats taken for glass"}
    assert admin_client.post(page, body).status_code == 302
    assert Recall.objects.get().version == newest

    shown = admin_client.get(reverse("admin:rollouts_channel_change", args=[channel.pk]))
    assert "It is being signed." in shown.content.decode()
    home = admin_client.get(ADMIN).content.decode()
    assert "waits to be signed" in home
    rollouts.note_signing_failure(model=model, reason="The key of snapshot is not here.")
    trust = admin_client.get(reverse("admin:trust_metadatafile_changelist")).content.decode()
    assert "The key of snapshot is not here." in trust
    assert "Move <span" in trust
    assert "timestamp" in trust
    releases = admin_client.get(reverse("admin:rollouts_release_changelist")).content.decode()
    assert "not signed" in releases
    publish(model)
    home = admin_client.get(ADMIN).content.decode()
    assert "waits to be signed" not in home
    releases = admin_client.get(reverse("admin:rollouts_release_changelist")).content.decode()
    assert "not signed" not in releases


def test_a_key_is_shown_once_and_never_again(admin_client: Any, model: Model) -> None:
    page = reverse("admin:delivery_applicationkey_add")
    shown = admin_client.post(page, {"name": "Recycling app", "models": [model.pk]})
    text = re.search(r"nfk_[\w-]+", shown.content.decode()).group()
    assert "no-store" in shown["Cache-Control"]
    key = ApplicationKey.objects.get(name="Recycling app")
    update = f"/api/v1/models/{model.slug}/update?device=d&runtime=tflite"
    assert admin_client.get(update, headers={"X-App-Key": text}).status_code == 200
    assert (
        text
        not in admin_client.get(
            reverse("admin:delivery_applicationkey_change", args=[key.pk])
        ).content.decode()
    )
    admin_client.post(reverse("admin:delivery_applicationkey_revoke", args=[key.pk]))
    key.refresh_from_db()
    assert key.revoked_at is not None


def test_training_by_hand_and_cancelling(admin_client: Any, model: Model) -> None:
    page = reverse("admin:training_trainingrun_add", query={"model": model.pk})
    assert "accepted photos of recyclables are frozen" in admin_client.get(page).content.decode()
    assert admin_client.post(page, {"model": model.pk}).status_code == 302
    run = TrainingRun.objects.first()
    assert run.state == "queued"
    refused = admin_client.post(page, {"model": model.pk})
    assert "has an unfinished run already" in refused.content.decode()
    cancel = reverse("admin:training_trainingrun_cancel", args=[run.pk])
    assert "makes no version" in admin_client.get(cancel).content.decode()
    admin_client.post(cancel)
    run.refresh_from_db()
    assert run.state == "cancelled"


def test_a_network_of_ones_own_is_uploaded(admin_client: Any, model: Model) -> None:
    page = reverse("admin:training_trainingrun_upload")
    bad = SimpleUploadedFile("mine.keras", b"not a zip")
    refused = admin_client.post(page, {"model": model.pk, "file": bad})
    assert refused.status_code == 409
    assert "mine.keras is not the file its name says" in refused.content.decode()
    good = io.BytesIO(keras_file())
    good.name = "mine.keras"
    body = {"model": model.pk, "file": good, "labels": "glass\nmetal", "notes": "from the lab"}
    assert admin_client.post(page, body).status_code == 302
    version = ModelVersion.objects.get(source="uploaded", state="draft")
    assert (version.number, version.notes) == (3, "from the lab")
    assert version.labels == ["glass", "metal"]
    assert version.runs.get().kind == "compile_upload"


def test_the_home_page_says_what_to_do_when_there_is_nothing(admin_client: Any) -> None:
    home = admin_client.get(ADMIN).content.decode()
    assert "Make a model" in home
    assert reverse("admin:registry_model_add") in home


def test_the_home_page_says_what_each_model_serves(admin_client: Any, model: Model) -> None:
    home = admin_client.get(ADMIN).content.decode()
    assert "v2</a>, version 2" in home
    assert "No new photos." in home or "Version 2 is as good" in home

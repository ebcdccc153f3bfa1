"""Every page of the admin opens for staff, stays shut for others, and asks the database little."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from server.registry.models import Model, ModelVersion
from server.rollouts import actions as rollouts
from tests.console.conftest import finish_run
from tests.photos.people import register
from tests.support.factories import make_model, make_version

# Other packages' pages are their own; ours replace those that operators need.
OURS = [
    f"{model._meta.app_label}_{model._meta.model_name}"
    for model in admin.site._registry
    if type(admin.site._registry[model]).__module__.startswith("server.")
]


def _pages() -> list[str]:
    """Return the address of every page that has something to show."""
    pages = [reverse("admin:index")]
    for kind, page in admin.site._registry.items():
        name = f"{kind._meta.app_label}_{kind._meta.model_name}"
        if name not in OURS:
            continue
        pages.append(reverse(f"admin:{name}_changelist"))
        row = kind._default_manager.first()
        if row is not None:
            pages.append(reverse(f"admin:{name}_change", args=[row.pk]))
            pages.append(reverse(f"admin:{name}_history", args=[row.pk]))
            names = page._extract_action_names(page.actions_detail)
            pages += [reverse(f"admin:{name}_{action}", args=[row.pk]) for action in names]
    pages += [
        reverse(f"admin:{name}")
        for name in (
            "registry_model_add", "training_trainingrun_add", "training_trainingrun_upload",
            "rollouts_release_add", "rollouts_recall_add", "delivery_applicationkey_add",
            "rollouts_rollout_add", "rollouts_override_add", "auth_user_add",
        )
    ]  # fmt: skip
    version = ModelVersion.objects.filter(state="published").first()
    pages.append(reverse("admin:rollouts_recall_add", query={"version": version.pk}))
    pages.append(reverse("admin:rollouts_release_add", query={"version": version.pk}))
    pages.append(reverse("admin:rollouts_model_delivery", args=[version.model_id]))
    pages.append(reverse("admin:training_trainingrun_card", args=[version.pk]))
    pages.append(reverse("admin:training_goldenphoto_add"))
    run = version.model.runs.first()
    return [*pages, reverse("admin:training_trainingrun_live", args=[run.pk])]


def test_everything_is_in_the_admin() -> None:
    from django.apps import apps

    # Kept out on purpose: what has no meaning without the row it belongs to.
    parts = {"Label", "Variant", "RunLine", "SplitAssignment", "DecisionEpoch", "Consent",
             "PhotoEmbedding", "ForgottenBlob", "Patch", "Signing", "Draft", "Alarm",
             "Repository", "BudgetSearch"}  # fmt: skip
    missing = {
        model.__name__
        for model in apps.get_models()
        if model.__module__.startswith("server.") and model not in admin.site._registry
    }
    assert missing <= parts, missing - parts


def test_every_page_opens_for_staff(admin_client: Any, model: Model) -> None:
    failed = {}
    for page in _pages():
        answer = admin_client.get(page, follow=True)
        if answer.status_code != 200:
            failed[page] = answer.status_code
    assert not failed


@pytest.mark.parametrize("role", ["anonymous", "volunteer"])
def test_no_page_opens_for_others(role: str, client: Any, model: Model, django_user_model) -> None:
    if role == "volunteer":
        register(client)
        client.force_login(django_user_model.objects.get(volunteer__isnull=False))
    for page in _pages():
        answer = client.get(page)
        assert answer.status_code == 302, page
        assert answer["Location"].startswith(reverse("admin:login")), page


def test_staff_without_rights_may_look_at_nothing_and_do_nothing(
    client: Any, model: Model, django_user_model: Any
) -> None:
    client.force_login(django_user_model.objects.create_user("new", is_staff=True))
    channel = model.channels.get()
    for page in (
        reverse("admin:registry_model_changelist"),
        reverse("admin:training_trainingrun_add"),
        reverse("admin:training_trainingrun_upload"),
        reverse("admin:rollouts_release_add"),
        reverse("admin:rollouts_recall_add"),
        reverse("admin:delivery_applicationkey_add"),
    ):
        assert client.get(page).status_code in (403, 404), page
    for verb in ("release", "roll_back", "kill"):
        page = reverse(f"admin:rollouts_channel_{verb}", args=[channel.pk])
        assert client.post(page, {"reason": "no"}).status_code in (302, 403, 404), verb
    assert channel.releases.count() == 2
    assert not channel.releases.filter(killed_at__isnull=False).exists()
    assert b"Ask a superuser" in client.get(reverse("admin:index")).content


LISTS = [
    "index",
    "registry_model_changelist",
    "registry_modelversion_changelist",
    "training_trainingrun_changelist",
    "training_datasetsnapshot_changelist",
    "training_snapshotentry_changelist",
    "rollouts_channel_changelist",
    "rollouts_release_changelist",
    "rollouts_recall_changelist",
    "trust_metadatafile_changelist",
    "delivery_applicationkey_changelist",
    "http_auditentry_changelist",
    "jobs_job_changelist",
]


def test_pages_ask_the_database_no_more_for_more_rows(admin_client: Any, model: Model) -> None:
    few = {name: _count(admin_client, name) for name in LISTS}
    for number in range(6):
        other = make_model(f"model-{number}")
        rollouts.release_version(version=make_version(other))
        finish_run(other)
    many = {name: _count(admin_client, name) for name in LISTS}
    assert many == few


def _count(client: Any, name: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        assert client.get(reverse(f"admin:{name}")).status_code == 200
    return len(queries)

"""Asking for more files of a version: over HTTP, in the console, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from django.urls import reverse
from django.utils.html import escape

from server.console.actions import create_staff_token
from server.domain.variants import MENU
from server.registry.models import ModelVersion
from server.training.models import TrainingRun
from tests.support.factories import make_model, make_version

pytestmark = pytest.mark.django_db
ADDRESS = "/api/v1/models/recyclables/versions/1/variants"


@pytest.fixture
def boss(django_user_model: Any) -> Any:
    return django_user_model.objects.create_superuser("boss", password="night-ferry-1")


@pytest.fixture
def staff(boss: Any) -> dict[str, str]:
    _, token = create_staff_token(user=boss)
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def version() -> ModelVersion:
    made = make_version(make_model())
    ModelVersion.objects.filter(pk=made.pk).update(source_filename="model.keras")
    made.refresh_from_db()
    return made


def test_a_call_becomes_a_draft_and_a_run(
    client: Any, staff: dict[str, str], version: ModelVersion
) -> None:
    body = {"kinds": ["coreml:palette4", "coreml:palette4"]}
    answer = client.post(ADDRESS, body, content_type="application/json", headers=staff)
    assert answer.status_code == 202, answer.content
    run = TrainingRun.objects.get()
    assert answer.headers["Location"].endswith(f"/runs/{run.pk}")
    assert run.kind == "compile_variants"
    assert run.version is not None
    assert (run.version.number, run.version.parent) == (2, version)
    assert run.version.lineage["kinds"] == ["coreml:palette4"]
    assert run.version.state == "draft"
    again = client.post(ADDRESS, body, content_type="application/json", headers=staff)
    assert (again.status_code, again.json()["code"]) == (409, "run_active")


def test_the_menu_says_what_each_is_for_and_what_the_version_has(
    client: Any, staff: dict[str, str], version: ModelVersion
) -> None:
    del version
    menu = client.get(ADDRESS, headers=staff).json()
    assert [entry["kind"] for entry in menu] == [*MENU]
    has = {entry["kind"] for entry in menu if entry["is_shipped"]}
    assert has == {"tflite:float16", "tflite:int8", "coreml:float16"}
    assert all(entry["purpose"] for entry in menu)


@pytest.mark.parametrize(
    ("kinds", "status", "code"),
    [
        (["tflite:int3"], 400, "unknown_variant"),
        (["tflite:int8"], 409, "variants_exist"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    client: Any,
    staff: dict[str, str],
    version: ModelVersion,
    kinds: list[str],
    status: int,
    code: str,
) -> None:
    del version
    answer = client.post(ADDRESS, {"kinds": kinds}, content_type="application/json", headers=staff)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert not ModelVersion.objects.filter(number=2).exists()


def test_a_file_without_its_network_is_refused(client: Any, staff: dict[str, str]) -> None:
    made = make_version(make_model())
    ModelVersion.objects.filter(pk=made.pk).update(source_filename="mine.tflite")
    answer = client.post(
        ADDRESS, {"kinds": ["tflite:float32"]}, content_type="application/json", headers=staff
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "version_not_compilable")


def test_the_console_asks_and_goes_to_the_run(
    client: Any, boss: Any, version: ModelVersion
) -> None:
    client.force_login(boss)
    page = client.get(reverse("admin:registry_modelversion_change", args=[version.pk]))
    assert "Compile more files" in page.content.decode()
    address = reverse("admin:training_trainingrun_variants", query={"version": version.pk})
    question = client.get(address)
    assert question.status_code == 200
    assert escape(MENU["coreml:palette4"].purpose) in question.content.decode()
    answer = client.post(address, {"kinds": ["coreml:palette4", "coreml:joint"]})
    run = TrainingRun.objects.get()
    assert answer.status_code == 302
    assert str(run.pk) in answer.headers["Location"]
    followed = client.get(answer.headers["Location"])
    assert followed.status_code == 200

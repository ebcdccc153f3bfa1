"""An uploaded network is looked at from outside before anybody waits for a worker."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from hypothesis import given, settings
from hypothesis import strategies as st

from server import blobs
from server.console.actions import create_staff_token
from server.domain.errors import DomainError
from server.registry.models import ModelVersion
from server.training.models import TrainingRun
from server.training.uploads import check_upload
from tests.registry.networks import MLMODEL, TFLITE, archive, keras_file, mlpackage_file
from tests.support.factories import make_model

MIB = 2**20


@pytest.mark.parametrize(
    ("filename", "content", "kind"),
    [
        ("mine.keras", keras_file(), "keras"),
        ("MINE.KERAS", keras_file(), "keras"),
        ("mine.tflite", TFLITE, "tflite"),
        ("mine.mlmodel", MLMODEL, "mlmodel"),
        ("mine.mlpackage.zip", mlpackage_file(), "mlpackage"),
        ("mine.mlpackage", mlpackage_file(folder=""), "mlpackage"),
    ],
)
def test_each_kind_is_known_by_name_and_content(filename: str, content: bytes, kind: str) -> None:
    file = io.BytesIO(content)
    assert check_upload(file, filename, max_bytes=MIB) == kind
    assert file.tell() == 0  # whoever stores it reads it from its start


def _bomb() -> bytes:
    entries = {"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": bytes(200 * MIB)}
    return archive(entries, is_packed=True)


@pytest.mark.parametrize(
    ("filename", "content", "code"),
    [
        ("mine.h5", b"\x89HDF\r\n\x1a\n", "unsupported_model_format"),
        ("mine", TFLITE, "unsupported_model_format"),
        ("mine.keras", b"", "damaged_model_file"),
        ("mine.keras", keras_file()[:-30], "damaged_model_file"),
        ("mine.keras", archive({"config.json": b"{}"}), "damaged_model_file"),
        ("mine.keras", keras_file(**{"config.json": b"[]"}), "damaged_model_file"),
        ("mine.keras", keras_file(**{"config.json": b"[" * 100_000}), "damaged_model_file"),
        ("mine.keras", keras_file(**{"../../etc/passwd": b""}), "damaged_model_file"),
        ("mine.keras", _bomb(), "damaged_model_file"),
        ("mine.tflite", keras_file(), "damaged_model_file"),
        ("mine.mlmodel", TFLITE, "damaged_model_file"),
        ("mine.zip", keras_file(), "damaged_model_file"),
        ("mine.tflite", TFLITE + bytes(MIB), "model_too_large"),
    ],
)
def test_what_is_not_a_network_is_refused_with_a_reason(
    filename: str, content: bytes, code: str
) -> None:
    with pytest.raises(DomainError) as refusal:
        check_upload(io.BytesIO(content), filename, max_bytes=MIB)
    assert refusal.value.code == code
    assert 400 <= refusal.value.status < 500
    assert refusal.value.detail.endswith(".")


@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.integers(0, len(keras_file()) - 1).map(lambda n: keras_file()[:n]),
        st.tuples(st.integers(0, len(keras_file()) - 1), st.integers(0, 255)).map(
            lambda hit: keras_file()[: hit[0]] + bytes([hit[1]]) + keras_file()[hit[0] + 1 :]
        ),
    ),
    suffix=st.sampled_from((".keras", ".tflite", ".mlmodel", ".zip")),
)
@settings(max_examples=150, deadline=None)
def test_no_bytes_make_the_check_itself_fail(content: bytes, suffix: str) -> None:
    # Anything but a domain error fails the test.
    with contextlib.suppress(DomainError):
        check_upload(io.BytesIO(content), f"x{suffix}", max_bytes=MIB)


@pytest.fixture
def staff(db: Any, django_user_model: Any) -> dict[str, str]:
    _, token = create_staff_token(user=django_user_model.objects.create_superuser("boss"))
    return {"Authorization": f"Bearer {token}"}


def test_an_upload_over_rest_becomes_a_draft_and_a_run(client: Any, staff: dict[str, str]) -> None:
    make_model("recyclables")
    content = keras_file()
    body = {
        "file": SimpleUploadedFile("mine.keras", content),
        "labels": ["glass", "metal"],
        "notes": "from the lab",
        "preprocessing": json.dumps({"width": 96, "height": 96, "fit": "center_crop"}),
    }
    answer = client.post("/api/v1/models/recyclables/versions", body, headers=staff)
    assert answer.status_code == 202, answer.content
    run = client.get(answer["Location"], headers=staff).json()
    assert (run["kind"], run["state"], run["version"]) == ("compile_upload", "queued", 1)
    version = ModelVersion.objects.get()
    assert version.labels == ["glass", "metal"]
    assert version.preprocessing["fit"] == "center_crop"
    assert blobs.store().read(version.source_sha256) == content
    second = client.post(
        "/api/v1/models/recyclables/versions",
        {"file": SimpleUploadedFile("other.tflite", TFLITE)},
        headers=staff,
    )
    assert (second.status_code, second.json()["code"]) == (409, "run_active")
    assert ModelVersion.objects.count() == 1  # and no number is lost
    client.post(f"{answer['Location']}/cancel", headers=staff)
    assert TrainingRun.objects.get().state == "cancelled"
    version.refresh_from_db()
    assert version.state == "failed"


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"file": ""}, 400, "invalid_input"),
        ({"labels": ["a", "a"]}, 400, "invalid_labels"),
        ({"preprocessing": "{"}, 400, "invalid_input"),
        ({"preprocessing": '{"width": 0, "height": 96}'}, 400, "invalid_input"),
        ({"preprocessing": '{"width": 96, "height": 96, "depth": 3}'}, 400, "invalid_input"),
        ({"weights": "none"}, 400, "invalid_input"),
        ({"task": "detection"}, 400, "invalid_input"),
        ({"file": SimpleUploadedFile("a.txt", b"hello")}, 415, "unsupported_model_format"),
        ({"file": SimpleUploadedFile("a.keras", b"hello")}, 422, "damaged_model_file"),
    ],
)
def test_a_bad_upload_is_refused_and_leaves_nothing(
    client: Any, staff: dict[str, str], changed: dict[str, Any], status: int, code: str
) -> None:
    make_model("recyclables")
    body = {"file": SimpleUploadedFile("mine.tflite", TFLITE)} | changed
    answer = client.post("/api/v1/models/recyclables/versions", body, headers=staff)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.content
    assert not ModelVersion.objects.exists()
    assert not list(blobs.store().iterate())


def test_what_a_network_is_said_to_be_goes_with_its_version(
    client: Any, staff: dict[str, str]
) -> None:
    make_model("boxes")
    body = {"file": SimpleUploadedFile("mine.tflite", TFLITE), "task": "other"}
    answer = client.post("/api/v1/models/boxes/versions", body, headers=staff)
    assert answer.status_code == 202, answer.content
    version = client.get("/api/v1/models/boxes/versions/1", headers=staff).json()
    assert version["signature"] == {"task": "other"}


def test_a_larger_upload_than_a_photo_is_taken_and_a_larger_than_allowed_is_not(
    client: Any, staff: dict[str, str], settings: Any
) -> None:
    settings.MAX_UPLOAD_BYTES, settings.MAX_MODEL_BYTES = 2**16, 2**20
    make_model("recyclables")
    path = "/api/v1/models/recyclables/versions"
    large = SimpleUploadedFile("mine.tflite", TFLITE + bytes(2**19))
    assert client.post(path, {"file": large}, headers=staff).status_code == 202
    larger = SimpleUploadedFile("mine.tflite", TFLITE + bytes(2**22))
    assert client.post(path, {"file": larger}, headers=staff).status_code == 413


def test_archives_are_read_without_unpacking_them(tmp_path: Any) -> None:
    entries = {f"layer{index}": b"x" for index in range(20_000)}
    with zipfile.ZipFile(tmp_path / "many.keras", "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    with (tmp_path / "many.keras").open("rb") as file, pytest.raises(DomainError) as refusal:
        check_upload(file, "many.keras", max_bytes=100 * MIB)
    assert refusal.value.code == "damaged_model_file"

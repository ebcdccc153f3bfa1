"""An upload that is no classifier becomes a version that devices can be given, and says how."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.urls import reverse
from nightferry.selftest import run_selftest

from server import blobs
from server.delivery import decision_set
from server.registry.actions import create_model
from server.registry.models import ModelVersion
from server.registry.serializers import VersionDetailSerializer
from server.training import actions as training
from tests.support.factories import release
from tests.worker.ml.test_signatures import _compile, detector, regressor
from worker.ml import training as ml_training
from worker.pipelines import compiling
from worker.pipelines.reporting import Reporter

pytestmark = [pytest.mark.django_db, pytest.mark.ml]
CONTEXT: Any = SimpleNamespace(
    check_alive=lambda: None,
    holding=contextlib.nullcontext,
    complete=lambda _result: None,
)


@pytest.fixture(autouse=True)
def _pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what only a fresh interpreter can do; here another test may have been first."""
    monkeypatch.setattr(compiling.determinism, "pin", lambda seed: {"seed": seed})


def _upload(filename: str, content: bytes, **more: Any) -> ModelVersion:
    policy = {"variants": ["tflite:float32", "tflite:int8", "coreml:float16", "coreml:palette8"]}
    model = create_model(slug="boxes", labels=[], training_policy=policy)
    run = training.upload_version(model=model, file=io.BytesIO(content), filename=filename, **more)
    started = training.start_run(run_id=run.pk)
    compiling.compile_upload(
        started, context=CONTEXT, reporter=Reporter(started, CONTEXT), store=blobs.store()
    )
    run.refresh_from_db()
    assert run.state == "succeeded", run.outcome
    assert run.version is not None
    return run.version


def test_a_network_becomes_files_that_agree_with_it(tmp_path: Path) -> None:
    version = _upload("mine.keras", ml_training.save_keras(detector()))
    assert version.signature["task"] == "other"
    assert [one["name"] for one in version.signature["outputs"]] == ["boxes", "scores"]
    found = {f"{one.runtime}:{one.precision}": one for one in version.variants.all()}
    assert found["tflite:float32"].metrics["difference"]["mean"] < 1e-4
    assert 0 < found["tflite:int8"].metrics["difference"]["mean"] < 0.03
    assert found["coreml:float16"].is_shipped
    assert "classifiers of photos only" in found["coreml:palette8"].refusal
    for variant in (found["tflite:float32"], found["tflite:int8"]):
        path = tmp_path / variant.filename
        path.write_bytes(blobs.store().read(variant.sha256))
        test = variant.selftest
        run_selftest(path, preprocessing={}, selftest=test, expected_sha256=test["sha256"])
    told = VersionDetailSerializer(version).data
    assert told["signature"] == version.signature
    shipped = [one for one in told["variants"] if one["is_shipped"]]
    assert len(shipped) == 3
    assert all("mean difference" in one["metrics"]["measured"] for one in shipped)


def test_a_finished_file_is_delivered_with_what_is_known_of_it(
    client: Any, django_user_model: Any
) -> None:
    content = _compile(regressor(), "tflite:float32")
    version = _upload("mine.tflite", content, labels=["weight"])
    (variant,) = version.variants.all()
    assert blobs.store().read(variant.sha256) == content
    assert version.labels == ["weight"]
    release(version)
    manifests = decision_set.load().models["boxes"].manifests.values()
    members = [one for one in manifests if one["artifact"]]
    assert all(one["signature"]["task"] == "other" for one in members)
    assert all("drawn inputs" in one["metrics"]["measured"] for one in members)
    client.force_login(django_user_model.objects.create_superuser("boss"))
    page = client.get(reverse("admin:registry_modelversion_change", args=[version.pk]))
    assert "3 drawn inputs" in page.content.decode()
    assert "no accuracy is known" in page.content.decode()
    assert client.get("/api/v1/models/boxes/versions/1/card").status_code == 200

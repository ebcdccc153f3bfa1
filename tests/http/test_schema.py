"""The OpenAPI description is whole, and the server keeps to it whatever it is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from django.core.management import call_command
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.console.actions import create_staff_token
from server.http.throttles import ScopedThrottle
from server.wsgi import application
from tests.support.factories import make_model, make_version, release

schema = schemathesis.openapi.from_wsgi("/api/v1/schema", application)


def test_the_schema_is_valid_and_generated_without_warnings(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    call_command(
        "spectacular", validate=True, fail_on_warn=True, file=str(file), format="openapi-json"
    )
    document = json.loads(file.read_text())
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method in {"get", "head", "post", "patch", "delete"}:
                told = operation.get("summary") or operation.get("description")
                assert told, f"{method} {path} says not what it does"
                problem = operation["responses"]["4XX"]["content"]["application/problem+json"]
                assert problem["schema"]["$ref"].endswith("/Problem")


@pytest.fixture
def headers(
    db: Any, django_user_model: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    # Hundreds of calls a minute are the point here.
    monkeypatch.setattr(ScopedThrottle, "allow_request", lambda *_: True)
    monkeypatch.setattr("server.http.throttles.check", lambda *_: None)
    release(make_version(make_model("recyclables")))
    user = django_user_model.objects.create_superuser("boss")
    _, token = create_staff_token(user=user)
    # As Django's own test client does: the test's transaction outlives a request.
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield {"Authorization": f"Bearer {token}"}
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@schema.parametrize()
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_input_breaks_the_server(case: Any, headers: dict[str, str]) -> None:
    # The known model and channel make most calls reach their work.
    if "model" in (case.path_parameters or {}):
        case.path_parameters["model"] = "recyclables"
    if "channel" in (case.path_parameters or {}):
        case.path_parameters["channel"] = "production"
    case.call_and_validate(
        headers={**(case.headers or {}), **headers},
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )

"""Every call × everyone who may try it; a call that is not listed here fails."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from server.console.actions import create_staff_token
from server.delivery.actions import create_application_key
from server.registry.models import Model
from tests.photos.people import register
from tests.support.factories import make_model, make_version, release

pytestmark = pytest.mark.django_db

ROLES = ("anonymous", "volunteer", "staff", "viewer", "app_key", "wrong_token")
# What each role is answered: let through (anything but 401, 403), turned away, or unknown.
OPEN = "all may"
STAFF = "staff may"
VOLUNTEER = "volunteers may"
MEMBER = "volunteers and staff may"
DEVICE = "application keys may"
SIGN_IN = "whoever has a password may"

CALLS = {
    "GET schema": OPEN,
    "GET docs": OPEN,
    "GET consent": OPEN,
    "POST volunteers": OPEN,
    "GET volunteers/me": VOLUNTEER,
    "PATCH volunteers/me": VOLUNTEER,
    "DELETE volunteers/me": VOLUNTEER,
    "POST volunteers/<uuid:volunteer_id>/trust": STAFF,
    "GET photos": VOLUNTEER,
    "POST photos": VOLUNTEER,
    "GET photos/<uuid:photo_id>": VOLUNTEER,
    "DELETE photos/<uuid:photo_id>": VOLUNTEER,
    "GET photos/<uuid:photo_id>/image": MEMBER,
    "GET photos/<uuid:photo_id>/thumbnail": MEMBER,
    "GET models/<str:model>/challenge": MEMBER,
    "GET models/<str:model>/leaderboard": MEMBER,
    "GET models/<str:model>/update": DEVICE,
    "GET models/<slug:model>/explain": STAFF,
    "GET artifacts/<sha256:sha256>": DEVICE,
    # Each file says who signed it, and none is secret.
    "GET metadata/<str:name>": OPEN,
    # Each event is judged by itself, so the call is answered whoever makes it.
    "POST events": OPEN,
    "GET keys": STAFF,
    "POST keys": STAFF,
    "DELETE keys/<int:key_id>": STAFF,
    "GET models": STAFF,
    "POST models": STAFF,
    "GET models/<slug:model>": STAFF,
    "PATCH models/<slug:model>": STAFF,
    "GET models/<slug:model>/versions": STAFF,
    "POST models/<slug:model>/versions": STAFF,
    "GET models/<slug:model>/versions/<int:number>": STAFF,
    "GET models/<slug:model>/golden": STAFF,
    "POST models/<slug:model>/golden": STAFF,
    "DELETE models/<slug:model>/golden/<uuid:photo_id>": STAFF,
    "GET models/<slug:model>/versions/<int:number>/card": STAFF,
    "GET models/<slug:model>/versions/<int:number>/variants": STAFF,
    "POST models/<slug:model>/versions/<int:number>/variants": STAFF,
    "POST models/<slug:model>/train": STAFF,
    "POST models/<slug:model>/searches": STAFF,
    "GET runs/<uuid:run_id>/search": STAFF,
    "POST runs/<uuid:run_id>/search/adopt": STAFF,
    "GET runs": STAFF,
    "GET runs/<uuid:run_id>": STAFF,
    "POST runs/<uuid:run_id>/cancel": STAFF,
    "GET models/<slug:model>/channels": STAFF,
    "GET models/<slug:model>/channels/<slug:channel>/releases": STAFF,
    "POST models/<slug:model>/channels/<slug:channel>/releases": STAFF,
    "POST models/<slug:model>/channels/<slug:channel>/rollback": STAFF,
    "POST models/<slug:model>/kill": STAFF,
    "GET models/<slug:model>/delivery-policy": STAFF,
    "PUT models/<slug:model>/delivery-policy": STAFF,
    "PUT models/<slug:model>/channels/<slug:channel>/golden": STAFF,
    "GET models/<slug:model>/channels/<slug:channel>/overrides": STAFF,
    "POST models/<slug:model>/channels/<slug:channel>/overrides": STAFF,
    "DELETE models/<slug:model>/channels/<slug:channel>/overrides/<str:device>": STAFF,
    "GET rollouts": STAFF,
    "POST rollouts": STAFF,
    "GET rollouts/<int:rollout_id>": STAFF,
    "PATCH rollouts/<int:rollout_id>": STAFF,
    "GET rollouts/<int:rollout_id>/decisions": STAFF,
    "POST rollouts/<int:rollout_id>/approve": STAFF,
    "POST rollouts/<int:rollout_id>/start": STAFF,
    "POST rollouts/<int:rollout_id>/queue": STAFF,
    "POST rollouts/<int:rollout_id>/pause": STAFF,
    "POST rollouts/<int:rollout_id>/resume": STAFF,
    "POST rollouts/<int:rollout_id>/advance": STAFF,
    "POST rollouts/<int:rollout_id>/rollback": STAFF,
    "POST rollouts/<int:rollout_id>/kill": STAFF,
    "GET models/<slug:model>/fleet": STAFF,
    "GET models/<slug:model>/telemetry": STAFF,
    "POST models/<slug:model>/versions/<int:number>/recall": STAFF,
    "POST auth/token": SIGN_IN,
    "DELETE auth/token/current": STAFF,
}
LAST = {
    "volunteer": "DELETE volunteers/me",
    "staff": "DELETE auth/token/current",
    "viewer": "DELETE auth/token/current",
}
# Plain views say which methods they take in their own code.
PLAIN = {"update": ("GET",), "artifact": ("GET",), "metadata": ("GET",), "events": ("POST",)}


def _patterns(resolver: URLResolver, prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    for entry in resolver.url_patterns:
        path = f"{prefix}{entry.pattern}"
        if isinstance(entry, URLResolver):
            yield from _patterns(entry, path)
        else:
            yield path, entry


def _calls() -> list[str]:
    calls = []
    for path, entry in _patterns(get_resolver()):
        if not path.startswith("api/v1/"):
            continue
        view = getattr(entry.callback, "cls", None)
        verbs = ("get", "post", "put", "patch", "delete")
        seen = [verb.upper() for verb in verbs if hasattr(view, verb)]
        methods = seen if view else PLAIN.get(entry.name or "", ())
        assert methods, f"{path} is a plain view: say in PLAIN which methods it takes"
        calls += [f"{method} {path.removeprefix('api/v1/')}" for method in methods]
    return calls


def test_every_call_of_the_server_is_listed_here() -> None:
    assert sorted(_calls()) == sorted(CALLS)


@pytest.fixture(autouse=True)
def _quick_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@dataclass
class World:
    client: Client
    headers: dict[str, dict[str, str]]
    values: dict[str, str]


@pytest.fixture
def world(client: Client, django_user_model) -> World:
    client.raise_request_exception = False
    model: Model = make_model("recyclables", is_open=False)
    released = release(make_version(model))
    people = django_user_model.objects
    _, staff = create_staff_token(user=people.create_superuser("boss", password="night-ferry-1"))
    _, viewer = create_staff_token(user=people.create_user("viewer", is_staff=True))
    _, key = create_application_key(name="app")
    volunteer = register(client)
    values = {
        "<slug:model>": model.slug,
        "<str:model>": model.slug,
        "<slug:channel>": "production",
        "<int:number>": "1",
        "<str:name>": "timestamp.json",
        "<int:key_id>": "999",
        "<int:rollout_id>": "999",
        "<str:device>": "nobody",
        "<uuid:run_id>": str(uuid.uuid4()),
        "<uuid:photo_id>": str(uuid.uuid4()),
        "<uuid:volunteer_id>": str(uuid.uuid4()),
        "<sha256:sha256>": released.version.variants.first().sha256,
    }
    headers = {
        "anonymous": {},
        "volunteer": {"Authorization": f"Bearer {volunteer.token}"},
        "staff": {"Authorization": f"Bearer {staff}"},
        "viewer": {"Authorization": f"Bearer {viewer}"},
        "app_key": {"X-App-Key": key},
        "wrong_token": {"Authorization": "Bearer 0123456789abcdef"},
    }
    return World(client, headers, values)


def _expected(call: str, role: str) -> str:
    rule = CALLS[call]
    # Staff without any permission may look at everything, change nothing, and sign out.
    viewers = {"viewer"} if call.startswith("GET ") or call == LAST["staff"] else set()
    let_in = {
        OPEN: set(ROLES),
        STAFF: {"staff", *viewers},
        VOLUNTEER: {"volunteer"},
        MEMBER: {"volunteer", "staff", *viewers},
        DEVICE: {"app_key"},
        SIGN_IN: set(),
    }[rule]
    if role in let_in:
        return "in"
    is_known = role in {"volunteer", "staff", "viewer"} and rule not in (DEVICE, SIGN_IN)
    return "forbidden" if is_known else "unauthenticated"


@pytest.mark.parametrize("role", ROLES)
def test_each_role_gets_in_or_is_turned_away(role: str, world: World) -> None:
    wrong = {}
    # What takes away the role's own account or token comes last.
    for call in sorted(CALLS, key=lambda call: call == LAST.get(role)):
        answer = _try(world, call, role)
        seen = {401: "unauthenticated", 403: "forbidden"}.get(answer.status_code, "in")
        expected = _expected(call, role)
        # A token that is sent has to be right, even where none is needed.
        is_strict = role == "wrong_token" and CALLS[call] == OPEN and seen == "unauthenticated"
        if (seen != expected and not is_strict) or answer.status_code >= 500:
            wrong[call] = f"{expected} expected, {answer.status_code}: {answer.content[:200]!r}"
        elif answer.status_code >= 400 and not _is_problem(answer):
            wrong[call] = f"no problem: {answer.content[:200]!r}"
        if answer.streaming:
            answer.getvalue()  # reads to the end, which closes the file
    assert not wrong


def _try(world: World, call: str, role: str) -> HttpResponse:
    method, path = call.split(" ", 1)
    for pattern, value in world.values.items():
        path = path.replace(pattern, value)
    query = "?device=test&runtime=tflite" if call.endswith("/update") else ""
    body = {"username": "boss", "password": "wrong"} if CALLS[call] == SIGN_IN else {}
    return world.client.generic(
        method,
        f"/api/v1/{path}{query}",
        data="" if method == "GET" else json.dumps(body),
        content_type="application/json",
        headers=world.headers[role],
    )


def _is_problem(answer: HttpResponse) -> bool:
    problem = json.loads(answer.content)
    return (
        answer["Content-Type"] == "application/problem+json"
        and {"type", "title", "status", "code", "detail"} <= problem.keys()
        and problem["status"] == answer.status_code
    )


def test_a_session_needs_its_csrf_token_and_staff(django_user_model) -> None:
    django_user_model.objects.create_user("boss", password="night-ferry-1", is_staff=True)
    client = Client(enforce_csrf_checks=True)
    client.force_login(django_user_model.objects.get())
    assert client.get("/api/v1/models").status_code == 200
    refused = client.post("/api/v1/models", {}, content_type="application/json")
    assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")


def test_signing_in_gives_a_token_that_signing_out_ends(client, django_user_model) -> None:
    django_user_model.objects.create_user("boss", password="night-ferry-1", is_staff=True)
    body = {"username": "boss", "password": "night-ferry-1"}
    answer = client.post("/api/v1/auth/token", body, content_type="application/json")
    assert answer.status_code == 201
    headers = {"Authorization": f"Bearer {answer.json()['token']}"}
    assert client.get("/api/v1/models", headers=headers).status_code == 200
    assert client.delete("/api/v1/auth/token/current", headers=headers).status_code == 204
    assert client.get("/api/v1/models", headers=headers).status_code == 401


def test_guessing_a_password_locks_the_name_out_with_a_problem(
    client, django_user_model, settings
) -> None:
    settings.AXES_FAILURE_LIMIT = 3
    django_user_model.objects.create_user("boss", password="night-ferry-1", is_staff=True)
    body = {"username": "boss", "password": "guess"}
    codes = [
        client.post("/api/v1/auth/token", body, content_type="application/json").json()["code"]
        for _ in range(4)
    ]
    assert codes[0] == "wrong_credentials"
    assert codes[-1] == "locked_out"
    right = body | {"password": "night-ferry-1"}
    answer = client.post("/api/v1/auth/token", right, content_type="application/json")
    assert answer.status_code == 429
    assert int(answer["Retry-After"]) > 0

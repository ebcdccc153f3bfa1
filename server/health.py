"""Whether the process is up, and whether it can do its work."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpResponse, JsonResponse

from server import blobs
from server.trust import queries as trust

if TYPE_CHECKING:
    from django.http import HttpRequest


def healthz(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    """Answer 200 while the process answers at all."""
    return JsonResponse({"status": "ok"})


def readyz(request: HttpRequest) -> HttpResponse:  # noqa: ARG001
    """Answer 200 when database, blob store and broker answer, else 503 naming what does not.

    ``warnings`` has a sentence for each role of the signed metadata that is about to expire.
    """
    checks: dict[str, Callable[[], None]] = {
        "database": _check_database,
        "blob_store": _check_blobs,
        "broker": _check_broker,
    }
    results = {name: _result(check) for name, check in checks.items()}
    ready = all(result == "ok" for result in results.values())
    return JsonResponse(
        {
            "status": "ok" if ready else "unavailable",
            "checks": results,
            "warnings": _warnings() if results["database"] == "ok" else [],
        },
        status=200 if ready else 503,
    )


def _warnings() -> list[str]:
    """Return what needs a person soon, although everything works."""
    try:
        return trust.alarms()
    except DatabaseError:
        return ["Nobody knows how long signed metadata hold: the database does not tell."]


def _result(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:  # noqa: BLE001 - whatever is wrong, the answer names it
        return f"failed: {type(error).__name__}"
    return "ok"


def _check_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()


def _check_blobs() -> None:
    if not blobs.store().healthy():
        raise ConnectionError


def _check_broker() -> None:
    if settings.BROKER_URL.startswith("filesystem:"):
        settings.NIGHTFERRY_DATA.stat()
        return
    import redis

    client = redis.Redis.from_url(settings.BROKER_URL, socket_timeout=2, socket_connect_timeout=2)
    client.ping()
    client.close()

"""What OpenAPI cannot see by itself."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension


class BearerScheme(OpenApiAuthenticationExtension):
    """Bearer tokens of volunteers and staff."""

    target_class = "server.http.authentication.BearerAuthentication"
    name = "bearer"
    priority = 1

    def get_security_definition(self, auto_schema: object) -> dict[str, Any]:  # noqa: ARG002
        """Describe the header."""
        return {"type": "http", "scheme": "bearer"}


class StaffSessionScheme(OpenApiAuthenticationExtension):
    """The admin's session cookie."""

    target_class = "server.http.authentication.StaffSessionAuthentication"
    name = "session"
    priority = 1

    def get_security_definition(self, auto_schema: object) -> dict[str, Any]:  # noqa: ARG002
        """Describe the cookie."""
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}


PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Stable; programs branch on it."},
        "detail": {"type": "string", "description": "A sentence that says what to do."},
    },
}

_METHODS = frozenset({"get", "head", "post", "put", "patch", "delete"})


def add_problems(result: dict[str, Any], generator: object, **_: Any) -> dict[str, Any]:  # noqa: ARG001
    """Give every call the one shape of errors; a hook of drf-spectacular."""
    result.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM
    reference = {"$ref": "#/components/schemas/Problem"}
    answer = {
        "description": "What is wrong, and what to do (RFC 9457).",
        "content": {"application/problem+json": {"schema": reference}},
    }
    for path in result["paths"].values():
        for method in _METHODS & path.keys():
            path[method]["responses"] = {**path[method]["responses"], "4XX": answer}
    return result


def only_version_1(endpoints: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Keep the calls of the public API."""
    return [endpoint for endpoint in endpoints if endpoint[0].startswith("/api/v1/")]

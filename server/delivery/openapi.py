"""The devices' calls in OpenAPI: plain views, which no generator can see, described by hand."""

from __future__ import annotations

from typing import Any

from server.domain.decision import RUNTIMES
from server.telemetry.actions import MAX_EVENTS
from server.telemetry.models import Event

_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_TEXT = {"type": "string"}
_TAGS = ["devices"]
# A model may be open, so a call without a key is sound too.
_SECURITY: list[dict[str, list[str]]] = [{"appKey": []}, {}]


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "nullable": True}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _listing(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


MANIFEST: dict[str, Any] = {
    **_object(
        spec_version={"type": "integer"},
        model=_TEXT,
        channel=_TEXT,
        label=_nullable({**_TEXT, "description": "The release, such as v3."}),
        version=_nullable({"type": "integer"}),
        kind={"type": "string", "enum": ["update", "rollback_to_embedded", "none"]},
        reason=_TEXT,
        created_at=_nullable({"type": "string", "format": "date-time"}),
        mandatory={"type": "boolean"},
        notes=_TEXT,
        artifact=_nullable(
            _object(
                path=_TEXT,
                target={**_TEXT, "description": "Where the signed metadata list the file."},
                runtime={"type": "string", "enum": list(RUNTIMES)},
                precision=_TEXT,
                sha256=_SHA256,
                size_bytes={"type": "integer"},
                media_type=_TEXT,
            )
        ),
        patches=_listing(
            _object(
                algorithm=_TEXT,
                from_sha256=_SHA256,
                sha256=_SHA256,
                size_bytes={"type": "integer"},
                path=_TEXT,
            )
        ),
        labels=_listing(_TEXT),
        preprocessing={"type": "object"},
        signature={"type": "object", "description": "Of uploads; the file itself decides."},
        selftest={"type": "object"},
        requires={"type": "object"},
        metrics={"type": "object"},
        enrolment=_nullable(_object(rollout=_TEXT, arm=_TEXT)),
        revoked=_listing(_SHA256),
        policy={**_TEXT, "description": "Changes with what the signed policy revokes."},
        poll=_object(interval_s={"type": "integer"}, jitter_pct={"type": "integer"}),
        telemetry=_object(sample_bp={"type": "integer"}),
    ),
    "description": "What an installation should run, and why. Ignore members you do not know.",
}

_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["event_id", "device", "type", "model", "occurred_at"],
    "properties": {
        "event_id": {"type": "string", "format": "uuid"},
        "device": {"type": "string", "minLength": 1, "maxLength": 128},
        "type": {"type": "string", "enum": list(Event.Type.values)},
        "model": {"type": "string", "maxLength": 63},
        "channel": {"type": "string", "maxLength": 63},
        "label": {"type": "string", "maxLength": 20},
        "version": _nullable({"type": "integer", "minimum": 0}),
        "sha256": {"type": "string", "maxLength": 64},
        "enrolment": _nullable({"type": "object"}),
        "data": {"type": "object"},
        "occurred_at": {"type": "string", "format": "date-time"},
    },
}


def _query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    is_required = bool(schema.pop("required", False))
    return {
        "in": "query",
        "name": name,
        "description": description,
        "required": is_required,
        "schema": {"type": "string", **schema},
    }


_MODEL = {"in": "path", "name": "model", "required": True, "schema": _TEXT}
_POLL = [
    _query("device", "The installation's own random id.", required=True, minLength=1, maxLength=128,
           pattern="^[!-~]+$"),
    _query("runtime", "What runs the file.", required=True, enum=list(RUNTIMES)),
    _query("channel", "A stream of releases.", default="production"),
    _query("accept", "Precisions in order of preference, with commas: int8,float16."),
    _query("platform", "For example ios or android."),
    _query("os_version", "For example 17.4."),
    _query("app_version", "The application's own."),
    _query("sdk_version", "The SDK's."),
    _query("device_class", "A coarse class of hardware."),
    _query("current", "The label that runs now, such as v3."),
    _query("enrolled", "rollout:arm, where the installation takes part in one."),
]  # fmt: skip


def _header(name: str, description: str) -> dict[str, Any]:
    return {"in": "header", "name": name, "description": description, "schema": _TEXT}


def _answer(description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    if schema is None:
        return {"description": description}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _operation(operation_id: str, summary: str, **members: Any) -> dict[str, Any]:
    return {
        "operationId": operation_id,
        "summary": summary,
        "tags": _TAGS,
        "security": _SECURITY,
        **members,
    }


def _paths() -> dict[str, Any]:
    manifest = {"$ref": "#/components/schemas/Manifest"}
    update = {
        "parameters": [
            _MODEL,
            *_POLL,
            _header("If-None-Match", "The entity tag of the last answer."),
        ],
        "responses": {
            "200": _answer(
                "The manifest; its ETag stays the same while the decision does.", manifest
            ),
            "204": _answer("Nothing for this installation: keep what you have."),
            "304": _answer("Nothing new."),
        },
    }
    bytes_of = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    artifact = {
        "parameters": [
            {"in": "path", "name": "sha256", "required": True, "schema": _SHA256},
            _header("Range", "One range of bytes."),
            _header("If-Range", "The sha256 as entity tag."),
            _header("If-None-Match", "The sha256 as entity tag."),
        ],
        "responses": {
            "200": {
                "description": "The file, immutable; its ETag is the sha256.",
                "content": bytes_of,
            },
            "206": {"description": "The range asked for.", "content": bytes_of},
            "302": _answer("A presigned address; not to be stored."),
            "304": _answer("You have it."),
        },
    }
    metadata = {
        "parameters": [
            {
                "in": "path",
                "name": "name",
                "required": True,
                "schema": _TEXT,
                "description": "timestamp.json, or by version 3.root.json, 17.snapshot.json, …",
            },
            _header("If-None-Match", "The entity tag of the last answer."),
        ],
        "responses": {
            "200": _answer(
                "A file of The Update Framework, version 1.0; all but the timestamp never change.",
                {"type": "object"},
            ),
            "304": _answer("You have it."),
        },
    }
    receipt = _object(
        accepted={"type": "integer"},
        duplicates={"type": "integer"},
        rejected=_listing(_object(index={"type": "integer"}, code=_TEXT)),
    )
    batch = _object(events={**_listing(_EVENT), "maxItems": MAX_EVENTS})
    return {
        "/api/v1/models/{model}/update": {
            "get": _operation("check_update", "What should this installation run?", **update)
        },
        "/api/v1/artifacts/{sha256}": {
            "get": _operation("get_artifact", "Fetch a released file", **artifact),
            "head": _operation("head_artifact", "Ask about a released file", **artifact),
        },
        "/api/v1/metadata/{name}": {
            "get": _operation("get_metadata", "Fetch signed metadata", **metadata),
            "head": _operation("head_metadata", "Ask about signed metadata", **metadata),
        },
        "/api/v1/events": {
            "post": _operation(
                "report_events",
                "Report what happened; sending an event twice changes nothing",
                requestBody={
                    "required": True,
                    "content": {"application/json": {"schema": batch}},
                },
                responses={"202": _answer("What became of each event.", receipt)},
            )
        },
    }


def add_device_calls(result: dict[str, Any], generator: object, **_: Any) -> dict[str, Any]:  # noqa: ARG001
    """Add the devices' calls to a generated schema; a hook of drf-spectacular."""
    components = result.setdefault("components", {})
    components.setdefault("schemas", {})["Manifest"] = MANIFEST
    components.setdefault("securitySchemes", {})["appKey"] = {
        "type": "apiKey",
        "in": "header",
        "name": "X-App-Key",
    }
    result["paths"] |= _paths()
    if explain := result["paths"].get("/api/v1/models/{model}/explain"):
        explain["get"] |= {"parameters": [_MODEL, *_POLL], "tags": _TAGS}
    result["paths"] = dict(sorted(result["paths"].items()))
    return result

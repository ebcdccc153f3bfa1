"""The device's view: update check, artifacts, signed metadata, events. Plain views, for speed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.http import HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.utils import extend_schema
from rest_framework.response import Response
from rest_framework.views import APIView

from server import blobs
from server.delivery import polls, reports
from server.delivery.decision_set import Artifact, holder
from server.domain.decision import decide, read_poll
from server.domain.errors import (
    DomainError,
    Gone,
    MethodNotAllowed,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from server.http.problems import problem_response
from server.http.ranges import Accel, Delivery, Redirect, Stream, ranged_response
from server.registry.queries import get_model
from server.trust.queries import metadata_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponseBase
    from rest_framework.request import Request

# Long enough for a slow phone to fetch a large file in one go; ranges ask for a new address.
PRESIGNED_FOR_S = 3600
TIMESTAMP = "timestamp.json"
_FOR_EVER = "public, max-age=31536000, immutable"


def _as_problems(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Answer domain errors as problems, without REST framework around the view."""

    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return view(request, *args, **kwargs)
        except DomainError as error:
            return problem_response(error)

    wrapped.__name__, wrapped.__doc__ = view.__name__, view.__doc__
    return wrapped


@csrf_exempt
@_as_problems
def check_update(request: HttpRequest, model: str) -> HttpResponse:
    """Answer one poll: 200 manifest, 304, or 204; no database query."""
    if request.method != "GET":
        return _method_not_allowed("GET")
    answer = polls.answer_poll(holder.current(), model, request.META)
    return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))


@csrf_exempt
@_as_problems
def fetch_artifact(request: HttpRequest, sha256: str) -> HttpResponseBase:
    """Serve the bytes of a released variant: ranges, validators, HEAD."""
    if request.method not in ("GET", "HEAD"):
        return _method_not_allowed("GET, HEAD")
    decisions = holder.current()
    artifact = decisions.artifacts.get(sha256)
    key = request.headers.get("X-App-Key", "")
    if artifact is None:
        message = "No released model has a file of this hash."
        raise NotFound(message, code="unknown_artifact")
    if not any(decisions.may_fetch(decisions.models[slug], key) for slug in artifact.models):
        message = (
            "This file needs an application key in X-App-Key, and this is not one of its keys."
        )
        raise Unauthenticated(message, code="invalid_app_key")
    if sha256 in decisions.revoked:
        message = "This file was revoked; ask the update check what to run."
        raise Gone(message, code="artifact_revoked")
    response = ranged_response(
        request,
        open_reader=lambda: blobs.store().open(sha256),
        size_bytes=artifact.size_bytes,
        etag=sha256,
        media_type=artifact.media_type,
        filename=artifact.filename,
        delivery=_delivery(artifact),
    )
    if not any(decisions.models[slug].is_open for slug in artifact.models):
        # A shared cache must not hand on what took a key to get.
        response["Cache-Control"] = response.get("Cache-Control", "").replace("public", "private")
    return response


def _delivery(artifact: Artifact) -> Delivery:
    """Return who sends the bytes: this process, nginx, or the store itself."""
    if settings.ARTIFACT_DELIVERY == "accel":
        return Accel(blobs.store().accel_path(artifact.sha256, media_type=artifact.media_type))
    if settings.ARTIFACT_DELIVERY == "redirect":
        return Redirect(lambda: _presigned(artifact))
    return Stream()


def _presigned(artifact: Artifact) -> str:
    url = blobs.store().presign(
        artifact.sha256,
        media_type=artifact.media_type,
        filename=artifact.filename,
        expires_s=PRESIGNED_FOR_S,
    )
    if url is None:
        message = (
            "ARTIFACT_DELIVERY is redirect, and this blob store makes no addresses of its own."
        )
        raise Unavailable(message, code="redirect_not_possible")
    return url


@csrf_exempt
def fetch_metadata(request: HttpRequest, name: str) -> HttpResponse:
    """Serve a file of the signed metadata; open to all, because each says who signed it."""
    if request.method not in ("GET", "HEAD"):
        return _method_not_allowed("GET, HEAD")
    content = metadata_file(name)
    if content is None:
        message = f"There is no signed metadata file called {name[:80]!r}."
        response = problem_response(NotFound(message, code="unknown_metadata"))
        # Clients ask for the next root, which may be there a moment later.
        response["Cache-Control"] = "no-store"
        return response
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    is_known = etag in request.headers.get("If-None-Match", "")
    response = HttpResponse(
        b"" if is_known else content,
        status=304 if is_known else 200,
        content_type="application/json",
    )
    response["ETag"] = etag
    # All but the timestamp carry their version in their name and never change.
    response["Cache-Control"] = "no-cache" if name == TIMESTAMP else _FOR_EVER
    return response


@csrf_exempt
@_as_problems
def take_events(request: HttpRequest) -> HttpResponse:
    """Store a batch of events; 202 with what became of each."""
    if request.method != "POST":
        return _method_not_allowed("POST")
    receipt = reports.take_batch(holder.current(), request.META, lambda: request.body)
    return JsonResponse(asdict(receipt), status=202)


def _method_not_allowed(allowed: str) -> HttpResponse:
    error = MethodNotAllowed(f"This address takes {allowed}.")
    response = problem_response(error)
    response["Allow"] = allowed
    return response


class Explain(APIView):
    """The same decision as the update check, with every rule that was tried."""

    @extend_schema(
        operation_id="explain_update",
        summary="Explain an installation's decision",
        responses={200: dict[str, Any]},
    )
    def get(self, request: Request, model: str) -> Response:
        """Return the decision and its steps."""
        get_model(model)
        decisions = holder.refresh()
        facts = decisions.models[model]
        poll = read_poll(request.query_params.dict())
        decision = decide(facts.channels.get(poll.channel), poll)
        answer = decisions.answer(facts, poll.channel, decision, poll.current)
        return Response(
            {
                "reason": decision.reason,
                "steps": [step._asdict() for step in decision.steps],
                "enrolment": {"rollout": decision.rollout, "arm": decision.arm}
                if decision.arm
                else None,
                "manifest": json.loads(answer.body) if answer else None,
                "epoch": decisions.epoch,
            }
        )

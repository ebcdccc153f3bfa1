"""Errors as ``application/problem+json`` (RFC 9457), with a stable ``code``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.exceptions import RequestDataTooBig, TooManyFilesSent
from django.http import Http404, HttpResponse
from django.http.multipartparser import MultiPartParserError
from rest_framework import exceptions
from rest_framework.response import Response

from server.domain import errors

if TYPE_CHECKING:
    from django.http import HttpRequest

CONTENT_TYPE = "application/problem+json"
log = structlog.get_logger(__name__)


def problem_body(error: errors.DomainError) -> dict[str, Any]:
    """Return the members of the answer for ``error``."""
    return {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        **error.extra,
    }


def problem_response(error: errors.DomainError) -> HttpResponse:
    """Return the answer for ``error`` outside REST framework."""
    response = HttpResponse(
        json.dumps(problem_body(error), default=str), status=error.status, content_type=CONTENT_TYPE
    )
    for name, value in problem_headers(error):
        response[name] = value
    return response


def problem_headers(error: errors.DomainError) -> list[tuple[str, str]]:
    """Return the headers that go with ``error``."""
    headers = []
    if error.status == errors.Unauthenticated.status:
        headers.append(("WWW-Authenticate", "Bearer"))
    if "retry_after_s" in error.extra:
        headers.append(("Retry-After", str(error.extra["retry_after_s"])))
    return headers


def unexpected() -> errors.DomainError:
    """Return what is answered where something broke: what happened is in the log alone."""
    return errors.DomainError("The server met an error it did not expect. It has been logged.")


def handle_exception(exception: Exception, context: dict[str, Any]) -> Response | None:
    """REST framework's exception handler: every error becomes a problem."""
    error = _as_domain_error(exception)
    if error is None:
        return None
    response = Response(problem_body(error), status=error.status, content_type=CONTENT_TYPE)
    for name, value in problem_headers(error):
        response[name] = value
    if error.status >= errors.DomainError.status:
        view = type(context.get("view")).__name__
        log.error("request_failed", code=error.code, detail=error.detail, view=view)
    return response


def _as_domain_error(exception: Exception) -> errors.DomainError | None:
    """Translate the framework's exceptions; None for those nobody expected."""
    if isinstance(exception, errors.DomainError):
        return exception
    if isinstance(exception, exceptions.ValidationError):
        return errors.InvalidInput(_first_sentence(exception.detail), fields=exception.detail)
    if isinstance(exception, exceptions.Throttled):
        wait = int(exception.wait or 60) + 1  # type: ignore[attr-defined]  # unknown to the stubs
        return errors.RateLimited(f"Too many requests; try again in {wait} s.", retry_after_s=wait)
    if isinstance(exception, RequestDataTooBig | TooManyFilesSent):
        return errors.TooLarge("The request is larger than this server takes.")
    if unreadable := _unreadable_body(exception):
        return unreadable
    for source, target in _TRANSLATIONS:
        if isinstance(exception, source):
            return target(_sentence(exception))
    if isinstance(exception, exceptions.APIException):
        error = errors.InvalidInput(_sentence(exception), code=str(exception.default_code))
        error.status = exception.status_code  # type: ignore[misc]
        error.title = str(exception.default_detail)  # type: ignore[misc]
        return error
    return None


def _unreadable_body(exception: Exception) -> errors.InvalidInput | None:
    """Say in plain words what the framework's parsers do not; None for anything else."""
    if isinstance(exception, RecursionError):
        # The framework's JSON parser gives up only here.
        return errors.InvalidInput("The body is nested too deeply.", code="invalid_json")
    # REST framework raises an error of its own while it handles Django's.
    if isinstance(exception.__context__, MultiPartParserError):
        message = (
            "The form could not be read: send it as multipart/form-data, with its parts whole."
        )
        return errors.InvalidInput(message, code="unreadable_form")
    return None


_TRANSLATIONS: tuple[tuple[type[Exception], type[errors.DomainError]], ...] = (
    (exceptions.NotAuthenticated, errors.Unauthenticated),
    (exceptions.AuthenticationFailed, errors.Unauthenticated),
    (exceptions.PermissionDenied, errors.PermissionDenied),
    (DjangoPermissionDenied, errors.PermissionDenied),
    (exceptions.NotFound, errors.NotFound),
    (Http404, errors.NotFound),
    (exceptions.ParseError, errors.InvalidInput),
    (exceptions.UnsupportedMediaType, errors.UnsupportedMediaType),
    (exceptions.MethodNotAllowed, errors.MethodNotAllowed),
)


def _sentence(exception: Exception) -> str:
    if isinstance(exception, Http404 | exceptions.NotFound):
        return "There is nothing here by that name."
    if isinstance(exception, exceptions.APIException):
        return _first_sentence(exception.detail)
    return str(exception) or "You may not do this."


def _first_sentence(detail: Any) -> str:
    if isinstance(detail, Mapping):
        name, value = next(iter(detail.items()), ("", "invalid"))
        return (
            _first_sentence(value)
            if name == "non_field_errors"
            else f"{name}: {_first_sentence(value)}"
        )
    if isinstance(detail, Sequence) and not isinstance(detail, str):
        return _first_sentence(detail[0]) if detail else "invalid"
    return str(detail)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001
    """Answer 404 outside any view: as a problem under /api/, as a page elsewhere."""
    return _outside(request, errors.NotFound("There is nothing at this address."))


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer 500: what happened is in the log, never in the answer."""
    return _outside(request, unexpected())


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001
    """Answer 400 for what Django itself refuses."""
    return _outside(request, errors.InvalidInput("The request could not be read."))


def csrf_failed(request: HttpRequest, reason: str = "") -> HttpResponse:  # noqa: ARG001
    """Answer 403 where a browser's session came without its token, or from another site."""
    message = "The page you sent this from is too old or from another site. Load it again."
    return _outside(request, errors.PermissionDenied(message, code="csrf_failed"))


def _outside(request: HttpRequest, error: errors.DomainError) -> HttpResponse:
    if request.path.startswith("/api/"):
        return problem_response(error)
    return HttpResponse(
        f"{error.title}. {error.detail}", status=error.status, content_type="text/plain"
    )

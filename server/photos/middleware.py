"""Bounds request bodies before anything parses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from django.conf import settings

from server.domain.errors import DomainError, InvalidInput, TooLarge
from server.http.problems import problem_response

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

# Boundaries, headers and the other fields of a form around its file.
FORM_OVERHEAD_BYTES = 64 * 2**10


class UploadLimitMiddleware:
    """Refuse a body larger than its view takes, by its announced length.

    A view says so with ``max_body_bytes`` (an attribute of the class or function, a number or a
    callable); all others take one photo. The length cannot lie: Django reads no further than
    it, and a body without one is refused, since it would be read as empty.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        """Keep the next layer."""
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Pass on: the view is not known yet."""
        return self.get_response(request)

    def process_view(
        self,
        request: HttpRequest,
        view: Callable[..., HttpResponse],
        args: tuple[Any, ...],  # noqa: ARG002
        kwargs: Mapping[str, Any],  # noqa: ARG002
    ) -> HttpResponse | None:
        """Answer 413 before the body is read."""
        error = _judge(request, _limit_of(view))
        return problem_response(error) if error is not None else None


def _limit_of(view: Callable[..., HttpResponse]) -> int:
    owner = getattr(view, "cls", None) or getattr(view, "view_class", None) or view
    limit = getattr(owner, "max_body_bytes", None)
    if limit is None:
        return int(settings.MAX_UPLOAD_BYTES) + FORM_OVERHEAD_BYTES
    return int(limit() if callable(limit) else limit)


def _judge(request: HttpRequest, limit_bytes: int) -> DomainError | None:
    length = request.META.get("CONTENT_LENGTH") or ""
    if not length and request.META.get("HTTP_TRANSFER_ENCODING"):
        return InvalidInput(
            "The request needs a Content-Length header.", code="content_length_missing"
        )
    if length and not length.isdecimal():
        return InvalidInput("Content-Length is not a number.", code="content_length_invalid")
    if int(length or 0) > limit_bytes:
        return TooLarge(
            f"The request has {int(length)} bytes; {limit_bytes} is the most that is taken here.",
            tip="Send the photo in a smaller size; 2048 pixels along the long side are enough.",
        )
    return None

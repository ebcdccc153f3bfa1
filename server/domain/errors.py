"""Every error the server reports, in one tree.

::

    DomainError                    500  internal_error
     ├── InvalidInput              400  invalid_input
     ├── Unauthenticated           401  unauthenticated
     ├── PermissionDenied          403  permission_denied
     ├── NotFound                  404  not_found
     ├── MethodNotAllowed          405  method_not_allowed
     ├── Conflict                  409  conflict
     ├── Gone                      410  gone
     ├── TooLarge                  413  too_large
     ├── UnsupportedMediaType      415  unsupported_media_type
     ├── Unprocessable             422  unprocessable
     ├── RateLimited               429  rate_limited
     └── Unavailable               503  unavailable

``code`` is stable: programs branch on it. ``detail`` is a sentence for a person that says
what is wrong and, where there is something to do, what to do.
"""

from __future__ import annotations

from typing import ClassVar


class DomainError(Exception):
    """A failure with a stable code, an HTTP status and a sentence for a person."""

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Something went wrong on the server"

    def __init__(self, detail: str, *, code: str | None = None, **extra: object) -> None:
        """Keep the sentence, the code (the class's own unless given) and members for the answer."""
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.extra = extra


class InvalidInput(DomainError):
    """The request is malformed."""

    status = 400
    default_code = "invalid_input"
    title = "The request could not be understood"


class Unauthenticated(DomainError):
    """No valid key or token came with the request."""

    status = 401
    default_code = "unauthenticated"
    title = "A valid key or token is needed"


class PermissionDenied(DomainError):
    """The caller is known, and may not do this."""

    status = 403
    default_code = "permission_denied"
    title = "Not allowed"


class NotFound(DomainError):
    """The thing named does not exist, or is not for this caller to know of."""

    status = 404
    default_code = "not_found"
    title = "Not found"


class MethodNotAllowed(DomainError):
    """The address exists, and is not called like this."""

    status = 405
    default_code = "method_not_allowed"
    title = "This address is called in another way"


class Conflict(DomainError):
    """The request is sound, but the present state forbids it."""

    status = 409
    default_code = "conflict"
    title = "Not possible in the present state"


class Gone(DomainError):
    """The thing existed and was taken away for good."""

    status = 410
    default_code = "gone"
    title = "Gone"


class TooLarge(DomainError):
    """More bytes or pixels than allowed."""

    status = 413
    default_code = "too_large"
    title = "Too large"


class UnsupportedMediaType(DomainError):
    """A format that is not taken here."""

    status = 415
    default_code = "unsupported_media_type"
    title = "This kind of file is not taken"


class Unprocessable(DomainError):
    """The request was understood, and its content is refused."""

    status = 422
    default_code = "unprocessable"
    title = "The content is refused"


class RateLimited(DomainError):
    """Too many requests."""

    status = 429
    default_code = "rate_limited"
    title = "Too many requests"


class Unavailable(DomainError):
    """A part the server depends on does not answer."""

    status = 503
    default_code = "unavailable"
    title = "Temporarily unavailable"

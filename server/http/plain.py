"""Answers outside any framework: what the shortest ways through the web process return."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from server.domain.errors import DomainError
from server.http.problems import CONTENT_TYPE, problem_body, problem_headers

JSON: Final = ("Content-Type", "application/json")
NOSNIFF: Final = ("X-Content-Type-Options", "nosniff")
_LINES: Final = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """An answer as HTTP wants it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    @property
    def status_line(self) -> str:
        """Return the status with its reason, as WSGI takes it."""
        return _LINES[self.status]


def json_answer(status: int, document: object) -> PlainAnswer:
    """Return a JSON document."""
    body = json.dumps(document, separators=(",", ":")).encode()
    return PlainAnswer(status, (JSON, NOSNIFF, ("Content-Length", str(len(body)))), body)


def problem_answer(error: DomainError) -> PlainAnswer:
    """Return the same problem as ``problems.problem_response``."""
    body = json.dumps(problem_body(error), default=str).encode()
    headers = (
        ("Content-Type", CONTENT_TYPE),
        NOSNIFF,
        ("Content-Length", str(len(body))),
        *problem_headers(error),
    )
    return PlainAnswer(error.status, headers, body)

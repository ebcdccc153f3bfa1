"""The WSGI application."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from django.core.wsgi import get_wsgi_application

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "server.settings")

django_application = get_wsgi_application()

from server.delivery import polls, reports  # noqa: E402 - needs the applications loaded


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer what devices send all the time here, and hand anything else to Django."""
    answer = polls.respond(environ) or reports.respond(environ)
    if answer is None:
        return django_application(environ, start_response)
    start_response(answer.status_line, list(answer.headers))
    return (answer.body,)

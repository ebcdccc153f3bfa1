"""The way of a poll: past everything that other requests need and it does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from server.delivery.api import check_update

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponseBase

_POLL = re.compile(r"/api/v1/models/([^/]+)/update\Z")


class PollMiddleware:
    """Answers update checks before sessions, logs and the resolver come in: a seventh of the CPU.

    Stands first. The view itself is in the URLs too, for ``reverse`` and for reading.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        """Keep the next layer."""
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer a poll here, and pass anything else on."""
        poll = _POLL.match(request.path_info)
        if poll is None:
            return self.get_response(request)
        return check_update(request, poll[1])

"""Answering an update check from memory: no database, no disk, and no framework in between.

Polls are nearly all of a fleet's requests. In WSGI itself one costs a fifth of what it costs as
a Django request, so ``server.wsgi`` asks here first; what is no plain poll, or is to be refused,
goes on to Django, whose view answers by the same function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from prometheus_client import Counter

from server.delivery.decision_set import DecisionSet, ModelFacts, holder
from server.domain.decision import decide, read_poll
from server.domain.errors import DomainError, Gone, NotFound, Unauthenticated
from server.http.plain import JSON, NOSNIFF, PlainAnswer

MAX_QUERY = 4096
_PATH = re.compile(r"/api/v1/models/([^/]+)/update\Z")
_POLLS = Counter("nightferry_polls", "Update checks answered, by status.", ["status"])
_ANSWERED = {status: _POLLS.labels(str(status)) for status in (200, 204, 304)}


def respond(environ: Mapping[str, Any]) -> PlainAnswer | None:
    """Answer a WSGI request if it is a poll that gets a plain answer; else Django has it."""
    decisions = holder.held
    if decisions is None or environ.get("REQUEST_METHOD") != "GET":
        return None
    poll = _PATH.match(environ.get("PATH_INFO", ""))
    if poll is None:
        return None
    try:
        return answer_poll(decisions, poll[1], environ)
    except DomainError:
        return None


def answer_poll(decisions: DecisionSet, slug: str, meta: Mapping[str, Any]) -> PlainAnswer:
    """Return 200 with the manifest, 304, or 204; ``meta`` holds CGI's names.

    Raises:
        InvalidInput: see ``read_poll``.
        NotFound, Unauthenticated, Gone: see ``open_model``.

    """
    model = open_model(decisions, slug, meta.get("HTTP_X_APP_KEY", ""))
    poll = read_poll(dict(parse_qsl(meta.get("QUERY_STRING", "")[:MAX_QUERY])))
    decision = decide(model.channels.get(poll.channel), poll)
    answer = decisions.answer(model, poll.channel, decision, poll.current)
    if answer is None:
        return _counted(PlainAnswer(204, _COMMON))
    tagged = (*_COMMON, ("ETag", answer.etag))
    if answer.etag in meta.get("HTTP_IF_NONE_MATCH", ""):
        return _counted(PlainAnswer(304, tagged))
    length = ("Content-Length", str(len(answer.body)))
    return _counted(PlainAnswer(200, (*tagged, JSON, length), answer.body))


_COMMON = (("Cache-Control", "private, no-cache"), NOSNIFF)


def _counted(answer: PlainAnswer) -> PlainAnswer:
    _ANSWERED[answer.status].inc()
    return answer


def open_model(decisions: DecisionSet, slug: str, key: str) -> ModelFacts:
    """Return the model if the caller may have it.

    Raises:
        NotFound: ``unknown_model``.
        Unauthenticated: ``invalid_app_key``.
        Gone: ``model_retired``.

    """
    facts = decisions.models.get(slug)
    if facts is None:
        raise NotFound(f"There is no model called {slug[:63]!r}.", code="unknown_model")
    if not decisions.may_fetch(facts, key):
        raise Unauthenticated(
            "This model needs an application key in X-App-Key, and this is not one of its keys.",
            code="invalid_app_key",
        )
    if facts.is_retired:
        raise Gone(f"{slug} is retired; keep the model you have.", code="model_retired")
    return facts

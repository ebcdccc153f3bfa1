"""Taking devices' events without a framework in between.

After polls these are most of a fleet's requests. What surrounds a Django request costs several
times what a batch itself does, so ``server.wsgi`` asks here; the view takes batches by the same
function, and all that is not a plain one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import structlog
from django.core.signals import request_finished, request_started
from prometheus_client import Counter

from server.delivery.decision_set import DecisionSet, holder
from server.domain.errors import DomainError, InvalidInput
from server.http import throttles
from server.http.plain import PlainAnswer, json_answer, problem_answer
from server.http.problems import unexpected
from server.telemetry.actions import Receipt, record_events

MAX_EVENTS_BYTES: Final = 512 * 1024
_PATH: Final = "/api/v1/events"
_BATCHES = Counter("nightferry_event_batches", "Batches of events answered, by status.", ["status"])
log = structlog.get_logger(__name__)


def respond(environ: Mapping[str, Any]) -> PlainAnswer | None:
    """Answer a WSGI request if it is a batch of events of a stated length; else Django has it."""
    if environ.get("PATH_INFO") != _PATH or environ.get("REQUEST_METHOD") != "POST":
        return None
    decisions, length = holder.held, _stated_length(environ)
    if decisions is None or length is None or length > MAX_EVENTS_BYTES:
        return None
    answer = _answer(decisions, environ, length)
    _BATCHES.labels(str(answer.status)).inc()
    return answer


def _answer(decisions: DecisionSet, environ: Mapping[str, Any], length: int) -> PlainAnswer:
    # As Django does around each request: connections that broke or grew old are made anew.
    request_started.send(sender=__name__, environ=environ)
    try:
        receipt = take_batch(decisions, environ, lambda: environ["wsgi.input"].read(length))
        return json_answer(202, asdict(receipt))
    except DomainError as error:
        return problem_answer(error)
    except Exception:
        # The body is gone, so nobody else could answer.
        log.exception("request_failed", path=_PATH)
        return problem_answer(unexpected())
    finally:
        request_finished.send(sender=__name__)


def take_batch(
    decisions: DecisionSet, meta: Mapping[str, Any], read: Callable[[], bytes]
) -> Receipt:
    """Take a batch; ``meta`` holds CGI's names, and ``read`` returns the body.

    Raises:
        RateLimited: the caller's address sent too many.
        InvalidInput: ``invalid_json``, or as ``record_events``.
        Unavailable: as ``record_events``.

    """
    throttles.check(meta, "events")
    if (_stated_length(meta) or 0) > MAX_EVENTS_BYTES:
        message = f"A batch of events takes up to {MAX_EVENTS_BYTES // 1024} KiB."
        raise InvalidInput(message, code="too_many_events")
    try:
        body = json.loads(read())
    except (ValueError, RecursionError, OSError) as error:
        message = "The body is not JSON, or did not come whole."
        raise InvalidInput(message, code="invalid_json") from error
    models, key = decisions.models, meta.get("HTTP_X_APP_KEY", "")
    return record_events(
        body.get("events") if isinstance(body, dict) else None,
        may_report=lambda slug: slug in models and decisions.may_fetch(models[slug], key),
    )


def _stated_length(meta: Mapping[str, Any]) -> int | None:
    """Return the body's length where the request states one."""
    stated = meta.get("CONTENT_LENGTH") or ""
    return int(stated) if stated.isdecimal() else None

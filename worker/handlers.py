"""Which function runs which job.

Functions are named, not imported, so that only the process that runs a job loads what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from django.conf import settings

from server.jobs import names
from server.jobs.errors import UnknownJob
from worker.context import JobContext

JobFunction = Callable[[JobContext], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Handler:
    """Where a job's function is, and whether it runs in a fresh interpreter of its own.

    Whatever imports TensorFlow is isolated: a process that has run it can no longer fork
    safely and keeps its memory.
    """

    path: str
    isolated: bool

    def run(self, context: JobContext) -> Mapping[str, Any] | None:
        """Import the function and call it."""
        result: Mapping[str, Any] | None = load(self.path)(context)
        return result


HANDLERS: Final[dict[str, Handler]] = {
    names.TRAIN: Handler("worker.pipelines.retraining:run", isolated=True),
    names.COMPILE_UPLOAD: Handler("worker.pipelines.compiling:run", isolated=True),
    names.COMPILE_VARIANTS: Handler("worker.pipelines.deriving:run", isolated=True),
    names.SEARCH: Handler("worker.pipelines.searching:run", isolated=True),
    names.EMBED: Handler("worker.pipelines.embedding:run", isolated=True),
    # Takes memory of several times the files' size, which a process of its own gives back.
    names.BUILD_PATCHES: Handler("worker.pipelines.patching:run", isolated=True),
    names.PUBLISH: Handler("worker.pipelines.publishing:run", isolated=False),
    names.NOTIFY: Handler("worker.pipelines.webhooks:run", isolated=False),
}
TICKS: Final[dict[str, str]] = {
    names.NIGHTLY: "worker.pipelines.nightly:tick",
    names.RENEW: "worker.pipelines.publishing:renew",
    names.CATCH_UP: "worker.pipelines.publishing:catch_up",
    names.DRAIN: "worker.pipelines.telemetry:drain",
    names.SUMMARISE: "worker.pipelines.telemetry:summarise",
    names.UPKEEP: "worker.pipelines.telemetry:upkeep",
    names.LOOK: "worker.pipelines.rollouts:look",
    names.SEND_AGAIN: "worker.pipelines.webhooks:send_again",
}


def find(name: str) -> Handler:
    """Return the handler of the job called ``name``; raises :class:`UnknownJob`."""
    handlers = HANDLERS | _test_handlers()
    if name not in handlers:
        message = f"This worker knows no job called {name!r}; it may be older than the server."
        raise UnknownJob(message)
    return handlers[name]


def all_names() -> list[str]:
    """Return the name of every job this worker can run."""
    return sorted(HANDLERS | _test_handlers())


def load(path: str) -> Callable[..., Any]:
    """Import the function that ``package.module:function`` names."""
    module, _, function = path.partition(":")
    loaded: Callable[..., Any] = getattr(import_module(module), function)
    return loaded


def _test_handlers() -> dict[str, Handler]:
    """Return the handlers that tests add by NIGHTFERRY_TEST_HANDLERS; else none."""
    module = settings.NIGHTFERRY_TEST_HANDLERS
    if not module:
        return {}
    handlers: dict[str, Handler] = import_module(module).HANDLERS
    return {name: one for name, one in handlers.items() if name.startswith(names.TEST_PREFIX)}

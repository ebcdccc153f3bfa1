"""What each kind of process loads, and that every job has somebody who does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture import probe

_WEB = """
import django, io, os
os.environ["DJANGO_SETTINGS_MODULE"] = "server.settings"
django.setup()
from django.core.management import call_command
call_command("migrate", interactive=False, verbosity=0)

from server.rollouts import actions as rollouts
from server.trust import actions as trust
from server.trust import roles
from tests.support import factories
model = factories.make_model()
version = factories.make_version(model)
rollouts.release_version(version=version)
signed = rollouts.prepare_publication(model=model)
role, paths = roles.role_of(model.slug), roles.paths_of(model.slug)
trust.publish(role=role, paths=paths, targets=signed.targets)
rollouts.announce(publication=signed)

from server.wsgi import application
from wsgiref.util import setup_testing_defaults

def get(path, query=""):
    environ = {"PATH_INFO": path, "QUERY_STRING": query, "HTTP_HOST": "localhost"}
    setup_testing_defaults(environ)
    said = []
    body = application(environ, lambda status, headers: said.append(status))
    try:
        return said[0].partition(" ")[0], b"".join(body).decode()
    finally:
        getattr(body, "close", lambda: None)()

status, manifest = get("/api/v1/models/recyclables/update", "device=one&runtime=tflite")
answer = {
    "health": get("/healthz"),
    "update": (status, manifest),
    "unknown": get("/api/v1/models/nothing/update", "device=one&runtime=tflite")[0],
    "admin": get("/admin/login/")[0],
    "schema": get("/api/v1/schema")[0],
    "worker": sorted(name for name in sys.modules if name.partition(".")[0] == "worker"),
}
"""

_WORKER = """
from worker.app import app
from worker import handlers
from server.jobs import names
answer = {
    "tasks": sorted(name for name in app.tasks if not name.startswith("celery.")),
    "names": sorted([*names.JOBS, *names.PERIODIC]),
    "queues": sorted(names.JOBS.values()),
    "known_queues": sorted(queue.name for queue in app.conf.task_queues),
}
"""

_HANDLERS = """
import worker.app
from worker import handlers
paths = [handler.path for handler in handlers.HANDLERS.values()] + list(handlers.TICKS.values())
answer = {"functions": {path: callable(handlers.load(path)) for path in paths}}
"""


def test_the_web_process_serves_on_a_machine_without_any_framework(tmp_path: Path) -> None:
    answer = probe.run(_WEB, data=tmp_path, frameworks=False)

    assert answer["health"][0] == "200"
    status, manifest = answer["update"]
    assert status == "200"
    assert '"label":"v1"' in manifest
    assert answer["unknown"] == "404"
    assert answer["admin"] == "200"
    assert answer["schema"] == "200"
    assert answer["loaded"] == []
    assert answer["worker"] == []


def test_every_job_name_has_a_task_and_a_known_queue(tmp_path: Path) -> None:
    answer = probe.run(_WORKER, data=tmp_path, frameworks=False)

    assert answer["tasks"] == answer["names"]
    assert set(answer["queues"]) <= set(answer["known_queues"])


def test_every_job_has_a_function_and_importing_it_loads_no_framework(tmp_path: Path) -> None:
    answer = probe.run(_HANDLERS, data=tmp_path)

    assert answer["functions"]
    assert all(answer["functions"].values()), answer["functions"]
    assert answer["loaded"] == []


def test_the_probe_notices_a_framework(tmp_path: Path) -> None:
    answer = probe.run("import scipy\nanswer = {}\n", data=tmp_path)

    assert answer["loaded"] == ["scipy"]
    with pytest.raises(AssertionError, match="No module named 'scipy'"):
        probe.run("import scipy\nanswer = {}\n", data=tmp_path, frameworks=False)

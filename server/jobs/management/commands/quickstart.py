"""``python manage.py quickstart``: the whole server with one command and no other service."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser

from server import env
from server.jobs.names import DEFAULT_QUEUE, ML_QUEUE, SIGNING_QUEUE
from server.jobs.supervisor import Service, Supervisor

_WEB_THREADS = 8
_LIGHT_JOBS = 4
_BODY_OVERHEAD_BYTES = 2**20  # multipart headers and the other fields of a form


class Command(BaseCommand):
    """Runs web, workers and schedule under one supervisor."""

    help = (
        "Runs the web server, the workers and the schedule until Ctrl-C, and restarts what dies."
        " Brings the database up to date first."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the address, and what to leave out."""
        parser.add_argument("--host", help="address to listen on (HOST, else 127.0.0.1)")
        parser.add_argument("--port", type=int, help="port to listen on (PORT, else 8000)")
        parser.add_argument("--no-web", action="store_true", help="run no web server")
        parser.add_argument("--no-worker", action="store_true", help="run no workers")
        parser.add_argument("--no-beat", action="store_true", help="run no schedule")
        parser.add_argument(
            "--stop-at-eof",
            action="store_true",
            help="end when standard input ends, so that a program that starts this takes it along",
        )

    def handle(self, *_: Any, **options: Any) -> None:
        """Prepare everything, then run until told to stop."""
        host, port = _read_address(options["host"], options["port"])
        if not options["no_web"]:
            _require_free_port(host, port)
        with _sole_use_of_data():
            call_command("migrate", interactive=False, verbosity=0)
            self._ensure_administrator()
            call_command("trust", "ensure", stdout=self.stdout, stderr=self.stderr)
            supervisor = Supervisor(_list_services(options, host, port), folder=settings.BASE_DIR)
            if options["stop_at_eof"]:
                threading.Thread(target=_stop_at_eof, args=(supervisor,), daemon=True).start()
            announce = _Once(lambda: self._announce(host, port))
            supervisor.run(on_tick=lambda: None if options["no_web"] else announce(host, port))
        self.stdout.write("Stopped.")

    def _announce(self, host: str, port: int) -> None:
        """Say where the server is."""
        shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - only compared
        shown = f"[{shown}]" if ":" in shown else shown
        self.stdout.write(
            f"\nNightferry is ready at http://{shown}:{port}"
            f" (administration at /admin/). Ctrl-C stops it.\n"
        )
        self.stdout.flush()

    def _ensure_administrator(self) -> None:
        """Make an administrator on the first start; the password is shown this once."""
        users = get_user_model()
        if users.objects.filter(is_superuser=True).exists():
            return
        password = secrets.token_urlsafe(12)
        users.objects.create_superuser(username="admin", password=password)
        self.stdout.write(
            "\nFirst start: an administrator was made.\n"
            f"    user name  admin\n    password   {password}\n"
            "It is not shown again; `python manage.py changepassword admin` sets another.\n"
        )
        self.stdout.flush()


class _Once:
    """Calls a function once, as soon as the port answers."""

    def __init__(self, function: Callable[[], None]) -> None:
        """Wait."""
        self._function: Callable[[], None] | None = function

    def __call__(self, host: str, port: int) -> None:
        """Call the function if the port answers now and never did before."""
        function = self._function
        if function is None:
            return
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            self._function = None
            function()


def _read_address(host: str | None, port: int | None) -> tuple[str, int]:
    """Return the address from the options, else from HOST and PORT."""
    try:
        chosen = port if port is not None else env.integer("PORT", 8000, minimum=1, maximum=65_535)
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error
    if not 1 <= chosen <= 65_535:  # noqa: PLR2004 - the range of ports
        message = f"--port is {chosen}; it takes 1 to 65535."
        raise CommandError(message)
    return host or env.text("HOST", "127.0.0.1"), chosen


def _require_free_port(host: str, port: int) -> None:
    """Raise a sentence when nothing could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = (
                f"Cannot listen on {host} port {port}: {error.strerror}."
                " Choose another with PORT=… (or --port) and HOST=… (or --host)."
            )
            raise CommandError(message) from error


@contextlib.contextmanager
def _sole_use_of_data() -> Iterator[None]:
    """Hold the data folder: two supervisors over one would run every schedule twice."""
    folder = settings.NIGHTFERRY_DATA
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "quickstart.lock").open("a")
    except OSError as error:
        message = f"NIGHTFERRY_DATA is {str(folder)!r}, which cannot be written: {error.strerror}."
        raise CommandError(message) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = (
                f"Another Nightferry already runs on the data in {folder}."
                " Stop it, or name another folder with NIGHTFERRY_DATA."
            )
            raise CommandError(message) from error
        yield


def _list_services(options: dict[str, Any], host: str, port: int) -> list[Service]:
    """Return what to run, without what was left out."""
    services = []
    if not options["no_web"]:
        services.append(_web(host, port))
    if not options["no_worker"]:
        # Signing is serial by the repository's lock, so it needs no process of its own here.
        services.append(_worker("worker", f"{SIGNING_QUEUE},{DEFAULT_QUEUE}", _LIGHT_JOBS))
        # Training has its own worker, one at a time, so that light jobs never wait for it.
        services.append(_worker("trainer", ML_QUEUE, 1))
    if not options["no_beat"]:
        services.append(Service("beat", _celery("beat", "--pidfile=", "--loglevel=INFO")))
    return services


def _web(host: str, port: int) -> Service:
    """Return the web server: slow clients cost it a connection, not a thread."""
    limit = max(settings.MAX_UPLOAD_BYTES, settings.MAX_MODEL_BYTES) + _BODY_OVERHEAD_BYTES
    argv = (
        sys.executable, "-m", "waitress",
        f"--host={host}", f"--port={port}", f"--threads={_WEB_THREADS}",
        f"--max-request-body-size={limit}", "--channel-timeout=60", "--connection-limit=500",
        # Who is believed is said by TRUSTED_PROXIES; waitress would drop the headers before.
        "--no-clear-untrusted-proxy-headers",
        "--asyncore-use-poll", "--ident=Nightferry", "server.wsgi:application",
    )  # fmt: skip
    # On Ctrl-C waitress finishes what it is answering; on SIGTERM it would just die.
    return Service("web", argv, stop_signal=signal.SIGINT)


def _worker(name: str, queues: str, concurrency: int) -> Service:
    """Return a worker of these queues. Threads, not forks: jobs that need more have a child."""
    argv = _celery(
        "worker", f"--queues={queues}", f"--hostname={name}@%h", "--pool=threads",
        f"--concurrency={concurrency}", "--loglevel=INFO",
        "--without-gossip", "--without-mingle", "--without-heartbeat",
    )  # fmt: skip
    return Service(name, argv)


def _celery(*arguments: str) -> tuple[str, ...]:
    """Return a Celery command line."""
    return (sys.executable, "-m", "celery", "--quiet", "--app=worker.app", *arguments)


def _stop_at_eof(supervisor: Supervisor) -> None:
    """Stop once standard input has ended."""
    # Not through sys.stdin: its buffer's lock, held here at exit, ends Python by a fatal error.
    while os.read(0, 4096):
        pass
    supervisor.stop()

"""Servers with a released model, a small load generator, and CPU time read from the kernel."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import HOST, answers_http, free_port, running

ROOT = Path(__file__).resolve().parent.parent
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
POLL = (
    "/api/v1/models/recyclables/update?device=5f0c6f3e-2f0a-4a3e-9d62-0f3f0a5d9f31"
    "&runtime=tflite&channel=production&accept=int8,float16&platform=android&os_version=14"
    "&app_version=3.2&sdk_version=0.1.0"
)

RELEASE = """
import json, os, random, django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from server import blobs
from tests.support import factories
if isinstance(blobs.store(), blobs.S3BlobStore):
    blobs.store().prepare()
content = {"tflite:int8": random.Random(1).randbytes(int(os.environ["ARTIFACT_BYTES"]))}
labels = ("cardboard", "glass", "metal", "paper", "plastic", "trash")
model = factories.make_model(labels=labels)
factories.release(factories.make_version(model, content=content))
count = int(os.environ.get("ROLLOUTS", "0"))
if count:
    from server.rollouts import actions, staging

    def announce(model):
        # Signing a hundred models takes minutes, and a poll reads no metadata.
        actions.announce(publication=actions.prepare_publication(model=model))

    for number in range(count):
        other = model if number == 0 else factories.make_model(f"other-{number}", labels=labels)
        if number:
            first = factories.make_version(other, content={"tflite:int8": b"one"})
            actions.release_version(version=first)
            announce(other)
        candidate = factories.make_version(other, content={"tflite:int8": b"two"})
        rules = [{"attribute": "app_version", "operator": "version_at_least", "values": ["3.0"]}]
        policy = {"stages_bp": [5000]}
        rollout = staging.create_rollout(version=candidate, policy=policy, targeting=rules)
        staging.start_rollout(rollout=rollout)
        announce(other)
"""


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, and the process its CPU time is counted from."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


@contextlib.contextmanager
def released(artifact_bytes: int, **settings: str) -> Iterator[dict[str, str]]:
    """Make a data folder with one released model; yield the environment of its servers."""
    with tempfile.TemporaryDirectory(prefix="nightferry-benchmark-") as folder:
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "server.settings",
            "NIGHTFERRY_DATA": folder,
            "ARTIFACT_BYTES": str(artifact_bytes),
            "LOG_LEVEL": "WARNING",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            **settings,
        }
        subprocess.run([sys.executable, "-c", RELEASE], env=environment, cwd=ROOT, check=True)
        yield environment


@contextlib.contextmanager
def embedded(environment: Mapping[str, str]) -> Iterator[Server]:
    """Run the web server that `quickstart` runs."""
    program = (
        "import os, sys, django; django.setup()\n"
        "from server.jobs.management.commands.quickstart import _web\n"
        "argv = _web('127.0.0.1', int(sys.argv[1])).argv\n"
        "os.execv(argv[0], argv)"
    )
    with _python("embedded", ["-c", program], environment) as server:
        yield server


@contextlib.contextmanager
def gunicorn(environment: Mapping[str, str], *, workers: int = 1) -> Iterator[Server]:
    """Run the web server of the images; one worker, so that its CPU time is one process's."""
    command = [
        "-m", "gunicorn", "server.wsgi", "--no-control-socket", "--worker-class=gthread",
        f"--workers={workers}", "--threads=4", "--bind", f"{HOST}:{{port}}",
    ]  # fmt: skip
    with _python("gunicorn", command, environment) as server:
        yield server


@contextlib.contextmanager
def granian(environment: Mapping[str, str]) -> Iterator[Server]:
    """Run granian, which is no dependency of ours: only where somebody has installed it."""
    command = [
        "-m", "granian", "server.wsgi:application", "--interface=wsgi", "--workers=1",
        "--blocking-threads=1", "--no-access-log", "--host", HOST, "--port={port}",
    ]  # fmt: skip
    with _python("granian", command, environment) as server:
        yield server


@contextlib.contextmanager
def _python(name: str, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Server]:
    port = free_port()
    command = [word.replace("{port}", str(port)) for word in command]
    if command[0] == "-c":
        command = [*command, str(port)]
    with (
        tempfile.TemporaryDirectory(prefix=f"nightferry-{name}-") as folder,
        running(
            [sys.executable, *command],
            log=Path(folder) / f"{name}.log",
            ready=lambda: answers_http(port, "/healthz"),
            env=environment,
            cwd=ROOT,
        ) as guard,
    ):
        yield Server(port, guard.pid)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a process and all below it have used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used = (int(fields[11]) + int(fields[12])) * TICK_S
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return used + sum(cpu_s(int(child)) for child in children)


@dataclass(frozen=True)
class Request:
    """One GET, and the status it must be answered with."""

    path: str
    status: int = 200
    headers: Mapping[str, str] | None = None

    def encoded(self, port: int) -> bytes:
        lines = [f"GET {self.path} HTTP/1.1", f"Host: {HOST}:{port}"]
        lines += [f"{name}: {value}" for name, value in (self.headers or {}).items()]
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True)
class Measured:
    """What a load did: CPU times in seconds by server, and the generator's own."""

    requests: int
    seconds: float
    cpu_s: tuple[float, ...]
    generator_s: float
    body_bytes: int

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    def cpu_us(self, server: int = 0) -> float:
        return self.cpu_s[server] / self.requests * 1e6


class Connection:
    """One connection, kept alive if the server lets it; all answers are as long as the first."""

    def __init__(self, port: int, request: Request) -> None:
        self.port, self.is_kept = port, False
        self.wanted = request.encoded(port)
        self.expected = f"HTTP/1.1 {request.status} ".encode()
        self.buffer = memoryview(bytearray(2**20))
        self.send()
        self.answer_bytes, self.body_bytes = self._measure()

    def send(self) -> None:
        if not self.is_kept:
            self.socket = socket.create_connection((HOST, self.port), timeout=60)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(self.wanted)

    def _measure(self) -> tuple[int, int]:
        received = b""
        while b"\r\n\r\n" not in received:
            chunk = self.socket.recv(65_536)
            if not chunk:
                raise ConnectionError("the server closed the connection")
            received += chunk
        head, _, body = received.partition(b"\r\n\r\n")
        self._check(head)
        headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        lengths = {name.lower(): value for name, value in headers.items()}
        self.is_kept = lengths.get(b"connection", b"").lower() != b"close"
        if b" 304 " in head[:14] or b" 204 " in head[:14]:
            return len(head) + 4, 0
        if b"content-length" in lengths:
            length = int(lengths[b"content-length"])
            self._skip(length - len(body))
        else:  # in chunks; the last one is empty
            while not body.endswith(b"\r\n0\r\n\r\n"):
                body += self.socket.recv(65_536)
            length = len(body)
        return len(head) + 4 + length, length

    def receive(self) -> None:
        left = self.answer_bytes
        count = self.socket.recv_into(self.buffer)
        self._check(self.buffer[:64])
        self._skip(left - count)
        if not self.is_kept:
            self.socket.close()

    def _skip(self, left: int) -> None:
        while left > 0:
            count = self.socket.recv_into(self.buffer)
            if not count:
                raise ConnectionError("the server closed the connection")
            left -= count

    def _check(self, head: bytes | memoryview) -> None:
        if bytes(head[: len(self.expected)]) != self.expected:
            raise ValueError(f"expected {self.expected!r}, got {bytes(head[:64])!r}")


def load(
    port: int, request: Request, pids: Sequence[int], *, seconds: float, connections: int = 8
) -> Measured:
    """Keep ``connections`` requests in flight for a while, after a warm-up of a fifth of it."""
    clients = [Connection(port, request) for _ in range(connections)]
    _rounds(clients, seconds / 5)
    before, own = [cpu_s(pid) for pid in pids], time.process_time()
    rounds, taken = _rounds(clients, seconds)
    used = tuple(cpu_s(pid) - then for pid, then in zip(pids, before, strict=True))
    generator = time.process_time() - own
    for client in clients:
        client.socket.close()
    return Measured(rounds * connections, taken, used, generator, clients[0].body_bytes)


def _rounds(clients: Sequence[Connection], seconds: float) -> tuple[int, float]:
    begun, count = time.perf_counter(), 0
    for client in clients:
        client.send()
    while True:
        for client in clients:
            client.receive()
            client.send()
        count += 1
        taken = time.perf_counter() - begun
        if taken > seconds:
            break
    for client in clients:
        client.receive()
    return count, taken


def fetch(port: int, path: str) -> tuple[Mapping[str, str], bytes]:
    """Return one answer's headers and body."""
    import http.client

    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise ValueError(f"{path}: {answer.status} {body[:300]!r}")
    headers = answer.headers
    connection.close()
    return headers, body


def manifest(port: int) -> tuple[str, dict]:
    """Return the entity tag and the manifest a poll is answered with."""
    headers, body = fetch(port, POLL)
    return headers["ETag"], json.loads(body)


def machine() -> str:
    """Return a line on where this ran."""
    load_1 = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, load average before {load_1:.1f}"
    )

"""The whole server as an operator starts it: ``manage.py quickstart`` on a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PASSWORD = "only-for-tests-1"


@dataclass
class LiveServer:
    """A running server and a staff token for it."""

    url: str
    data: Path
    env: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    token: str = field(default="", repr=False)

    def call(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """Return the JSON of an operator's call; raises ``urllib.error.HTTPError``."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        for name, value in headers.items():
            request.add_header(name, value)
        with urllib.request.urlopen(request, timeout=60) as response:
            content = response.read()
        return json.loads(content) if content else None

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a management command on the server's data."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def wait_for_run(self, run_id: str, *, timeout_s: float = 240) -> dict[str, Any]:
        """Return the run once it has ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            run = self.call("GET", f"/runs/{run_id}")
            if run["state"] not in ("queued", "running"):
                return run
            time.sleep(0.5)
        pytest.fail(f"run {run_id} is still {run['state']} ({run['stage']}) after {timeout_s} s")

    def log(self) -> str:
        """Return what the server has printed."""
        return (self.data / "server.log").read_text(errors="replace")


def free_port() -> int:
    """Return a loopback port below 32768 that nothing listens on."""
    for port in range(21_000 + os.getpid() % 5000, 32_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    pytest.fail("no free port below 32768")


@contextlib.contextmanager
def running_server(data: Path, **settings: str) -> Iterator[LiveServer]:
    """Start web, workers and schedule on ``data``; stop them at the end."""
    port = free_port()
    env = os.environ | {
        "NIGHTFERRY_DATA": str(data),
        "PORT": str(port),
        "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
        "ALLOW_WEIGHT_DOWNLOAD": "false",
        "DECISION_REFRESH_S": "1",
        "LOG_LEVEL": "INFO",
        **settings,
    }
    server = LiveServer(f"http://127.0.0.1:{port}", data, env)
    data.mkdir(parents=True, exist_ok=True)
    for command in (
        ("migrate", "--verbosity", "0"),
        ("createsuperuser", "--noinput", "--username", "operator", "--email", ""),
    ):
        done = server.manage(*command)
        assert done.returncode == 0, done.stderr
    with (data / "server.log").open("wb") as log:
        server.process = subprocess.Popen(
            [sys.executable, "manage.py", "quickstart", "--stop-at-eof"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(server)
        body = {"username": "operator", "password": PASSWORD}
        server.token = server.call("POST", "/auth/token", body)["token"]
        yield server
    finally:
        server.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(20)
        server.process.kill()
        server.process.stdin.close()
        server.process.wait()


def _wait_until_ready(server: LiveServer) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(f"{server.url}/readyz", timeout=2).status == 200:
                return
        time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{server.log()[-3000:]}")

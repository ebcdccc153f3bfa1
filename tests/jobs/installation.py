"""A whole installation in a folder of its own: the supervisor, and questions to its ledger."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.data import REPOSITORY

# Far longer than anything here takes; a test that needs it has failed.
_PATIENCE_S = 120.0
_MARK = "NIGHTFERRY_TEST_MARK"


class Installation:
    """A data folder, a broker, and whatever runs on them."""

    def __init__(self, folder: Path, services: dict[str, str]) -> None:
        """Bring the database up to date and open the ledger."""
        self.folder = folder
        self.marks = folder / "marks"
        self.marks.mkdir(parents=True)
        (folder / "data").mkdir()
        self._log = folder / "quickstart.log"
        self._mark = uuid.uuid4().hex
        self._environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": os.environ.get("DJANGO_SETTINGS_MODULE", "server.settings"),
            "NIGHTFERRY_DATA": str(folder / "data"),
            "NIGHTFERRY_TEST_HANDLERS": "tests.jobs.handlers",
            **services,
            "JOB_LEASE_S": "2",
            "JOB_REAP_S": "1",
            "JOB_RESEND_S": "2",
            "JOB_STOP_GRACE_S": "1",
        }
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._run("manage.py", "migrate", "--verbosity=0")
        self._driver = self._open_driver(self._environment)

    def close(self) -> None:
        """End everything."""
        self.stop()
        _close(self._driver)

    # The supervisor

    def start(self) -> None:
        """Start the supervisor, with workers and schedule, unless it runs."""
        if self._supervisor is not None:
            return
        with self._log.open("wb") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "manage.py", "quickstart", "--no-web"],
                cwd=REPOSITORY,
                env={**self._environment, _MARK: self._mark},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait_until(lambda: "beat" in self.pids())

    def stop(self) -> int:
        """Ask the supervisor to end if it runs; return its status."""
        if self._supervisor is None:
            return 0
        self._supervisor.terminate()
        status = self._supervisor.wait(_PATIENCE_S)
        self._supervisor = None
        return status

    def kill_supervisor(self) -> None:
        """Kill the supervisor, and nothing else."""
        assert self._supervisor is not None
        self._supervisor.kill()
        self._supervisor.wait()
        self._supervisor = None

    def pids(self) -> dict[str, int]:
        """Return the newest process of each service, as the supervisor's log tells."""
        lines = re.findall(r"^(\w+) *\| started, process (\d+)", self.log(), re.MULTILINE)
        return {name: int(pid) for name, pid in lines}

    def log(self) -> str:
        """Return what the supervisor and its services printed."""
        return self._log.read_text(errors="replace")

    def processes(self) -> list[int]:
        """Return every living process that descends from the supervisor, however far."""
        wanted = f"{_MARK}={self._mark}".encode()
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if wanted in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
        return found

    # The ledger

    def enqueue(self, name: str, *, queue: str = "ml", seconds: float = 0.5, **more: Any) -> str:
        """Queue one of the tests' jobs and return its id."""
        arguments = {"folder": str(self.marks), "seconds": seconds}
        return str(self.ask("enqueue", name=name, queue=queue, args=arguments, **more))

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Ask the driver."""
        return _ask(self._driver, verb, arguments)

    @contextlib.contextmanager
    def other_broker(self, url: str) -> Iterator[Callable[..., Any]]:
        """Yield a way to ask from a process that has another broker, over the same ledger."""
        driver = self._open_driver({**self._environment, "BROKER_URL": url})
        try:
            yield lambda verb, **arguments: _ask(driver, verb, arguments)
        finally:
            _close(driver)

    def read(self, job_id: str) -> dict[str, Any]:
        """Return what the ledger says of the job."""
        answer: dict[str, Any] = self.ask("read", job_id=job_id)
        return answer

    def wait_for(self, job_id: str, *states: str) -> dict[str, Any]:
        """Wait until the job is in one of the states."""
        answers: list[dict[str, Any]] = []

        def reached() -> bool:
            answers.append(self.read(job_id))
            return answers[-1]["state"] in states

        self.wait_until(reached)
        return answers[-1]

    def wait_until_at_work(self, job_id: str, *, attempt: int = 1) -> int:
        """Wait until the function of the job's attempt runs; return the process it runs in."""
        mark = self.marks / f"{job_id}.{attempt}"
        self.wait_until(mark.exists)
        return int(mark.read_text())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; fail with the log when it does not come."""
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                message = f"waited in vain; the log ends:\n{self.log()[-5000:]}"
                raise AssertionError(message)
            time.sleep(0.05)

    def _run(self, *arguments: str) -> None:
        """Run a command in the installation to its end."""
        command = [sys.executable, *arguments]
        subprocess.run(command, cwd=REPOSITORY, env=self._environment, check=True)

    def _open_driver(self, environment: dict[str, str]) -> subprocess.Popen[str]:
        """Start a process that answers questions on the ledger."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.driver"],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )


def is_alive(pid: int) -> bool:
    """Tell whether a process still runs; one that only waits to be counted does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def kill(pid: int) -> None:
    """End a process without asking it."""
    os.kill(pid, signal.SIGKILL)


def _ask(driver: subprocess.Popen[str], verb: str, arguments: dict[str, Any]) -> Any:
    """Ask a driver and return its answer."""
    assert driver.stdin is not None
    assert driver.stdout is not None
    driver.stdin.write(json.dumps([verb, arguments]) + "\n")
    driver.stdin.flush()
    return json.loads(driver.stdout.readline())


def _close(driver: subprocess.Popen[str]) -> None:
    """End a driver."""
    assert driver.stdin is not None
    assert driver.stdout is not None
    driver.stdin.close()
    driver.stdout.close()
    driver.wait()

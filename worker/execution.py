"""Runs claimed jobs and sees to it that the ledger learns how each one ended."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from logging import ERROR
from pathlib import Path
from typing import IO, Any

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import close_old_connections

from server.domain.errors import DomainError, Unavailable
from server.jobs import actions
from server.jobs.errors import JobCancelled, JobInterrupted, LeaseLost
from server.jobs.models import Job
from server.jobs.processes import GuardedProcess
from worker.context import JobContext
from worker.handlers import JobFunction

log = structlog.get_logger(__name__)

# Set when this worker has been asked to end.
stopping = threading.Event()

# A worker that stops has less patience than one that cancels: its own killer is on the way.
_SHUTDOWN_GRACE_S = 4
_POLL_S = 0.5
_TAIL_LINES = 40
_LONGEST_LINE = 500


class StopReason(Enum):
    """Why the worker ends a job's child."""

    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    NOT_OURS = "not ours any more"


def perform(context: JobContext, function: JobFunction) -> None:
    """Run the job's function here and write its outcome into the ledger."""
    key: dict[str, Any] = {"job_id": context.job_id, "fencing": context.fencing}
    try:
        result = function(context)
        if not context.is_finished:
            _persist(lambda: actions.complete(**key, result=result))
    except LeaseLost:
        log.warning("lease_lost")
    except JobCancelled:
        _persist(lambda: actions.cancel(**key))
    except JobInterrupted:
        _persist(lambda: actions.release(**key))
    except Exception as error:
        # What the domain foresaw needs no traceback.
        foreseen = isinstance(error, DomainError)
        log.log(ERROR, "job_raised", error=str(error), exc_info=not foreseen)
        failure = {**key, **_describe(error), "retry": isinstance(error, Unavailable)}
        _persist(lambda: actions.fail(**failure))


def run_here(job: Job, function: JobFunction) -> None:
    """Run a light job in this thread, its lease renewed by another."""
    context = JobContext(job)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(context, ended), daemon=True)
    renewing.start()
    try:
        perform(context, function)
    finally:
        ended.set()
        renewing.join()


def run_isolated(job: Job) -> None:
    """Run a job in a fresh interpreter, watch it, and report for it if it cannot."""
    process = GuardedProcess(
        [sys.executable, "-X", "faulthandler", "-m", "worker.child", str(job.pk), str(job.fencing)],
        cwd=settings.BASE_DIR,
    )
    tail = _Tail(process.output)
    kills = _count_memory_kills()
    try:
        status, reason = _watch(job, process)
    finally:
        process.kill()
    tail.join()
    key: dict[str, Any] = {"job_id": job.pk, "fencing": job.fencing}
    detail = _explain_end(status, memory=_count_memory_kills() > kills)
    failure = {**key, "code": "process_died", "detail": detail, "output": tail.text, "retry": True}
    writes: dict[StopReason | None, Callable[[], object]] = {
        StopReason.CANCELLED: lambda: actions.cancel(**key),
        StopReason.SHUTDOWN: lambda: actions.release(**key),
        None: lambda: actions.fail(**failure),
    }
    # Most often the child has reported by itself, and there is nothing left to write.
    with contextlib.suppress(LeaseLost):
        if write := writes.get(reason):
            _persist(write)


def _watch(job: Job, process: GuardedProcess) -> tuple[int, StopReason | None]:
    """Wait for the child and renew its lease; end it when it has to go.

    Returns its exit status, and why it was made to end.
    """
    reason: StopReason | None = None
    kill_at = float("inf")
    renewer = _Renewer(job)
    while (status := process.wait(_POLL_S)) is None:
        if reason is None and (reason := _find_reason(renewer)) is not None:
            grace_s = _SHUTDOWN_GRACE_S if stopping.is_set() else settings.JOB_STOP_GRACE_S
            kill_at = time.monotonic() + grace_s
            process.stop(signal.SIGTERM)
        if time.monotonic() >= kill_at:
            process.kill()
    return status, reason


def _find_reason(renewer: _Renewer) -> StopReason | None:
    """Return why the job has to end now, if it has to."""
    try:
        renewer.renew()
    except LeaseLost:
        return StopReason.NOT_OURS
    if renewer.is_cancelled:
        return StopReason.CANCELLED
    return StopReason.SHUTDOWN if stopping.is_set() else None


class _Renewer:
    """Renews one job's lease four times per lease, and hears of requests to cancel it."""

    def __init__(self, job: Job | JobContext) -> None:
        """Start with a lease that was just taken."""
        self._key: dict[str, Any] = {
            "job_id": job.job_id if isinstance(job, JobContext) else job.pk,
            "fencing": job.fencing,
        }
        # Requests to cancel are seen within two seconds however long the lease is.
        self.interval_s = min(settings.JOB_LEASE_S / 4, 2.0)
        self._renewed_at = time.monotonic()
        self.is_cancelled = False

    def renew(self) -> None:
        """Renew the lease when it is time; raises :class:`LeaseLost`."""
        if time.monotonic() - self._renewed_at < self.interval_s:
            return
        self._renewed_at = time.monotonic()
        close_old_connections()
        try:
            job = actions.heartbeat(**self._key)
        except DatabaseError as error:
            # Without a database nobody else can take the job either: go on and try again.
            log.warning("heartbeat_failed", error=str(error))
            return
        self.is_cancelled = job.cancel_requested_at is not None


def _renew(context: JobContext, ended: threading.Event) -> None:
    """Keep a light job's lease until it has ended; pass a shutdown on to it."""
    renewer = _Renewer(context)
    try:
        while not ended.wait(renewer.interval_s):
            renewer.renew()
            if stopping.is_set():
                context.interrupt()
    except LeaseLost:
        log.warning("lease_lost")
    finally:
        close_old_connections()


def _persist(write: Callable[[], object]) -> None:
    """Write an outcome, patiently: a database away for seconds must not cost hours of work."""
    for wait_s in (0.5, 2, 5, 10):
        try:
            write()
        except DatabaseError as error:
            log.warning("outcome_not_written", error=str(error), again_in_s=wait_s)
            time.sleep(wait_s)
            close_old_connections()
        else:
            return
    write()


def _describe(error: Exception) -> dict[str, str]:
    """Return a code and a sentence for an exception of a job's function."""
    if isinstance(error, DomainError):
        return {"code": error.code, "detail": error.detail}
    # TensorFlow's own name for it; its class cannot be imported here.
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return {"code": "out_of_memory", "detail": "The job needs more memory than there is."}
    return {
        "code": "internal_error",
        "detail": f"An unexpected error ended the job ({type(error).__name__}: {error})."
        " The worker's log has the details.",
    }


def _explain_end(status: int, *, memory: bool) -> str:
    """Say in a sentence how a child ended that did not report."""
    if memory:
        return "The system ended the job's process because memory ran out."
    if status == -signal.SIGKILL:
        return (
            "The job's process was killed from outside (SIGKILL);"
            " the system does so when memory runs out."
        )
    if status < 0:
        name = signal.Signals(-status).name
        return f"The job's process was ended by the signal {name}."
    return f"The job's process ended with status {status} without reporting a result."


def _count_memory_kills() -> int:
    """Return how many processes the kernel killed here for want of memory, where it tells."""
    try:
        text = Path("/sys/fs/cgroup/memory.events").read_text(encoding="ascii")
    except OSError:
        return 0
    counts = dict(line.split() for line in text.splitlines())
    return int(counts.get("oom_kill", 0))


class _Tail:
    """Passes a child's output on to our own and keeps its last lines for the report."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Start reading."""
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the stream, which comes with the end of the child's group."""
        self._thread.join(timeout=5)

    @property
    def text(self) -> str:
        """The last lines."""
        return "\n".join(self._lines)

    def _read(self, stream: IO[bytes]) -> None:
        """Copy line by line; progress bars that never end a line are cut."""
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                text = line.decode("utf-8", "replace").rstrip("\n")
                self._lines.append(text)
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()

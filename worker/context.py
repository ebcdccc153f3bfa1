"""What a job's function is given."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import structlog
from django.db import OperationalError, close_old_connections

from server.jobs import actions
from server.jobs.errors import JobCancelled, JobInterrupted, LeaseLost
from server.jobs.models import Job, JobState

log = structlog.get_logger(__name__)

# Asking the ledger is cheap, not free: a loop may ask at every step.
_CHECK_INTERVAL_S = 1.0


class JobContext:
    """One attempt at one job: its arguments, and the ways to ask and tell the ledger.

    ``args`` may hold members that this worker does not know; they are for newer ones.
    """

    def __init__(self, job: Job) -> None:
        """Describe the attempt that ``job`` was just claimed for."""
        self.job_id: uuid.UUID = job.pk
        self.name: str = job.name
        self.args: dict[str, Any] = job.args
        self.fencing: int = job.fencing
        self.attempt: int = job.attempts
        self.is_finished = False
        self._interrupted = False
        self._checked_at = 0.0

    def check_alive(self) -> None:
        """Return when the job is to go on; call it often, at least between steps.

        Raises :class:`JobCancelled`, :class:`JobInterrupted` or :class:`LeaseLost`; the job
        ends by letting them pass.
        """
        if time.monotonic() - self._checked_at < _CHECK_INTERVAL_S and not self._interrupted:
            return
        self._checked_at = time.monotonic()
        try:
            job = Job.objects.filter(pk=self.job_id).first()
        except OperationalError as error:
            # A database that is away for a moment is no reason to lose hours of work.
            log.warning("ledger_not_reached", error=str(error))
            close_old_connections()
            return
        if job is None or job.fencing != self.fencing or job.state != JobState.RUNNING:
            raise LeaseLost(str(self.job_id))
        if job.cancel_requested_at is not None:
            raise JobCancelled(str(self.job_id))
        if self._interrupted:
            raise JobInterrupted(str(self.job_id))

    def interrupt(self) -> None:
        """Make the next :meth:`check_alive` raise: the worker is stopping."""
        self._interrupted = True

    def holding(self) -> AbstractContextManager[Job]:
        """Open a transaction whose writes count only while the job is ours.

        Ends with :meth:`complete` inside it when effect and success have to become true
        together. Raises :class:`LeaseLost`.
        """
        return actions.holding(job_id=self.job_id, fencing=self.fencing)

    def complete(self, result: Mapping[str, Any] | None = None) -> None:
        """End the job well; done for the function when it returns without."""
        actions.complete(job_id=self.job_id, fencing=self.fencing, result=result)
        self.is_finished = True

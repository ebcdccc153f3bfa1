"""Why a job cannot be queued, and why a running one has to stop.

The reasons to stop are not :class:`~server.domain.errors.DomainError`: code that reports
domain errors to a person must not take them for one.

::

    DomainError                      (server.domain.errors)
     ├── InvalidInput
     │    └── UnknownJob             400  unknown_job
     ├── NotFound
     │    └── JobNotFound            404  job_not_found
     └── Conflict
          └── JobInProgress          409  job_in_progress
    JobStopped
     ├── JobCancelled                someone asked for the job to end
     ├── JobInterrupted              the worker is shutting down; the job will run again
     └── LeaseLost                   another worker holds the job now, or it is finished
"""

from __future__ import annotations

from server.domain.errors import Conflict, InvalidInput, NotFound


class UnknownJob(InvalidInput):
    """No job has this name."""

    default_code = "unknown_job"


class JobNotFound(NotFound):
    """No job has this id."""

    default_code = "job_not_found"


class JobInProgress(Conflict):
    """An unfinished job has the same unique key."""

    default_code = "job_in_progress"


class JobStopped(Exception):
    """The job has to stop now; what it has not yet committed is not wanted."""


class JobCancelled(JobStopped):
    """Someone asked for the job to end."""


class JobInterrupted(JobStopped):
    """The worker is shutting down; the job goes back to its queue."""


class LeaseLost(JobStopped):
    """The job is no longer this worker's: its lease lapsed and was taken, or it is finished."""

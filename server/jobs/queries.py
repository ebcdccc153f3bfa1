"""Reads of the ledger."""

from __future__ import annotations

import datetime as dt
import uuid

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import Count, Q

from server.jobs.errors import JobNotFound
from server.jobs.models import UNFINISHED, Job, JobState

# Waiting doubles with each sending up to this many times the first, so that a job waiting
# behind a long one does not fill the broker with copies of its message.
_LONGEST_WAIT = 32


def get_job(job_id: uuid.UUID | str, *, lock: bool = False) -> Job:
    """Return the job, with ``lock`` for the length of a transaction; raises JobNotFound."""
    jobs = Job.objects.select_for_update() if lock else Job.objects.all()
    try:
        return jobs.get(pk=job_id)
    except (Job.DoesNotExist, ValidationError) as error:
        message = f"There is no job {job_id}."
        raise JobNotFound(message) from error


def find_unfinished(unique_key: str) -> Job | None:
    """Return the one queued or running job with this key."""
    return Job.objects.filter(unique_key=unique_key, state__in=UNFINISHED).first()


def count_by_state() -> dict[str, int]:
    """Return how many jobs stand in each state, states without jobs included."""
    counts = dict.fromkeys(JobState.values, 0)
    rows = Job.objects.order_by().values_list("state").annotate(number=Count("id"))
    return counts | dict(rows)


def find_lapsed(*, now: dt.datetime) -> list[uuid.UUID]:
    """Return the running jobs whose worker has not been heard of for a whole lease."""
    lapsed = Job.objects.filter(state=JobState.RUNNING, lease_expires_at__lt=now)
    return list(lapsed.order_by("created_at").values_list("pk", flat=True))


def find_unsent(*, now: dt.datetime) -> list[Job]:
    """Return the queued jobs whose message was never sent, or seems lost."""
    first_wait = dt.timedelta(seconds=settings.JOB_RESEND_S)
    due = Job.objects.filter(state=JobState.QUEUED).filter(
        # A sender in its last moments before sending gets a little time.
        Q(sent_at__isnull=True, created_at__lte=now - min(first_wait, dt.timedelta(seconds=5)))
        | Q(sent_at__lte=now - first_wait)
    )
    return [job for job in due.order_by("created_at") if _is_due(job, now, first_wait)]


def _is_due(job: Job, now: dt.datetime, first_wait: dt.timedelta) -> bool:
    """Tell whether the job has waited long enough since it was last sent."""
    if job.sent_at is None:
        return True
    factor: int = min(2 ** max(job.sends - 1, 0), _LONGEST_WAIT)
    return now - job.sent_at >= first_wait * factor

"""Every write to the job ledger.

The ledger is the truth and the broker a hint: a job is claimed for a lease, renewed by
heartbeats, and only the holder of the newest fencing number may end it. What lapses is queued
again by :func:`reap`, and so is a message that was lost or never sent.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from django.conf import settings
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.models import F
from django.utils import timezone

from server.jobs import broker, names, queries
from server.jobs.errors import JobInProgress, LeaseLost, UnknownJob
from server.jobs.models import UNFINISHED, Job, JobState
from server.jobs.signals import job_finished

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Reaped:
    """What one round of the reaper did."""

    requeued: int = 0
    ended: int = 0
    sent: int = 0
    removed: int = 0


def enqueue(
    *,
    name: str,
    args: Mapping[str, Any] | None = None,
    queue: str | None = None,
    unique_key: str | None = None,
    max_attempts: int = 2,
    now: dt.datetime | None = None,
) -> Job:
    """Write the job down; its message leaves after the surrounding transaction commits.

    ``args`` holds ids, not objects: the job reads the rest when it runs. ``queue`` is the
    name's own unless given. A broker that fails neither fails the caller nor loses the job.

    Raises :class:`UnknownJob`, and :class:`JobInProgress` when an unfinished job has the
    same ``unique_key``.
    """
    job = Job(
        name=name,
        args=dict(args or {}),
        queue=queue or _queue_of(name),
        unique_key=unique_key or "",
        max_attempts=max_attempts,
        request_id=str(structlog.contextvars.get_contextvars().get("request_id", "")),
        created_at=now or timezone.now(),
    )
    try:
        with transaction.atomic():
            job.save(force_insert=True)
    except IntegrityError as error:
        raise _explain_refusal(job) from error
    _send_after_commit(job)
    log.info("job_queued", job_id=str(job.pk), job=name, queue=job.queue)
    return job


def claim(*, job_id: uuid.UUID | str, owner: str, now: dt.datetime | None = None) -> Job | None:
    """Take a queued job for one lease, or return None: finished, taken, or unknown.

    A message that comes twice therefore does nothing the second time.
    """
    now = now or timezone.now()
    with transaction.atomic():
        job = Job.objects.select_for_update().filter(pk=job_id, state=JobState.QUEUED).first()
        if job is None:
            return None
        job.state = JobState.RUNNING
        job.attempts += 1
        job.fencing += 1
        job.lease_owner = owner[:200]
        job.lease_expires_at = _lease_end(now)
        job.heartbeat_at = now
        job.started_at = now
        job.save()
        return job


@contextlib.contextmanager
def holding(*, job_id: uuid.UUID, fencing: int) -> Iterator[Job]:
    """Open a transaction in which the job certainly is the caller's.

    What is written inside counts only if the lease still holds at commit. Raises
    :class:`LeaseLost` at the start when it does not.
    """
    with transaction.atomic():
        mine = Job.objects.select_for_update().filter(
            pk=job_id, fencing=fencing, state=JobState.RUNNING
        )
        job = mine.first()
        if job is None:
            message = f"Job {job_id} is no longer held with fencing number {fencing}."
            raise LeaseLost(message)
        yield job


def heartbeat(*, job_id: uuid.UUID, fencing: int, now: dt.datetime | None = None) -> Job:
    """Renew the lease and return the job, which tells whether a cancel was asked for."""
    now = now or timezone.now()
    with holding(job_id=job_id, fencing=fencing) as job:
        job.heartbeat_at = now
        job.lease_expires_at = _lease_end(now)
        job.save(update_fields=("heartbeat_at", "lease_expires_at"))
    return job


def complete(
    *,
    job_id: uuid.UUID,
    fencing: int,
    result: Mapping[str, Any] | None = None,
    now: dt.datetime | None = None,
) -> Job:
    """End the job well; raises :class:`LeaseLost` when it is no longer the caller's."""
    with holding(job_id=job_id, fencing=fencing) as job:
        job.result = dict(result or {})
        _end(job, JobState.SUCCEEDED, now=now)
    return job


def fail(
    *,
    job_id: uuid.UUID,
    fencing: int,
    code: str,
    detail: str,
    output: str = "",
    retry: bool = False,
    now: dt.datetime | None = None,
) -> Job:
    """End the job badly, or with ``retry`` queue it again while attempts are left.

    It is sent at the reaper's next round, so that what was in the way has time to pass.

    ``detail`` is a sentence for the person who waits for the result, ``output`` what the job
    last printed, for the person who looks after the server.
    """
    with holding(job_id=job_id, fencing=fencing) as job:
        job.last_output = output
        if job.cancel_requested_at is not None:
            _end(job, JobState.CANCELLED, now=now)
        elif retry and job.attempts < job.max_attempts:
            _requeue(job, code=code, detail=detail)
        else:
            _end(job, JobState.FAILED, code=code, detail=detail, now=now)
    return job


def cancel(*, job_id: uuid.UUID, fencing: int, now: dt.datetime | None = None) -> Job:
    """Record that the running job has obeyed a request to cancel it."""
    with holding(job_id=job_id, fencing=fencing) as job:
        _end(job, JobState.CANCELLED, now=now)
    return job


def release(*, job_id: uuid.UUID, fencing: int, now: dt.datetime | None = None) -> Job:
    """Put the job back because its worker shuts down; that does not count as an attempt."""
    with holding(job_id=job_id, fencing=fencing) as job:
        if job.cancel_requested_at is not None:
            _end(job, JobState.CANCELLED, now=now)
        else:
            job.attempts -= 1
            _requeue(job, code="", detail="")
            _send_after_commit(job)
    return job


def request_cancel(*, job_id: uuid.UUID | str, now: dt.datetime | None = None) -> Job:
    """Ask for the job to end: at once when it waits, soon when it runs, never when finished.

    Raises :class:`~server.jobs.errors.JobNotFound`.
    """
    now = now or timezone.now()
    with transaction.atomic():
        job = queries.get_job(job_id, lock=True)
        if job.state in UNFINISHED and job.cancel_requested_at is None:
            job.cancel_requested_at = now
            job.save(update_fields=("cancel_requested_at",))
        if job.state == JobState.QUEUED:
            _end(job, JobState.CANCELLED, now=now)
    return job


def reap(*, now: dt.datetime | None = None) -> Reaped:
    """Queue again what lapsed, or report it failed; send again what the broker lost.

    Jobs that ended longer ago than JOB_KEEP_DAYS are removed: what came of them is told by what
    they made. One job that cannot be handled does not keep the others waiting.
    """
    now = now or timezone.now()
    requeued = ended = 0
    for job_id in queries.find_lapsed(now=now):
        try:
            state = _reap_lapsed(job_id, now)
        except Exception:
            log.exception("job_not_reaped", job_id=str(job_id))
            continue
        requeued += state == JobState.QUEUED
        ended += state in {JobState.FAILED, JobState.CANCELLED}
    sent = sum(send(job=job, now=now) for job in queries.find_unsent(now=now))
    long_ago = now - dt.timedelta(days=settings.JOB_KEEP_DAYS)
    removed, _ = Job.objects.filter(finished_at__lt=long_ago).delete()
    return Reaped(requeued=requeued, ended=ended, sent=sent, removed=removed)


def send(*, job: Job, now: dt.datetime | None = None) -> bool:
    """Hand the job's id to the broker; False when that failed, and the reaper will try again."""
    try:
        broker.send(name=job.name, job_id=str(job.pk), queue=job.queue)
    except broker.ERRORS as error:
        log.warning("job_not_sent", job_id=str(job.pk), job=job.name, error=str(error))
        return False
    try:
        Job.objects.filter(pk=job.pk).update(sent_at=now or timezone.now(), sends=F("sends") + 1)
    except DatabaseError as error:
        # The job is committed and its message is out; at worst it is sent once more.
        log.warning("job_sending_not_recorded", job_id=str(job.pk), error=str(error))
    return True


def _queue_of(name: str) -> str:
    """Return the queue a job of this name travels on; raises :class:`UnknownJob`."""
    if name in names.JOBS:
        return names.JOBS[name]
    if settings.NIGHTFERRY_TEST_HANDLERS and name.startswith(names.TEST_PREFIX):
        return names.DEFAULT_QUEUE
    message = f"There is no job called {name!r}."
    raise UnknownJob(message)


def _explain_refusal(job: Job) -> JobInProgress:
    """Return the error that names the unfinished job in the way."""
    other = queries.find_unfinished(job.unique_key)
    message = "The same work is already under way. Wait until it ends, or cancel it."
    return JobInProgress(message, **({"job_id": str(other.pk)} if other else {}))


def _send_after_commit(job: Job) -> None:
    """Send the job once it is certain to exist."""
    transaction.on_commit(partial(send, job=job), robust=True)


def _lease_end(now: dt.datetime) -> dt.datetime:
    """Return when a lease taken or renewed now runs out."""
    return now + dt.timedelta(seconds=settings.JOB_LEASE_S)


def _end(
    job: Job,
    state: JobState,
    *,
    code: str = "",
    detail: str = "",
    now: dt.datetime | None = None,
) -> None:
    """Write the final state and tell the layers above, in the caller's transaction."""
    job.state = state
    job.error_code = code
    job.error_detail = detail
    job.lease_expires_at = None
    job.finished_at = now or timezone.now()
    job.save()
    job_finished.send(sender=Job, job=job)
    log.info("job_ended", job_id=str(job.pk), job=job.name, state=state.value, code=code)


def _requeue(job: Job, *, code: str, detail: str) -> None:
    """Put a running job back into its queue, keeping the reason its last attempt ended."""
    job.state = JobState.QUEUED
    job.error_code = code
    job.error_detail = detail
    job.lease_expires_at = None
    job.sent_at = None
    job.sends = 0
    job.save()
    log.warning("job_requeued", job_id=str(job.pk), job=job.name, attempts=job.attempts, code=code)


def _reap_lapsed(job_id: uuid.UUID, now: dt.datetime) -> JobState | None:
    """Queue or end one lapsed job; None when its worker or another reaper was quicker."""
    with transaction.atomic():
        lapsed = Job.objects.select_for_update(
            skip_locked=connection.features.has_select_for_update_skip_locked
        ).filter(pk=job_id, state=JobState.RUNNING, lease_expires_at__lt=now)
        job = lapsed.first()
        if job is None:
            return None
        if job.cancel_requested_at is not None:
            _end(job, JobState.CANCELLED, now=now)
        elif job.attempts < job.max_attempts:
            _requeue(job, code="worker_lost", detail=_explain_loss(job))
            _send_after_commit(job)
        else:
            _end(job, JobState.FAILED, code="worker_lost", detail=_explain_loss(job), now=now)
        return JobState(job.state)


def _explain_loss(job: Job) -> str:
    """Say what is known of a worker that fell silent."""
    heard = f"{job.heartbeat_at:%Y-%m-%d %H:%M:%S} UTC" if job.heartbeat_at else "the start"
    return (
        f"The worker that ran this job was last heard of at {heard} and did not finish it"
        f" (attempt {job.attempts} of {job.max_attempts}). It was stopped or lost its machine;"
        " the job can be started again."
    )

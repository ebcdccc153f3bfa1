"""The ledger by itself: one holder at a time, one end for each job, nothing forgotten."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from server.jobs import actions, names, queries
from server.jobs.errors import JobInProgress, JobNotFound, LeaseLost, UnknownJob
from server.jobs.models import Job, JobState
from server.jobs.signals import job_finished

START = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
LEASE = dt.timedelta(seconds=60)
DURATIONS = st.integers(1, 90).map(lambda seconds: dt.timedelta(seconds=seconds))
WORKERS = st.sampled_from(["first", "second", "third"])


@contextmanager
def listening() -> Iterator[list[tuple[uuid.UUID, str]]]:
    """Yield what is told of jobs that end."""
    heard: list[tuple[uuid.UUID, str]] = []

    def hear(job: Job, **_: Any) -> None:
        heard.append((job.pk, job.state))

    job_finished.connect(hear)
    try:
        yield heard
    finally:
        job_finished.disconnect(hear)


class Ledger(RuleBasedStateMachine):
    """Workers that stall, die and come back late, against one job at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.held: dict[str, int] = {}  # each worker's newest fencing number
        self.effects = 0
        self.listening = listening()
        self.heard = self.listening.__enter__()
        self.job = actions.enqueue(name=names.TRAIN, unique_key="k", max_attempts=3, now=self.now)

    def teardown(self) -> None:
        self.listening.__exit__(None, None, None)
        Job.objects.all().delete()

    def key(self, worker: str) -> dict[str, Any]:
        return {"job_id": self.job.pk, "fencing": self.held[worker]}

    def is_holder(self, worker: str) -> bool:
        job = queries.get_job(self.job.pk)
        return job.state == JobState.RUNNING and job.fencing == self.held.get(worker)

    def expect(self, worker: str, write: Any) -> None:
        """See that a write counts exactly when the worker holds the job."""
        if worker not in self.held:
            return
        if self.is_holder(worker):
            write()
        else:
            with pytest.raises(LeaseLost):
                write()

    @rule(duration=DURATIONS)
    def wait(self, duration: dt.timedelta) -> None:
        self.now += duration

    @rule(worker=WORKERS)
    def claim(self, worker: str) -> None:
        before = queries.get_job(self.job.pk)
        job = actions.claim(job_id=self.job.pk, owner=worker, now=self.now)
        assert (job is not None) == (before.state == JobState.QUEUED)
        if job is not None:
            assert job.fencing > max(self.held.values(), default=0)
            self.held[worker] = job.fencing

    @rule(worker=WORKERS)
    def heartbeat(self, worker: str) -> None:
        def beat() -> None:
            job = actions.heartbeat(**self.key(worker), now=self.now)
            assert job.lease_expires_at == self.now + LEASE

        self.expect(worker, beat)

    @rule(worker=WORKERS)
    def take_effect_and_complete(self, worker: str) -> None:
        def finish() -> None:
            with actions.holding(**self.key(worker)):
                self.effects += 1
                actions.complete(**self.key(worker), result={"by": worker}, now=self.now)

        self.expect(worker, finish)

    @rule(worker=WORKERS, retry=st.booleans())
    def fail(self, worker: str, retry: bool) -> None:
        self.expect(
            worker,
            lambda: actions.fail(
                **self.key(worker), code="broken", detail="It broke.", retry=retry, now=self.now
            ),
        )

    @rule(worker=WORKERS)
    def release(self, worker: str) -> None:
        self.expect(worker, lambda: actions.release(**self.key(worker), now=self.now))

    @rule()
    def request_cancel(self) -> None:
        actions.request_cancel(job_id=self.job.pk, now=self.now)

    @rule()
    def reap(self) -> None:
        actions.reap(now=self.now)
        job = queries.get_job(self.job.pk)
        assert job.state != JobState.RUNNING or job.lease_expires_at >= self.now

    @rule()
    def ask_for_the_same_again(self) -> None:
        job = queries.get_job(self.job.pk)
        if not job.is_finished:
            with pytest.raises(JobInProgress) as refusal:
                actions.enqueue(name=names.TRAIN, unique_key="k", now=self.now)
            assert refusal.value.extra["job_id"] == str(job.pk)

    @invariant()
    def ends_once_and_says_how(self) -> None:
        job = queries.get_job(self.job.pk)
        assert self.effects == (job.state == JobState.SUCCEEDED)
        assert self.heard == ([(job.pk, job.state)] if job.is_finished else [])
        assert job.attempts <= job.max_attempts
        if job.state == JobState.FAILED:
            assert job.error_code
            assert job.error_detail


@pytest.mark.django_db
def test_one_holder_and_one_end(settings: Any) -> None:
    settings.JOB_LEASE_S = LEASE.total_seconds()
    run_state_machine_as_test(Ledger, settings=_fast())


def _fast() -> settings:
    return settings(
        max_examples=60,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.django_db
def test_a_finished_job_makes_room_for_the_next() -> None:
    first = actions.enqueue(name=names.TRAIN, unique_key="model 1")
    other = actions.enqueue(name=names.TRAIN, unique_key="model 2")
    actions.request_cancel(job_id=first.pk)
    again = actions.enqueue(name=names.TRAIN, unique_key="model 1")
    assert {other.state, again.state} == {JobState.QUEUED}
    # Without a key anything goes.
    assert actions.enqueue(name=names.TRAIN).pk != actions.enqueue(name=names.TRAIN).pk


@pytest.mark.django_db
def test_only_jobs_that_ended_long_ago_are_removed(settings: Any) -> None:
    settings.JOB_KEEP_DAYS = 90
    now = dt.datetime.now(dt.UTC)
    ended = actions.enqueue(name=names.TRAIN, now=now)
    waiting = actions.enqueue(name=names.TRAIN, now=now)
    actions.request_cancel(job_id=ended.pk)
    assert actions.reap(now=now + dt.timedelta(days=89)).removed == 0
    assert actions.reap(now=now + dt.timedelta(days=91)).removed == 1
    assert list(Job.objects.values_list("pk", flat=True)) == [waiting.pk]


@pytest.mark.django_db
def test_unknown_names_and_ids_are_refused() -> None:
    with pytest.raises(UnknownJob, match=r"training\.rum"):
        actions.enqueue(name="training.rum")
    with pytest.raises(JobNotFound):
        actions.request_cancel(job_id=uuid.uuid4())
    with pytest.raises(JobNotFound):
        queries.get_job("not an id")
    assert actions.claim(job_id=uuid.uuid4(), owner="w") is None


@pytest.mark.django_db(transaction=True)
def test_a_job_leaves_only_when_its_transaction_commits() -> None:
    with transaction.atomic():
        actions.enqueue(name=names.TRAIN)
        transaction.set_rollback(True)
    assert not Job.objects.exists()
    with transaction.atomic():
        kept = actions.enqueue(name=names.TRAIN)
        assert queries.get_job(kept.pk).sent_at is None
    assert queries.get_job(kept.pk).sent_at is not None


@pytest.mark.django_db
def test_a_lost_message_is_sent_again_ever_more_patiently(settings: Any) -> None:
    settings.JOB_RESEND_S = 60
    job = actions.enqueue(name=names.TRAIN, now=START)
    sendings = []
    for minute in range(600):
        now = START + dt.timedelta(minutes=minute, seconds=10)
        if actions.reap(now=now).sent:
            sendings.append(minute)
    assert sendings[:6] == [0, 1, 3, 7, 15, 31]
    waits = [later - sooner for sooner, later in pairwise(sendings)]
    assert max(waits) == 32
    assert queries.get_job(job.pk).sends == len(sendings)


@pytest.mark.django_db
def test_a_receiver_that_fails_does_not_keep_other_jobs_waiting() -> None:
    bad, good = (actions.enqueue(name=names.TRAIN, max_attempts=1, now=START) for _ in range(2))
    for job in (bad, good):
        actions.claim(job_id=job.pk, owner="w", now=START)

    def refuse(job: Job, **_: Any) -> None:
        if job.pk == bad.pk:
            raise ValueError

    job_finished.connect(refuse)
    try:
        assert actions.reap(now=START + dt.timedelta(days=1)).ended == 1
    finally:
        job_finished.disconnect(refuse)
    # Not ended by halves: the next round tries again.
    assert queries.get_job(bad.pk).state == JobState.RUNNING
    assert actions.reap(now=START + dt.timedelta(days=1)).ended == 1
    assert queries.count_by_state()["failed"] == 2

"""Whatever is killed: every job takes effect once or is reported, and nobody is orphaned."""

from __future__ import annotations

import pytest

from tests.jobs.installation import Installation, is_alive, kill

# What does not depend on the broker is tried on one.
one_broker = pytest.mark.parametrize("services", ["embedded"], indirect=True)


def test_every_kind_of_kill(installation: Installation) -> None:
    """Kill the job's process, its worker and the supervisor, each in the middle of a job."""
    installation.start()

    job = installation.enqueue("test.isolated", seconds=1)
    kill(installation.wait_until_at_work(job))
    assert_done_once(installation, job, attempts=2)

    job = installation.enqueue("test.isolated", seconds=1)
    child = installation.wait_until_at_work(job)
    kill(installation.pids()["trainer"])
    installation.wait_until(lambda: not is_alive(child))
    assert_done_once(installation, job, attempts=2)

    heavy = installation.enqueue("test.isolated", seconds=3)
    installation.wait_until_at_work(heavy)
    waiting = installation.enqueue("test.isolated", seconds=0)
    light = installation.enqueue("test.light", queue="default", seconds=3)
    installation.wait_until_at_work(light)
    installation.kill_supervisor()
    installation.wait_until(lambda: not installation.processes())
    installation.start()
    assert_done_once(installation, light, attempts=2)
    assert_done_once(installation, heavy, attempts=2)
    assert_done_once(installation, waiting, attempts=1)


def test_a_stop_puts_jobs_back_and_costs_no_attempt(installation: Installation) -> None:
    """Stop in good order in the middle of jobs; they run again at the next start."""
    installation.start()
    heavy = installation.enqueue("test.isolated", seconds=3)
    installation.wait_until_at_work(heavy)
    light = installation.enqueue("test.light", queue="default", seconds=3)
    installation.wait_until_at_work(light)

    assert installation.stop() == 0

    assert not installation.processes()
    for job in (light, heavy):
        assert installation.read(job)["state"] == "queued"
    installation.start()
    assert_done_once(installation, light, attempts=1)
    assert_done_once(installation, heavy, attempts=1)


def test_a_message_that_comes_twice_does_nothing_the_second_time(
    installation: Installation,
) -> None:
    """Deliver again while the job waits, runs, and is done, as a broker's timeout does."""
    job = installation.enqueue("test.isolated", seconds=1)
    installation.ask("send", job_id=job)
    installation.start()
    installation.wait_until_at_work(job)
    installation.ask("send", job_id=job)
    assert_done_once(installation, job, attempts=1)
    installation.ask("send", job_id=job)

    after = installation.enqueue("test.isolated", seconds=0)
    assert_done_once(installation, after, attempts=1)
    assert_done_once(installation, job, attempts=1)


@one_broker
def test_light_jobs_do_not_wait_for_training(installation: Installation) -> None:
    """One heavy job at a time, and light ones beside it."""
    installation.start()
    first = installation.enqueue("test.isolated", seconds=30)
    second = installation.enqueue("test.isolated", seconds=0)
    installation.wait_until_at_work(first)

    light = installation.enqueue("test.light", queue="default", seconds=0)

    assert_done_once(installation, light, attempts=1)
    assert installation.read(first)["state"] == "running"
    assert installation.read(second)["state"] == "queued"
    installation.ask("cancel", job_id=second)
    assert installation.read(second)["state"] == "cancelled"
    installation.ask("cancel", job_id=first)
    assert installation.wait_for(first, "cancelled")["effects"] == 0


@one_broker
def test_a_job_that_neither_ends_nor_listens_is_cancelled_with_its_children(
    installation: Installation,
) -> None:
    """Kill what a polite request does not reach."""
    installation.start()
    job = installation.enqueue("test.hang")
    child = installation.wait_until_at_work(job)
    before = installation.processes()

    installation.ask("cancel", job_id=job)

    installation.wait_for(job, "cancelled")
    installation.wait_until(lambda: not is_alive(child))
    # The child, its own child and the guard of both.
    installation.wait_until(lambda: len(installation.processes()) == len(before) - 3)


@one_broker
def test_a_job_that_keeps_crashing_is_reported_in_words(installation: Installation) -> None:
    """Say how it ended, and what it last said."""
    installation.start()
    crash = installation.enqueue("test.crash")
    refuse = installation.enqueue("test.refuse", queue="default", max_attempts=3)

    failed = installation.wait_for(crash, "failed")
    assert (failed["code"], failed["attempts"]) == ("process_died", 2)
    assert "SIGSEGV" in failed["detail"]
    assert "about to crash" in failed["output"]
    failed = installation.wait_for(refuse, "failed")
    assert (failed["code"], failed["attempts"]) == ("unavailable", 3)
    assert failed["detail"] == "The store of photos does not answer."


@one_broker
def test_a_worker_that_dies_at_every_attempt_is_reported(installation: Installation) -> None:
    """Give up after the last attempt, with a sentence."""
    installation.start()
    job = installation.enqueue("test.isolated", seconds=30)
    for attempt in (1, 2):
        installation.wait_until_at_work(job, attempt=attempt)
        kill(installation.pids()["trainer"])

    failed = installation.wait_for(job, "failed")

    assert failed["code"] == "worker_lost"
    assert "did not finish it (attempt 2 of 2)" in failed["detail"]


@one_broker
def test_a_broker_that_is_away_loses_nothing(installation: Installation) -> None:
    """Queue where no broker answers; the reaper sends the job by its own."""
    installation.start()
    with installation.other_broker("redis://127.0.0.1:1/0") as ask:
        arguments = {"folder": str(installation.marks), "seconds": 0}
        job = ask("enqueue", name="test.light", queue="default", args=arguments)
    assert_done_once(installation, job, attempts=1)


def assert_done_once(installation: Installation, job: str, *, attempts: int) -> None:
    """Wait until the job has succeeded, and see that it took effect once."""
    done = installation.wait_for(job, "succeeded", "failed", "cancelled")
    assert (done["state"], done["effects"], done["attempts"]) == ("succeeded", 1, attempts)

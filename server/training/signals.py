"""A run ends with its job, whatever ended that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.dispatch import receiver

from server.jobs import names
from server.jobs.signals import job_finished
from server.training import actions
from server.training.models import TrainingRun

if TYPE_CHECKING:
    from server.jobs.models import Job

_RUN_JOBS = frozenset({names.TRAIN, names.COMPILE_UPLOAD})


@receiver(job_finished, dispatch_uid="training.close_run")
def close_run(sender: object, job: Job, **_: object) -> None:  # noqa: ARG001
    """Close the run of a job that failed or was cancelled; one that succeeded closed its own."""
    run_id = job.args.get("run_id")
    if job.name not in _RUN_JOBS or not TrainingRun.objects.filter(pk=run_id).exists():
        return
    if job.state == "cancelled":
        actions.fail_run(run_id=run_id, reason="Cancelled; the incumbent stays.", state="cancelled")
    elif job.state == "failed":
        actions.fail_run(
            run_id=run_id, reason=job.error_detail, code=job.error_code or "run_failed"
        )
    elif job.state == "succeeded":
        actions.fail_run(
            run_id=run_id, reason="The job ended without closing its run.", code="run_left_open"
        )

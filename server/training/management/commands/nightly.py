"""``manage.py nightly [MODEL…]``: run the nightly now, in the foreground, with progress."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from server.domain.errors import DomainError
from server.jobs import names
from server.jobs.models import UNFINISHED, Job, JobState
from server.jobs.queries import get_job
from server.registry.models import Model
from server.registry.queries import get_model
from server.training import actions, queries
from server.training.models import TrainingRun

# Whoever holds the keys begins at once; where nobody does, this process signs.
_SIGNER_BEGINS_WITHIN_S = 5


class Command(BaseCommand):
    help = "Retrain every model that has new accepted photos, here and now."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("models", nargs="*", metavar="MODEL", help="only these models")
        parser.add_argument(
            "--force", action="store_true", help="also models without new accepted photos"
        )

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002
        try:
            models = [get_model(slug) for slug in options["models"]] or list(
                Model.objects.filter(retired_at__isnull=True)
            )
        except DomainError as error:
            raise CommandError(error.detail) from error
        results = [self._run(model, force=options["force"]) for model in models]
        if not all(results):
            raise CommandError("Not every run reached its end; the incumbents stay.")

    def _run(self, model: Model, *, force: bool) -> bool:
        count = queries.new_photo_count(model)
        if not count and not force:
            self.stdout.write(f"{model.slug}: no new photos, nothing to do.")
            return True
        try:
            run = actions.request_run(model=model, trigger="command")
        except DomainError as error:
            self.stderr.write(f"{model.slug}: {error.detail}")
            return False
        self.stdout.write(f"{model.slug}: {count} new photos, run {run.pk}")
        # The job is done by a process of the worker's own; a running worker may take it first.
        worker = _start(run.job_id)
        try:
            is_good = self._follow(run, worker)
        finally:
            worker.terminate()
            worker.wait()
        if is_good:
            self._see_to_release(model)
        return is_good

    def _see_to_release(self, model: Model) -> None:
        """Have patches built and the release signed, here unless a running worker does."""
        seen = set()
        mine = Job.objects.filter(
            name__in=(names.BUILD_PATCHES, names.PUBLISH), args__model=model.slug
        )
        while job := mine.filter(state__in=UNFINISHED).order_by("created_at").first():
            if job.pk in seen:
                break
            seen.add(job.pk)
            self._see_to_job(job)
            job.refresh_from_db()
            if job.state == JobState.SUCCEEDED:
                self.stdout.write(f"  {'release':<11} {job.result.get('outcome', '')}")
            else:
                self.stderr.write(
                    f"  {'release':<11} waits, and will be tried again: {job.error_detail}"
                )

    @staticmethod
    def _see_to_job(job: Job) -> None:
        deadline = time.monotonic() + _SIGNER_BEGINS_WITHIN_S
        while job.state == JobState.QUEUED and time.monotonic() < deadline:
            time.sleep(0.25)
            job.refresh_from_db()
        if job.state == JobState.QUEUED:
            _start(job.pk).wait()
        job.refresh_from_db()
        while job.state == JobState.RUNNING:
            time.sleep(0.25)
            job.refresh_from_db()

    @staticmethod
    def _is_waiting(run: TrainingRun) -> bool:
        """Say whether nobody has begun: a running worker may have taken the job before ours."""
        return run.job_id is not None and get_job(run.job_id).state == JobState.QUEUED

    def _follow(self, run: TrainingRun, worker: subprocess.Popen[bytes]) -> bool:
        seen, shown = 0, ""
        while True:
            alive = worker.poll() is None
            run.refresh_from_db()
            for line in run.lines.filter(pk__gt=seen):
                seen = line.pk
                if line.message:
                    self.stdout.write(f"  {line.stage or 'start':<11} {line.message}")
            position = f"  {run.stage} {run.step}/{run.total_steps}"
            if run.total_steps > 1 and position != shown:
                shown = position
                self.stdout.write(position)
            if run.state not in TrainingRun.ACTIVE:
                return run.state == TrainingRun.State.SUCCEEDED
            if not alive and self._is_waiting(run):
                self.stderr.write("The worker process ended before it began.")
                return False
            time.sleep(0.5)


def _start(job_id: object) -> subprocess.Popen[bytes]:
    """Start a process of the worker's own that performs one job."""
    return subprocess.Popen(
        [sys.executable, "-m", "worker.foreground", str(job_id)], cwd=settings.BASE_DIR
    )

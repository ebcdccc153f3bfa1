"""``manage.py nightly [MODEL…]``: run the nightly now, in the foreground, with progress."""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from server.domain.errors import DomainError
from server.jobs import names
from server.jobs.models import UNFINISHED, Job, JobState
from server.registry.models import Model
from server.registry.queries import get_model
from server.training import actions, queries
from server.training.management.foreground import perform_run, start_job

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
        is_good = perform_run(self, run)
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
            start_job(job.pk).wait()
        job.refresh_from_db()
        while job.state == JobState.RUNNING:
            time.sleep(0.25)
            job.refresh_from_db()

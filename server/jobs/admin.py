"""The ledger in the admin: what waits, what runs, and how the rest ended."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.decorators import display

from server.jobs import actions
from server.jobs.models import Job

_COLOURS = {"succeeded": "success", "failed": "danger", "running": "info", "cancelled": "warning"}


@admin.register(Job)
class JobPage(ModelAdmin):
    """Jobs are written by the ledger's actions and read here."""

    list_display = ("__str__", "state_shown", "queue", "attempts", "created_at", "finished_at")
    list_filter = ("state", "name", "queue")
    search_fields = ("id", "request_id", "unique_key")
    ordering = ("-created_at",)
    actions = ("cancel",)
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Say no: jobs are queued by what needs them."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Job | None = None) -> bool:
        """Say no."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Job | None = None) -> bool:
        """Say no: the ledger is history."""
        return False

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        """Say whether the account may end jobs."""
        return bool(request.user.has_perm("jobs.change_job"))

    @display(description="state", ordering="state", label=_COLOURS)
    def state_shown(self, job: Job) -> str:
        """Name the state."""
        return job.state

    @admin.action(description="Cancel the chosen jobs", permissions=["cancel"])
    def cancel(self, request: HttpRequest, chosen: QuerySet[Job]) -> None:
        """Ask each chosen job to end; what it has already committed stays."""
        unfinished = [job for job in chosen if not job.is_finished]
        for job in unfinished:
            actions.request_cancel(job_id=job.pk)
        messages.success(request, f"{len(unfinished)} jobs were asked to end.")

"""People and their access, and the audit log. Other packages' pages are put into our frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.urls import reverse
from django.utils.html import format_html
from django_celery_beat import models as beat
from knox.models import AuthToken
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from server.http.models import AuditEntry
from server.http.pages import Page, ReadOnlyPage, display, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.http import HttpRequest

# The schedule is the server's own (NIGHTLY_AT and each model's time); its rows are to look at.
_FOREIGN = (
    AccessAttempt, AccessFailureLog, AccessLog, AuthToken, User, Group, beat.PeriodicTask,
    beat.IntervalSchedule, beat.CrontabSchedule, beat.SolarSchedule, beat.ClockedSchedule,
)  # fmt: skip
for _model in _FOREIGN:
    if admin.site.is_registered(_model):
        admin.site.unregister(_model)


@admin.register(User)
class UserPage(UserAdmin, Page):  # type: ignore[type-arg]
    """Accounts; volunteers' have no password."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "is_staff", "is_superuser", "is_active", "last_login")
    list_filter = ("is_staff", "is_superuser", "is_active")

    def get_deleted_objects(self, objs: Iterable[User], request: HttpRequest) -> Any:
        """Refuse to delete volunteers' accounts, which alone would leave their photos behind."""
        # By attribute: volunteers belong to a layer above this one.
        people = [user for user in objs if hasattr(user, "volunteer")]
        if not people:
            return super().get_deleted_objects(objs, request)  # type: ignore[arg-type]
        return [], {}, set(), [_instead(user) for user in people]


def _instead(user: Any) -> str:
    """Say what to delete instead of a volunteer's account, and where."""
    kind = user.volunteer._meta  # noqa: SLF001
    address = reverse(f"admin:{kind.app_label}_{kind.model_name}_change", args=[user.volunteer.pk])
    return format_html(
        '{} is the account of <a class="text-link" href="{}">{}</a>: '
        "delete the volunteer instead: it erases their photos",
        user.username,
        address,
        user.volunteer,
    )


@admin.register(Group)
class GroupPage(GroupAdmin, Page):
    """Groups of rights."""


@admin.register(AuditEntry)
class AuditPage(ReadOnlyPage):
    """Who did what."""

    list_display = ("at", "actor_name", "action", "subject", "detail_shown")
    list_display_links = ("at", "action")
    show_full_result_count = False
    list_filter = ("action", "at")
    search_fields = ("actor_name", "action", "subject")
    date_hierarchy = "at"
    fields = ("at", "actor", "actor_name", "action", "subject", "detail")
    readonly_fields = fields

    @display(description="detail")
    def detail_shown(self, entry: AuditEntry) -> str:
        """Show what came along, shortened."""
        text = ", ".join(f"{name}: {value}" for name, value in entry.detail.items())
        return shorten(text)


@admin.register(AuthToken)
class TokenPage(ReadOnlyPage):
    """Bearer tokens, of which only digests exist; deleting one makes it worthless."""

    list_display = ("token_key", "user", "created", "expiry")
    list_select_related = ("user",)
    search_fields = ("user__username", "token_key")
    fields = ("token_key", "user", "created", "expiry")
    readonly_fields = fields

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Allow to make a token worthless."""
        return bool(request.user.has_perm("knox.delete_authtoken"))


@admin.register(AccessAttempt)
class AttemptPage(ReadOnlyPage):
    """Wrong passwords; deleting a row ends a lockout."""

    list_display = ("username", "ip_address", "failures_since_start", "attempt_time")
    search_fields = ("username", "ip_address")
    fields = ("username", "ip_address", "user_agent", "failures_since_start", "attempt_time")
    readonly_fields = fields

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Allow to end a lockout."""
        return bool(request.user.has_perm("axes.delete_accessattempt"))


@admin.register(beat.PeriodicTask)
class PeriodicTaskPage(ReadOnlyPage):
    """What the clock calls."""

    list_display = ("name", "task", "scheduler", "enabled", "last_run_at", "total_run_count")
    fields = ("name", "task", "interval", "crontab", "enabled", "last_run_at", "total_run_count")
    readonly_fields = fields

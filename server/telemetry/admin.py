"""What devices reported, to read."""

from __future__ import annotations

from django.contrib import admin

from server.http.pages import ReadOnlyPage, display
from server.telemetry.models import Event


@admin.register(Event)
class EventPage(ReadOnlyPage):
    """Events, newest first."""

    list_display = (
        "type",
        "model",
        "label",
        "version_number",
        "short_device",
        "detail",
        "received_at",
    )
    list_filter = ("type", "model", "channel")
    list_select_related = ("model",)
    list_per_page = 50
    show_full_result_count = False
    search_fields = ("device", "label", "sha256")
    date_hierarchy = "received_at"
    fields = (
        "event_id", "device", "type", "model", "channel", "label", "version_number", "sha256",
        "enrolment", "data", "occurred_at", "received_at",
    )  # fmt: skip
    readonly_fields = fields

    @display(description="device", ordering="device")
    def short_device(self, event: Event) -> str:
        """Show enough of the id to tell two apart."""
        return event.device if len(event.device) <= 12 else f"{event.device[:12]}…"  # noqa: PLR2004

    @display(description="detail")
    def detail(self, event: Event) -> str:
        """Show what came along, shortened."""
        text = ", ".join(f"{name} {value}" for name, value in event.data.items())
        return text[:80] or "–"

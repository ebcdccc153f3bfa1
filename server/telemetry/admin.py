"""What devices reported and what was counted from it, to read; the fleet on top."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from django.contrib import admin

from server.http.charts import Point, line_chart
from server.http.pages import ReadOnlyPage, display, shorten
from server.registry.models import Model
from server.telemetry import histograms, queries
from server.telemetry.models import (
    DailySummary,
    Drain,
    Event,
    FeedbackTotal,
    FirstFact,
    FleetDay,
    Installation,
    LatencyCount,
    ReleaseArm,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.db.models import QuerySet
    from django.http import HttpRequest, HttpResponse
    from django.utils.safestring import SafeString

_LINES = 4  # as many as a chart can tell apart
_ID_SHOWN = 12
# Each model's part of the fleet page costs a few queries.
_MODELS_SHOWN = 10


def _short(device: str) -> str:
    """Return enough of a device's id to tell two apart."""
    return device if len(device) <= _ID_SHOWN else f"{device[:_ID_SHOWN]}…"


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
    list_filter = ("type", "clock", "model", "channel")
    list_select_related = ("model",)
    list_per_page = 50
    show_full_result_count = False
    search_fields = ("device", "label", "sha256")
    date_hierarchy = "received_at"
    fields = (
        "event_id", "device", "type", "model", "channel", "label", "version_number", "sha256",
        "device_class", "enrolment", "sample_bp", "data", "occurred_at", "clock", "received_at",
        "is_counted",
    )  # fmt: skip
    readonly_fields = fields

    @display(description="device", ordering="device")
    def short_device(self, event: Event) -> str:
        """Show enough of the id to tell two apart."""
        return _short(event.device)

    @display(description="detail")
    def detail(self, event: Event) -> str:
        """Show what came along, shortened."""
        text = ", ".join(f"{name} {value}" for name, value in event.data.items())
        return shorten(text) or "–"


@admin.register(Installation)
class FleetPage(ReadOnlyPage):
    """The fleet: what runs where, then the installations one by one."""

    list_display = ("short_device", "model", "label_shown", "version_number", "device_class",
                    "running_at", "heard_at")  # fmt: skip
    list_filter = ("model", "channel")
    list_select_related = ("model",)
    list_per_page = 50
    list_before_template = "telemetry/fleet.html"
    show_full_result_count = False
    search_fields = ("device", "label")
    fields = ("device", "model", "channel", "label", "version_number", "sha256", "device_class",
              "running_at", "heard_at")  # fmt: skip
    readonly_fields = fields

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Add the fleets of the models in use."""
        context = {**(extra_context or {}), "title": "Fleet", "fleets": list(_fleets())}
        response: HttpResponse = super().changelist_view(request, context)
        return response

    @display(description="device", ordering="device")
    def short_device(self, installation: Installation) -> str:
        """Show enough of the id to tell two apart."""
        return _short(installation.device)

    @display(description="runs", ordering="label")
    def label_shown(self, installation: Installation) -> str:
        """Show the release, or that it is none."""
        if not installation.running_event:
            return "not said yet"
        return installation.label or "embedded"


def _fleets() -> Iterable[dict[str, Any]]:
    models = Model.objects.filter(retired_at__isnull=True, installations__isnull=False)
    for model in models.distinct()[:_MODELS_SHOWN]:
        yield {"fleet": queries.fleet(model), "chart": fleet_chart(model)}


def fleet_chart(model: Model) -> SafeString:
    """Return a line per release over the days, the largest ones; nothing before a second day."""
    days: dict[str, dict[int, int]] = defaultdict(dict)
    steps: set[int] = set()
    for day, label, count in queries.fleet_history(model):
        days[label][day.toordinal()] = count
        steps.add(day.toordinal())
    if len(steps) < 2:  # noqa: PLR2004 - a line has two ends
        return line_chart({}, title="")
    first = min(steps)
    largest = sorted(days, key=lambda label: -max(days[label].values()))[:_LINES]
    series: dict[str, list[Point]] = {
        label or "embedded": [(step - first, days[label].get(step, 0)) for step in sorted(steps)]
        for label in sorted(largest)
    }
    return line_chart(series, title="Installations by release, over days")


@admin.register(ReleaseArm)
class ReleaseArmPage(ReadOnlyPage):
    """Releases and arms that were heard of, with what is counted of each."""

    list_display = ("model", "channel", "label", "rollout", "arm")
    list_display_links = ("model", "label")
    list_filter = ("model", "channel", "arm")
    list_select_related = ("model",)
    search_fields = ("label", "rollout")
    change_form_outer_before_template = "telemetry/release_arm.html"
    fields = ("model", "channel", "label", "rollout", "arm")
    readonly_fields = fields

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Add the whole release's figures and this arm's days."""
        arm = self.get_object(request, object_id)
        context: dict[str, Any] = {}
        if arm is not None:
            facts = queries.release_facts(arm.model.slug, arm.channel, arm.label)
            context = {"facts": facts, "chart": days_chart(facts, arm)}
        response: HttpResponse = super().change_view(
            request, object_id, form_url, {**(extra_context or {}), **context}
        )
        return response


def days_chart(facts: queries.ReleaseFacts, arm: ReleaseArm) -> SafeString:
    """Return what installations of an arm first reported, a line per fact over the days."""
    days = [day for day in facts.days if (day.rollout, day.arm) == (arm.rollout, arm.arm)]
    if not days:
        return line_chart({}, title="")
    first = days[0].day.toordinal()
    kinds = ("assigned", "activated", "first_inference", "failed")
    series: dict[str, list[Point]] = {
        kind: [
            (
                day.day.toordinal() - first,
                sum(
                    count
                    for name, count in day.installations.items()
                    if name.partition(":")[0] == kind
                ),
            )
            for day in days
        ]
        for kind in kinds
    }
    return line_chart(series, title="Installations that first reported it, by day")


class _CountPage(ReadOnlyPage):
    """A table of counts."""

    show_full_result_count = False
    list_per_page = 50

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Fetch the release with its rows."""
        rows: QuerySet[Any] = super().get_queryset(request)
        return rows.select_related("release_arm__model")


@admin.register(FirstFact)
class FirstFactPage(_CountPage):
    """One row per installation and fact."""

    list_display = ("release_arm", "type", "code", "device", "first_occurred_at")
    list_filter = ("type", "code")
    search_fields = ("device",)
    fields = ("release_arm", "device", "type", "code", "first_occurred_at")
    readonly_fields = fields


@admin.register(DailySummary)
class DailySummaryPage(_CountPage):
    """Facts by day."""

    list_display = ("day", "release_arm", "type", "code", "installations")
    list_filter = ("type", "release_arm__model")
    date_hierarchy = "day"
    fields = ("day", "release_arm", "type", "code", "installations", "is_stale")
    readonly_fields = fields


@admin.register(FeedbackTotal)
class FeedbackPage(_CountPage):
    """Feedback by installation."""

    list_display = ("release_arm", "device", "answers", "successes")
    search_fields = ("device",)
    fields = ("release_arm", "device", "answers", "successes")
    readonly_fields = fields


@admin.register(LatencyCount)
class LatencyPage(_CountPage):
    """Histograms, bucket by bucket."""

    list_display = ("release_arm", "kind", "device_class", "below_ms", "count")
    list_filter = ("kind", "device_class")
    fields = ("release_arm", "kind", "device_class", "sha256", "bucket", "below_ms", "count")
    readonly_fields = fields

    @display(description="below (ms)", ordering="bucket")
    def below_ms(self, row: LatencyCount) -> str:
        """Show the bucket's upper bound."""
        return f"{histograms.upper_bound_ms(row.bucket):.3g}"


@admin.register(FleetDay)
class FleetDayPage(ReadOnlyPage):
    """What the field ran on each day."""

    list_display = ("day", "model", "channel", "label", "installations")
    list_filter = ("model", "channel")
    list_select_related = ("model",)
    date_hierarchy = "day"
    fields = ("day", "model", "channel", "label", "installations")
    readonly_fields = fields


@admin.register(Drain)
class DrainPage(ReadOnlyPage):
    """When events were last counted."""

    list_display = ("drained_at", "summarised_at")
    fields = ("drained_at", "summarised_at")
    readonly_fields = fields

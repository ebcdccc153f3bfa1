"""Fleets and releases' telemetry as JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from server.http.serializers import StrictSerializer

_MOST_DAYS = 366


class _Count(serializers.IntegerField):
    def __init__(self, **options: Any) -> None:
        super().__init__(min_value=0, **options)


class VersionShareSerializer(serializers.Serializer[Any]):
    """One release in the field."""

    channel = serializers.CharField()
    label = serializers.CharField(help_text="Empty: the model embedded in the app.")
    version = serializers.IntegerField(allow_null=True)
    installations = _Count()
    share = serializers.FloatField(help_text="Of the installations that said what they run.")
    is_revoked = serializers.BooleanField()


class FleetDaySerializer(serializers.Serializer[Any]):
    """How many installations ran a release on a day."""

    day = serializers.DateField()
    label = serializers.CharField()
    installations = _Count()


class FleetSerializer(serializers.Serializer[Any]):
    """What the field runs."""

    model = serializers.CharField()
    days = _Count(help_text="Installations heard of within so many days count.")
    installations = _Count()
    unknown = _Count(help_text="Have not said yet what they run.")
    silent = _Count(help_text="Have sent nothing for longer than silent_after_s.")
    silent_after_s = _Count()
    revoked = _Count(help_text="Still run a version that was recalled or killed.")
    revoked_share = serializers.FloatField()
    versions = VersionShareSerializer(many=True)
    history = FleetDaySerializer(many=True)
    last_event_at = serializers.DateTimeField(allow_null=True)


class FeedbackSerializer(serializers.Serializer[Any]):
    """Sums over installations that sent feedback."""

    installations = _Count()
    answers = _Count()
    successes = _Count()
    share = serializers.SerializerMethodField(
        help_text="Successes by answers; null without answers."
    )

    def get_share(self, feedback: Any) -> float | None:
        """Return the share."""
        return feedback.share if feedback.answers else None


class LatencySerializer(serializers.Serializer[Any]):
    """Latencies of one class of hardware."""

    device_class = serializers.CharField()
    sha256 = serializers.CharField(help_text="The file that was timed, for benchmarks.")
    count = _Count()
    p50_ms = serializers.FloatField(allow_null=True)
    p95_ms = serializers.FloatField(allow_null=True)


class DaySerializer(serializers.Serializer[Any]):
    """Installations that first reported something on a day."""

    day = serializers.DateField()
    rollout = serializers.CharField()
    arm = serializers.CharField()
    installations = serializers.DictField(child=_Count())


class ReleaseFactsSerializer(serializers.Serializer[Any]):
    """What was reported of a release."""

    model = serializers.CharField()
    channel = serializers.CharField()
    label = serializers.CharField()
    installations = _Count()
    by_type = serializers.DictField(child=_Count())
    failures = serializers.DictField(child=_Count(), help_text="By class of failure.")
    feedback = FeedbackSerializer()
    latencies = LatencySerializer(many=True)
    benchmarks = LatencySerializer(many=True)
    days = DaySerializer(many=True)
    first_event_at = serializers.DateTimeField(allow_null=True)
    last_fact_at = serializers.DateTimeField(allow_null=True)


class FleetQuerySerializer(StrictSerializer):
    """Which part of the fleet."""

    days = serializers.IntegerField(
        min_value=1, max_value=_MOST_DAYS, default=30, help_text="Heard of within so many days."
    )


class TelemetryQuerySerializer(StrictSerializer):
    """Which release."""

    label = serializers.RegexField(r"\A(v[1-9][0-9]{0,9})?\Z", help_text="Such as v3.")
    channel = serializers.RegexField(r"\A[a-z0-9][a-z0-9_-]{0,62}\Z", default="production")
    days = serializers.IntegerField(
        min_value=1, max_value=_MOST_DAYS, default=60, help_text="Bounds the daily figures."
    )

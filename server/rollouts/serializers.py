"""Channels and releases as JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from server.http.serializers import Flag, StrictSerializer, Text, Whole
from server.rollouts.models import Release

MAX_NUMBER = 2**31 - 1


class ReleaseSerializer(serializers.ModelSerializer[Release]):
    """A release: what a channel serves, or served."""

    label = serializers.CharField(read_only=True)
    version = serializers.SerializerMethodField()
    model = serializers.CharField(source="channel.model.slug", read_only=True)
    channel = serializers.CharField(source="channel.name", read_only=True)
    state = serializers.ChoiceField(
        choices=Release.State.choices,
        read_only=True,
        help_text="Devices are offered a release once it is announced.",
    )

    class Meta:
        model = Release
        fields = (
            "model", "channel", "label", "version", "counter", "kind", "state", "reason", "notes",
            "is_mandatory", "created_at", "announced_at", "killed_at", "killed_reason",
        )  # fmt: skip
        read_only_fields = fields

    def get_version(self, release: Release) -> int:
        """Return the version's number."""
        return release.version.number


class ChannelSerializer(serializers.Serializer[Any]):
    """A channel and what it serves."""

    name = serializers.CharField()
    serves = ReleaseSerializer(
        allow_null=True, help_text="Its newest release; devices get it once it is announced."
    )


class NewReleaseSerializer(StrictSerializer):
    """What is put on a channel."""

    version = Whole(min_value=1, max_value=MAX_NUMBER)
    reason = Text(max_length=1000, required=False, allow_blank=True)
    notes = Text(max_length=4000, required=False, allow_blank=True, help_text="Shown to devices.")
    is_mandatory = Flag(required=False)


class RollbackSerializer(StrictSerializer):
    """Where to go back to."""

    to = Whole(
        min_value=1, max_value=MAX_NUMBER, required=False,
        help_text="An earlier version's number; else the newest earlier one not killed.",
    )  # fmt: skip
    reason = Text(max_length=1000, required=False, allow_blank=True)


class KillSerializer(StrictSerializer):
    """What is withdrawn."""

    channel = serializers.SlugField(max_length=63, default="production")
    reason = Text(max_length=1000, required=False, allow_blank=True)


class KilledSerializer(serializers.Serializer[Any]):
    """What devices run after a kill."""

    now_serving = ReleaseSerializer(
        allow_null=True, help_text="null: devices go back to the model embedded in their app."
    )


class RecallSerializer(StrictSerializer):
    """Why a version is withdrawn."""

    reason = Text(max_length=1000, required=False, allow_blank=True)


class RecalledSerializer(serializers.Serializer[Any]):
    """A version that no device may run any more."""

    model = serializers.CharField()
    version = serializers.IntegerField()
    reason = serializers.CharField()
    recalled_at = serializers.DateTimeField()
    is_signed = serializers.BooleanField(
        help_text="Whether the policy that tells devices so is signed already."
    )
    channels = ChannelSerializer(many=True, help_text="What each channel serves now.")

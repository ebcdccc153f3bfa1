"""Rollouts, overrides and delivery policies as JSON."""

from __future__ import annotations

import json
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from server.domain.delivery_policy import PREFERENCES, WAYS, DeliveryPolicy
from server.domain.rollout_policy import RolloutPolicy
from server.domain.targeting import ATTRIBUTES, OPERATORS
from server.http.serializers import StrictSerializer, Text, Whole
from server.rollouts import staging
from server.rollouts.models import Override, Rollout, RolloutDecision

MAX_NUMBER = 2**31 - 1


class StorableDict(serializers.DictField):
    """An object that every database can keep; what it holds is checked by who reads it."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        """Refuse text that no database can store."""
        values: dict[str, Any] = super().to_internal_value(data)
        try:
            is_storable = b"\\u0000" not in json.dumps(values).encode()
            json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
        except ValueError:
            is_storable = False
        if not is_storable:
            raise serializers.ValidationError("It holds characters that cannot be stored.")
        return values


class RuleSerializer(StrictSerializer):
    """One condition on what an installation states of itself."""

    attribute = serializers.ChoiceField(choices=ATTRIBUTES)
    operator = serializers.ChoiceField(choices=OPERATORS)
    values = serializers.ListField(child=Text(max_length=128), min_length=1, max_length=200)


class RolloutSerializer(serializers.ModelSerializer[Rollout]):
    """A rollout: a candidate beside the incumbent, and how far it has come."""

    model = serializers.CharField(source="channel.model.slug", read_only=True)
    channel = serializers.CharField(source="channel.name", read_only=True)
    version = serializers.IntegerField(source="version.number", read_only=True)
    candidate = serializers.SerializerMethodField()
    incumbent = serializers.SerializerMethodField()
    coverage_bp = serializers.IntegerField(
        read_only=True, help_text="Basis points in treatment; control has as many."
    )
    policy = serializers.SerializerMethodField()
    targeting = serializers.SerializerMethodField()
    allow_list = serializers.SerializerMethodField()
    deadline_at = serializers.DateTimeField(read_only=True, allow_null=True)
    verbs = serializers.SerializerMethodField()
    missing_approvals = serializers.SerializerMethodField()

    class Meta:
        model = Rollout
        fields: tuple[str, ...] = (
            "id", "model", "channel", "version", "candidate", "incumbent", "state", "stage",
            "coverage_bp", "policy", "targeting", "allow_list", "reason", "notes", "outcome",
            "created_at", "started_at", "stage_started_at", "deadline_at", "ended_at", "verbs",
            "missing_approvals",
        )  # fmt: skip
        read_only_fields = fields

    def get_candidate(self, rollout: Rollout) -> str | None:
        """Return the candidate's label, which it gets at the start."""
        return rollout.candidate.label if rollout.candidate else None

    def get_incumbent(self, rollout: Rollout) -> str | None:
        """Return the label that control has; null is the embedded model."""
        return rollout.incumbent.label if rollout.incumbent else None

    @extend_schema_field({"type": "object", "additionalProperties": {}})
    def get_policy(self, rollout: Rollout) -> dict[str, object]:
        """Return the policy with every default filled in."""
        return rollout.rules.dump()

    @extend_schema_field(RuleSerializer(many=True))
    def get_targeting(self, rollout: Rollout) -> list[Any]:
        """Return the rules that all have to hold."""
        return list(rollout.targeting)

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_allow_list(self, rollout: Rollout) -> list[str]:
        """Return the installations that get the candidate without being analysed."""
        return list(rollout.allow_list)

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_verbs(self, rollout: Rollout) -> list[str]:
        """Return what the present state takes, by people or by the server."""
        return list(rollout.verbs)

    def get_missing_approvals(self, rollout: Rollout) -> int:
        """Return how many people still have to approve before a start."""
        return (
            0 if rollout.started_at or rollout.is_finished else staging.missing_approvals(rollout)
        )


class RolloutDetailSerializer(RolloutSerializer):
    """A rollout with what the fleet can decide about it."""

    forecast = serializers.SerializerMethodField()

    class Meta(RolloutSerializer.Meta):
        fields = (*RolloutSerializer.Meta.fields, "forecast")
        read_only_fields = fields

    def get_forecast(self, rollout: Rollout) -> str:
        """Say what the fleet can decide."""
        return staging.forecast_rollout(rollout)


class NewRolloutSerializer(StrictSerializer):
    """What is rolled out, where and how; what is left out comes from the delivery policy."""

    model = serializers.SlugField(max_length=63)
    version = Whole(min_value=1, max_value=MAX_NUMBER)
    channel = serializers.SlugField(max_length=63, required=False)
    policy = StorableDict(
        required=False, help_text=f"Members: {', '.join(sorted(RolloutPolicy().dump()))}."
    )
    targeting = RuleSerializer(many=True, required=False)
    allow_list = serializers.ListField(
        child=Text(max_length=128), required=False, max_length=staging.MOST_ALLOWED
    )
    reason = Text(max_length=1000, required=False, allow_blank=True)
    notes = Text(max_length=4000, required=False, allow_blank=True, help_text="Shown to devices.")


class RolloutChangeSerializer(StrictSerializer):
    """What may change before the start."""

    policy = StorableDict(required=False)
    targeting = RuleSerializer(many=True, required=False)
    allow_list = serializers.ListField(
        child=Text(max_length=128), required=False, max_length=staging.MOST_ALLOWED
    )


class WhySerializer(StrictSerializer):
    """Why something is done."""

    reason = Text(max_length=1000, required=False, allow_blank=True)


class DecisionSerializer(serializers.ModelSerializer[RolloutDecision]):
    """One look or one verb, with everything that was known."""

    evidence = StorableDict(read_only=True)
    verdict = StorableDict(read_only=True)
    by = serializers.SerializerMethodField()

    class Meta:
        model = RolloutDecision
        fields = (
            "number", "at", "verb", "rule", "sentence", "state_before", "state_after",
            "stage_before", "stage_after", "by", "evidence", "verdict",
        )  # fmt: skip
        read_only_fields = fields

    def get_by(self, decision: RolloutDecision) -> str | None:
        """Return the account's name; null is the server itself."""
        return decision.actor.get_username() if decision.actor else None


class OverrideSerializer(serializers.ModelSerializer[Override]):
    """An installation that gets one release."""

    label = serializers.CharField(  # type: ignore[assignment]
        source="release.label", read_only=True
    )
    version = serializers.IntegerField(source="release.version.number", read_only=True)

    class Meta:
        model = Override
        fields = ("device", "label", "version", "reason", "created_at")
        read_only_fields = fields


class NewOverrideSerializer(StrictSerializer):
    """Who gets what."""

    device = Text(max_length=128)
    version = Whole(min_value=1, max_value=MAX_NUMBER)
    reason = Text(max_length=1000, required=False, allow_blank=True)


class GoldenSerializer(StrictSerializer):
    """The version that the holdout stays on; null for none."""

    version = Whole(min_value=1, max_value=MAX_NUMBER, allow_null=True)


class GoldenShownSerializer(serializers.Serializer[Any]):
    """What the holdout stays on."""

    channel = serializers.CharField()
    label = serializers.CharField(allow_null=True)  # type: ignore[assignment]
    version = serializers.IntegerField(allow_null=True)


class DeliveryPolicySerializer(StrictSerializer):
    """How a model's new versions reach devices."""

    rollout = serializers.ChoiceField(choices=WAYS, required=False)
    policy = StorableDict(required=False)
    targeting = RuleSerializer(many=True, required=False)
    approvals = serializers.DictField(
        child=Whole(min_value=0, max_value=10), required=False,
        help_text="How many people have to approve a rollout, by channel.",
    )  # fmt: skip
    holdout_bp = Whole(min_value=0, max_value=10_000, required=False)
    prefer = serializers.ChoiceField(
        choices=PREFERENCES, required=False,
        help_text="Of the files it accepts a device gets: its first, or the fastest measured.",
    )  # fmt: skip

    @classmethod
    def show(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return what holds, not only what was set."""
        policy = DeliveryPolicy.read(values)
        return {
            "rollout": policy.rollout,
            "policy": RolloutPolicy.read(policy.policy).dump(),
            "targeting": list(values.get("targeting", [])),
            "approvals": dict(policy.approvals),
            "holdout_bp": policy.holdout_bp,
            "prefer": policy.prefer,
        }


class PlanSerializer(serializers.Serializer[Any]):
    """The way that the next version takes, and why."""

    is_staged = serializers.BooleanField()
    sentence = serializers.CharField()
    delivery_policy = DeliveryPolicySerializer()

"""Models and versions as JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from server.domain import maturity
from server.domain.policy import VARIANTS, TrainingPolicy
from server.domain.variants import USUAL
from server.http.serializers import Flag, Fraction, StrictSerializer, Text, Whole
from server.registry.figures import accepted_photos, figures, version_maturity
from server.registry.models import Model, ModelVersion, Variant

MAX_LABELS = 1001
LABEL_LENGTH = 80
_MATURITY = (
    "By the label with the fewest photos: untrained, prototype (below"
    f" {maturity.PROTOTYPE_BELOW}), thin (below {maturity.THIN_BELOW}) or enough."
)
_MaturityField = serializers.ChoiceField(
    choices=[kind.value for kind in maturity.Maturity], allow_null=True
)


def _policy_field(name: str, default: object) -> serializers.Field[Any, Any, Any, Any]:
    if name == "variants":
        choice = serializers.ChoiceField(choices=VARIANTS)
        return serializers.ListField(child=choice, required=False, default=list(USUAL))
    kinds: dict[type, type[serializers.Field[Any, Any, Any, Any]]] = {
        bool: Flag,
        int: Whole,
        float: Fraction,
        str: Text,
    }
    return kinds[type(default)](required=False, default=default)


# The members are the policy's own, so that neither can forget one of the other's.
TrainingPolicySerializer = type(
    "TrainingPolicySerializer",
    (StrictSerializer,),
    {
        "__doc__": TrainingPolicy.__doc__,
        "__module__": __name__,
        **{
            field.name: _policy_field(field.name, getattr(TrainingPolicy, field.name))
            for field in fields(TrainingPolicy)
        },
    },
)


@extend_schema_field(TrainingPolicySerializer)
class PolicyField(serializers.DictField):
    """The members of a policy that are set; the policy itself checks them."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        """Refuse text that no database can store."""
        values: dict[str, Any] = super().to_internal_value(data)
        try:
            is_storable = b"\\u0000" not in json.dumps(values).encode()
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            is_storable = False
        if not is_storable:
            raise serializers.ValidationError("The policy holds characters that cannot be stored.")
        return values


class FiguresSerializer(serializers.Serializer[Any]):
    """An accuracy with what it was counted on."""

    accuracy = serializers.FloatField()
    correct = serializers.IntegerField()
    count = serializers.IntegerField()
    interval = serializers.ListField(
        child=serializers.FloatField(), min_length=2, max_length=2, help_text="Wilson's, 95 %."
    )


class ModelSerializer(serializers.ModelSerializer[Model]):
    """A model with its labels in their order and its policy with every default filled in."""

    labels: serializers.SlugRelatedField[Any] = serializers.SlugRelatedField(
        many=True, read_only=True, slug_field="name"
    )
    training_policy = serializers.SerializerMethodField()
    photos = serializers.SerializerMethodField(help_text="Accepted ones of each label.")
    maturity = serializers.SerializerMethodField(help_text=_MATURITY)
    is_retired = serializers.SerializerMethodField()

    class Meta:
        model = Model
        fields = (
            "slug", "name", "description", "labels", "photos", "maturity", "training_policy",
            "is_open", "nightly_at", "nightly_enabled", "is_retired", "retired_at", "created_at",
        )  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(TrainingPolicySerializer)
    def get_training_policy(self, model: Model) -> dict[str, Any]:
        """Return what holds, not only what was set."""
        return dict(vars(TrainingPolicy.read(model.training_policy)))

    @extend_schema_field(serializers.DictField(child=serializers.IntegerField()))
    def get_photos(self, model: Model) -> dict[str, int]:
        """Count what the next night could train on."""
        return accepted_photos(model)

    @extend_schema_field(_MaturityField)
    def get_maturity(self, model: Model) -> str | None:
        """Return how far the poorest label's photos carry."""
        minimum = TrainingPolicy.read(model.training_policy).min_photos_per_label
        found = maturity.poorest(accepted_photos(model), minimum=minimum)
        return found.value if found is not None else None

    def get_is_retired(self, model: Model) -> bool:
        """Say whether devices are told that the model is gone."""
        return model.retired_at is not None


class NewModelSerializer(StrictSerializer):
    """What makes a model."""

    slug = Text(max_length=63, help_text="Small letters, digits, - and _; the name in addresses.")
    labels = serializers.ListField(
        child=Text(max_length=LABEL_LENGTH), max_length=MAX_LABELS,
        help_text="In the order of the network's outputs. An empty list makes a model for uploads"
        " that are no classifiers: it never trains.",
    )  # fmt: skip
    name = Text(max_length=120, required=False, allow_blank=True)
    description = Text(max_length=4000, required=False, allow_blank=True)
    training_policy = PolicyField(required=False)
    is_open = Flag(required=False, help_text="Devices need no application key.")


class ModelChangeSerializer(StrictSerializer):
    """What may change of a model; its labels may not, because versions depend on their order."""

    name = Text(max_length=120, required=False)
    description = Text(max_length=4000, required=False, allow_blank=True)
    training_policy = PolicyField(
        required=False, help_text="Only the members given change; null takes one's default again."
    )
    is_open = Flag(required=False)
    nightly_at = Text(
        max_length=5, required=False, allow_blank=True, help_text="HH:MM, UTC; empty: the server's."
    )
    nightly_enabled = Flag(required=False)
    is_retired = Flag(required=False, help_text="true retires the model for good.")


class VariantSerializer(serializers.ModelSerializer[Variant]):
    """One compiled file with what was measured of it."""

    class Meta:
        model = Variant
        fields = (
            "runtime", "precision", "sha256", "size_bytes", "media_type", "filename", "metrics",
            "requires", "checks", "is_shipped", "refusal",
        )  # fmt: skip
        read_only_fields = fields


class VersionSerializer(serializers.ModelSerializer[ModelVersion]):
    """A version in a list."""

    model: serializers.SlugRelatedField[Any] = serializers.SlugRelatedField(
        read_only=True, slug_field="slug"
    )
    accuracy = serializers.SerializerMethodField()
    figures = serializers.SerializerMethodField(help_text="The accuracy with count and interval.")
    golden = serializers.SerializerMethodField(help_text="The same on the golden photos.")
    maturity = serializers.SerializerMethodField(help_text=_MATURITY)

    class Meta:
        model = ModelVersion
        fields: tuple[str, ...] = (
            "model", "number", "state", "source", "architecture", "labels", "accuracy", "figures",
            "golden", "maturity", "notes", "failure", "created_at", "published_at",
        )  # fmt: skip
        read_only_fields = fields

    def get_accuracy(self, version: ModelVersion) -> float | None:
        """Return the accuracy on the test photos, where there were any."""
        accuracy = version.metrics.get("accuracy")
        return float(accuracy) if accuracy is not None else None

    @extend_schema_field(FiguresSerializer(allow_null=True))
    def get_figures(self, version: ModelVersion) -> dict[str, Any] | None:
        """Return the accuracy on all test photos with its count and interval."""
        return figures(version.metrics)

    @extend_schema_field(FiguresSerializer(allow_null=True))
    def get_golden(self, version: ModelVersion) -> dict[str, Any] | None:
        """Return the accuracy on the golden photos, where there were any."""
        return figures(version.metrics.get("golden") or {})

    @extend_schema_field(_MaturityField)
    def get_maturity(self, version: ModelVersion) -> str | None:
        """Return how far the photos of the version's poorest label carry."""
        return version_maturity(version)


class VersionDetailSerializer(VersionSerializer):
    """A version with its metrics, its lineage and its variants."""

    variants = VariantSerializer(many=True, read_only=True)
    parent = serializers.SerializerMethodField()
    runs = serializers.SerializerMethodField()

    class Meta(VersionSerializer.Meta):
        fields = (
            *VersionSerializer.Meta.fields, "preprocessing", "signature", "metrics", "lineage",
            "parent", "runs", "source_filename", "source_sha256", "weights_sha256", "variants",
        )  # fmt: skip
        read_only_fields = fields

    def get_parent(self, version: ModelVersion) -> int | None:
        """Return the number of the version this one followed."""
        return version.parent.number if version.parent else None

    @extend_schema_field(serializers.ListField(child=serializers.UUIDField()))
    def get_runs(self, version: ModelVersion) -> list[str]:
        """Return the ids of the runs that worked on the version."""
        return [str(run.pk) for run in version.runs.all()]

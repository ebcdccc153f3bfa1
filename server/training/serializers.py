"""Runs and uploads as JSON."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.reverse import reverse

from server.domain.variants import MENU
from server.http.serializers import StrictSerializer, Text
from server.training import queries, uploads
from server.training.models import TrainingRun

MAX_SIDE_PX = 4096


class RunSerializer(serializers.ModelSerializer[TrainingRun]):
    """A run in a list: where it stands and what came of it."""

    model: serializers.SlugRelatedField[Any] = serializers.SlugRelatedField(
        read_only=True, slug_field="slug"
    )
    version = serializers.SerializerMethodField()
    url = serializers.SerializerMethodField()
    progress = serializers.DictField(
        child=serializers.FloatField(), read_only=True, help_text="The newest figures, by name."
    )

    class Meta:
        model = TrainingRun
        fields: tuple[str, ...] = (
            "id", "url", "model", "kind", "trigger", "state", "stage", "step", "total_steps",
            "progress", "outcome", "error_code", "version", "created_at", "started_at",
            "finished_at",
        )  # fmt: skip
        read_only_fields = fields

    def get_version(self, run: TrainingRun) -> int | None:
        """Return the number of the version the run made or is making."""
        return run.version.number if run.version else None

    @extend_schema_field(serializers.CharField())
    def get_url(self, run: TrainingRun) -> str:
        """Return where the run can be followed."""
        return reverse("run", kwargs={"run_id": run.pk})


class RunLineSerializer(serializers.Serializer[Any]):
    """One line of a run's log."""

    id = serializers.IntegerField(help_text="Grows; pass the last one as ?after=.")
    at = serializers.DateTimeField()
    level = serializers.CharField()
    stage = serializers.CharField()
    message = serializers.CharField()


class CurvePointSerializer(serializers.Serializer[Any]):
    """One point of a run's curves."""

    id = serializers.IntegerField()
    stage = serializers.CharField()
    step = serializers.IntegerField()
    metrics = serializers.DictField(child=serializers.FloatField())


class RunDetailSerializer(RunSerializer):
    """A run with what it was made from, its log and its curves."""

    snapshot = serializers.SerializerMethodField()
    lines = serializers.SerializerMethodField()
    curve = serializers.SerializerMethodField()

    class Meta(RunSerializer.Meta):
        fields = (*RunSerializer.Meta.fields, "seed", "pins", "snapshot", "lines", "curve")
        read_only_fields = fields

    @extend_schema_field(serializers.DictField(allow_null=True))
    def get_snapshot(self, run: TrainingRun) -> dict[str, Any] | None:
        """Return the photos' frozen list in figures."""
        snapshot = run.snapshot
        if snapshot is None:
            return None
        return {
            "id": snapshot.pk,
            "digest": snapshot.digest,
            "labels": snapshot.labels,
            "counts": snapshot.counts,
            "split_by": snapshot.split_by,
            "created_at": snapshot.created_at,
        }

    @extend_schema_field(RunLineSerializer(many=True))
    def get_lines(self, run: TrainingRun) -> Any:
        """Return the log's lines after the one that the caller knows."""
        return RunLineSerializer(queries.log(run, after=self.context["after"]), many=True).data

    @extend_schema_field(CurvePointSerializer(many=True))
    def get_curve(self, run: TrainingRun) -> Any:
        """Return the curves' points after the one that the caller knows."""
        return CurvePointSerializer(queries.curve(run, after=self.context["after"]), many=True).data


class CardSerializer(serializers.Serializer[Any]):
    """A model card after Mitchell and others (2019); every figure with count and interval."""

    spec_version = serializers.IntegerField()
    details = serializers.DictField(help_text="Model, version, network, labels, maturity.")
    data = serializers.DictField(
        allow_null=True, help_text="Photos by label and split, contributors, cameras, period, rule."
    )
    training = serializers.DictField(
        help_text="How it was tuned, from which weights, in which run."
    )
    metrics = serializers.DictField(
        help_text="Overall, golden, per_label, per_camera, confusion; intervals are Wilson's, 95 %."
    )
    variants = serializers.ListField(child=serializers.DictField())
    gate = serializers.DictField(allow_null=True)
    weaknesses = serializers.ListField(child=serializers.CharField())
    limits = serializers.ListField(child=serializers.CharField())
    provenance = serializers.DictField(
        help_text="Digests, seed, pins, licence, who attested it, releases."
    )


class RunFilterSerializer(serializers.Serializer[Any]):
    """Which runs to list."""

    model = serializers.SlugField(required=False, max_length=63)
    state = serializers.ChoiceField(required=False, choices=TrainingRun.State.choices)
    kind = serializers.ChoiceField(required=False, choices=TrainingRun.Kind.choices)


class AfterSerializer(serializers.Serializer[Any]):
    """From which line on."""

    after = serializers.IntegerField(
        required=False, min_value=0, max_value=2**63 - 1, default=0,
        help_text="Only lines and points with a greater id.",
    )  # fmt: skip


class PreprocessingSerializer(StrictSerializer):
    """How a photo becomes the network's input; what is left out has the value shown."""

    width = serializers.IntegerField(min_value=1, max_value=MAX_SIDE_PX)
    height = serializers.IntegerField(min_value=1, max_value=MAX_SIDE_PX)
    fit = serializers.ChoiceField(choices=("stretch", "center_crop"), default="stretch")
    mean = serializers.ListField(
        child=serializers.FloatField(), min_length=3, max_length=3, default=[0.0, 0.0, 0.0]
    )
    std = serializers.ListField(
        child=serializers.FloatField(min_value=1e-6), min_length=3, max_length=3,
        default=[1.0, 1.0, 1.0],
    )  # fmt: skip


class VariantKindSerializer(serializers.Serializer[Any]):
    """One entry of the menu of compiled files."""

    kind = serializers.CharField(help_text="runtime:precision")
    purpose = serializers.CharField()
    is_trained = serializers.BooleanField(help_text="Whether the network is trained on for it.")
    is_shipped = serializers.BooleanField(help_text="Whether the version has it.")
    refusal = serializers.CharField(help_text="Why it was not shipped, where it was tried.")


class VariantRequestSerializer(StrictSerializer):
    """Which files to compile."""

    kinds = serializers.ListField(
        child=Text(max_length=40), min_length=1, max_length=len(MENU),
        help_text="Such as coreml:palette4; GET lists them.",
    )  # fmt: skip


class VersionUploadSerializer(StrictSerializer):
    """A trained network in a multipart form."""

    file = serializers.FileField(
        max_length=200, help_text=".keras, .tflite, .mlmodel or a zipped .mlpackage."
    )
    labels = serializers.ListField(
        child=Text(max_length=80), required=False, max_length=1001,
        help_text="In the order of the outputs; else the file's own, else the model's.",
    )  # fmt: skip
    notes = Text(max_length=4000, required=False, allow_blank=True)
    task = serializers.ChoiceField(
        required=False, choices=uploads.TASKS,
        help_text="classification: one photo in, a number for each label out. other: anything"
        " else. Left out: found out.",
    )  # fmt: skip
    preprocessing = serializers.JSONField(
        required=False, help_text="A JSON object; else the file's own, else the whole photo."
    )

    def validate_preprocessing(self, value: Any) -> dict[str, Any]:
        """Check the object inside the form's text."""
        return PreprocessingSerializer.read(value)

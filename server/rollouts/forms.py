"""Forms of releases."""

from __future__ import annotations

from typing import Any

from django import forms
from unfold.widgets import (
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from server.registry.figures import shown_accuracy
from server.registry.models import ModelVersion

PUBLISHED = (
    ModelVersion.objects.filter(
        state=ModelVersion.State.PUBLISHED,
        variants__is_shipped=True,
        model__retired_at__isnull=True,
    )
    .select_related("model")
    .order_by("model__slug", "-number")
    .distinct()
)


def reason_field() -> forms.CharField:
    """Return the field that asks why."""
    return forms.CharField(
        required=False,
        max_length=1000,
        widget=UnfoldAdminTextInputWidget(),
        help_text="For the audit log, and for whoever asks later.",
    )


class VersionField(forms.ModelChoiceField):  # type: ignore[type-arg]
    """Versions with how good they are."""

    def label_from_instance(self, obj: Any) -> str:
        """Name the version and its accuracy."""
        is_measured = obj.metrics.get("accuracy") is not None
        measured = shown_accuracy(obj.metrics) if is_measured else "not measured"
        return f"{obj.model.slug} {obj.number}, {measured}"


class ReleaseForm(forms.Form):
    """What is released, and where."""

    version = VersionField(
        queryset=PUBLISHED, widget=UnfoldAdminSelectWidget(), empty_label="Choose a version"
    )
    channel = forms.SlugField(
        max_length=63, initial="production", widget=UnfoldAdminTextInputWidget()
    )
    reason = reason_field()
    notes = forms.CharField(
        required=False,
        max_length=4000,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="Applications may show them.",
    )
    is_mandatory = forms.BooleanField(
        required=False,
        label="Mandatory",
        widget=UnfoldBooleanSwitchWidget(),
        help_text="Applications are told to update before anything else.",
    )


class RolloutForm(forms.Form):
    """What rolls out, and where."""

    version = VersionField(
        queryset=PUBLISHED, widget=UnfoldAdminSelectWidget(), empty_label="Choose a version"
    )
    channel = forms.SlugField(
        max_length=63, initial="production", widget=UnfoldAdminTextInputWidget()
    )
    reason = reason_field()
    notes = forms.CharField(
        required=False,
        max_length=4000,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="Applications may show them.",
    )


class RecallForm(forms.Form):
    """What is recalled, and why."""

    version = VersionField(
        queryset=PUBLISHED.filter(recall__isnull=True),
        widget=UnfoldAdminSelectWidget(),
        empty_label="Choose a version",
    )
    reason = reason_field()


class ReasonForm(forms.Form):
    """Why."""

    reason = reason_field()

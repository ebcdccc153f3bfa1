"""Forms of runs: which model, and which file."""

from __future__ import annotations

import uuid

from django import forms
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from server.domain.variants import MENU
from server.registry.models import Model


def _model_field() -> forms.ModelChoiceField[Model]:
    return forms.ModelChoiceField(
        queryset=Model.objects.filter(retired_at__isnull=True),
        widget=UnfoldAdminSelectWidget(),
        empty_label="Choose a model",
    )


class TrainForm(forms.Form):
    """Which model to train."""

    model = _model_field()


class ReasonForm(forms.Form):
    """Why."""

    reason = forms.CharField(
        required=False,
        max_length=300,
        widget=UnfoldAdminTextInputWidget(),
        help_text="Kept with who did it and when.",
    )


class VariantsForm(forms.Form):
    """Which files to compile."""

    kinds = forms.MultipleChoiceField(
        label="Files",
        choices=[
            (
                name,
                f"{name}: {kind.purpose}"
                + (" (trained on for minutes)" if kind.is_trained else ""),
            )
            for name, kind in MENU.items()
        ],
        widget=UnfoldAdminCheckboxSelectMultipleWidget(),
    )


class SearchForm(forms.Form):
    """A budget, and which networks to try."""

    model = _model_field()
    max_size_bytes = forms.IntegerField(
        required=False, min_value=1, widget=UnfoldAdminIntegerFieldWidget(),
        label="Size, bytes", help_text="The TFLite file is at most so large.",
    )  # fmt: skip
    max_latency_ms = forms.FloatField(
        required=False, min_value=0.001, label="Latency, ms",
        widget=UnfoldAdminDecimalFieldWidget(attrs={"step": "any"}),
        help_text="For one photo on this server, at most.",
    )  # fmt: skip
    min_accuracy = forms.FloatField(
        required=False, min_value=0.001, max_value=1,
        widget=UnfoldAdminDecimalFieldWidget(attrs={"step": "any"}), label="Accuracy",
        help_text="At least this share of photos right, such as 0.8; the smallest file wins then.",
    )  # fmt: skip
    networks = forms.CharField(
        required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}),
        help_text="Names, one to a line; empty tries all whose weights are at hand.",
    )  # fmt: skip

    def clean_networks(self) -> list[str] | None:
        """Read one name from each line."""
        return self.cleaned_data["networks"].split() or None


class PinForm(ReasonForm):
    """Which photos become golden, and why."""

    model = _model_field()
    photos = forms.CharField(
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 5}),
        help_text="The ids, one to a line. Ticking photos in the list of photos fills this in.",
    )
    field_order = ("model", "photos", "reason")

    def clean_photos(self) -> list[uuid.UUID]:
        """Read one id from each line."""
        try:
            return [uuid.UUID(word) for word in self.cleaned_data["photos"].split()]
        except ValueError as error:
            raise forms.ValidationError("Not every line is the id of a photo.") from error


class UploadForm(forms.Form):
    """A trained file and what it does not say itself."""

    model = _model_field()
    file = forms.FileField(
        max_length=200,
        widget=forms.ClearableFileInput(
            attrs={"accept": ".keras,.tflite,.mlmodel,.mlpackage,.zip"}
        ),
        help_text="A .keras network, which is then compiled; or a .tflite, .mlmodel or zipped"
        " .mlpackage, which is taken as it is.",
    )
    task = forms.ChoiceField(
        required=False,
        choices=(
            ("", "Find out"),
            ("classification", "Classification: one photo in, a number for each label out"),
            ("other", "Something else: detection, segmentation, regression …"),
        ),
        widget=UnfoldAdminSelectWidget(),
    )
    labels = forms.CharField(
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 4}),
        help_text="One to a line, in the order of the network's outputs. Empty takes those in the"
        " file, else the model's.",
    )
    notes = forms.CharField(required=False, max_length=4000, widget=UnfoldAdminTextInputWidget())

    def clean_labels(self) -> list[str]:
        """Read one label from each line."""
        text: str = self.cleaned_data["labels"]
        return [line.strip() for line in text.splitlines() if line.strip()]

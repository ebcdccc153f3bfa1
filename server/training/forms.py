"""Forms of runs: which model, and which file."""

from __future__ import annotations

from django import forms
from unfold.widgets import (
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

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

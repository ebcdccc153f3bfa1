"""Forms of models: labels one to a line, and every member of the policy by itself."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any, ClassVar

from django import forms
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from server.domain.architectures import ARCHITECTURES, AUTO
from server.domain.errors import DomainError
from server.domain.policy import AUGMENTATIONS, STRATEGIES, TrainingPolicy
from server.domain.variants import COREML_TARGETS, MENU
from server.registry.actions import check_labels
from server.registry.models import Model

PREFIX = "policy_"
POLICY_FIELDS = tuple(f"{PREFIX}{field.name}" for field in fields(TrainingPolicy))
_CLOCK = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
_CHOICES = {
    "architecture": (AUTO, *ARCHITECTURES),
    "fit": ("stretch", "center_crop"),
    "gate_on": ("test", "golden"),
    "coreml_target": COREML_TARGETS,
    "auto_accept": ("none", "trusted"),
    "strategy": STRATEGIES,
    "augmentation": AUGMENTATIONS,
}
_HELP = {
    "architecture": (
        "auto takes the best network whose weights are at hand; docs/architectures.md has them all."
    ),
    "fit": "How a photo becomes the network's square.",
    "strategy": "auto measures what serves these photos best; docs/training.md tells how.",
    "depth": "With strategy linear: features, or the layer the network is cut at.",
    "lower_min_gain": "A network cut lower is taken when it is this much more accurate.",
    "fine_tune_min_photos_per_label": "With fewer, no layer below the last is trained.",
    "fine_tune_min_gain": "Fine-tuning is kept when it is this much more accurate,",
    "fine_tune_gain_per_megabyte": "and this much more for each megabyte that a patch grows by.",
    "augmentation": "How photos are varied: as the app's users will take them.",
    "views": "Varied copies of each training photo, beside the photo itself.",
    "seed": "The same seed and photos give the same files.",
    "validation_share": "Of the photos, to stop training at the right time.",
    "test_share": "Of the photos, to measure versions; never trained on.",
    "min_photos_per_label": "A label with fewer accepted photos is left out.",
    "max_contributor_share": "Of one label's training photos, from one person.",
    "min_test_photos": "Fewer than this, and nothing is released.",
    "margin": "A candidate may be this much less accurate than what is served; 0.02 is two points.",
    "gate_on": "test: all test photos; golden: those that staff pinned, where there are enough.",
    "variant_tolerance": "A compiled file that loses more than this is not shipped.",
    "variant_agreement": "A compiled file gives the network's answer on at least this share.",
    "variants": "What is compiled from each version.",
    "coreml_target": "The oldest system that Core ML packages are made for.",
    "compression_epochs": "How long pruned and clustered kinds are trained on; 0 leaves it out.",
    "auto_release": "A candidate that passes the gate goes to production by itself.",
    "auto_accept": "trusted: photos of trusted volunteers need no review.",
    "min_side_px": "Smaller photos are refused.",
    "refuse_blurred": "Clearly blurred photos are refused at once.",
    "calibration_photos": "How many training photos calibrate int8 files.",
}


def _policy_field(name: str, default: object) -> forms.Field:
    common: dict[str, Any] = {
        "label": name.replace("_", " ").capitalize(),
        "help_text": _HELP.get(name, ""),
    }
    if name == "variants":
        return forms.MultipleChoiceField(
            choices=[(name, f"{name}: {kind.purpose}") for name, kind in MENU.items()],
            widget=UnfoldAdminCheckboxSelectMultipleWidget(),
            **common,
        )
    if name in _CHOICES:
        choices = [(word, word.replace("_", " ")) for word in _CHOICES[name]]
        return forms.ChoiceField(choices=choices, widget=UnfoldAdminSelectWidget(), **common)
    if isinstance(default, bool):
        return forms.BooleanField(required=False, widget=UnfoldBooleanSwitchWidget(), **common)
    if isinstance(default, int):
        return forms.IntegerField(widget=UnfoldAdminIntegerFieldWidget(), **common)
    if isinstance(default, float):
        widget = UnfoldAdminDecimalFieldWidget(attrs={"step": "any"})
        return forms.FloatField(widget=widget, **common)
    return forms.CharField(max_length=80, widget=UnfoldAdminTextInputWidget(), **common)


class _PolicyForm(forms.ModelForm):  # type: ignore[type-arg]
    """The members of a policy as fields; what equals its default is not stored."""

    class Meta:
        model = Model
        fields = ("slug", "name", "description", "is_open", "nightly_at", "nightly_enabled")
        widgets: ClassVar = {"description": UnfoldAdminTextareaWidget(attrs={"rows": 3})}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        values = {**vars(TrainingPolicy()), **(self.instance.training_policy or {})}
        for name, value in values.items():
            if f"{PREFIX}{name}" in self.fields:
                self.fields[f"{PREFIX}{name}"].initial = value

    def clean_nightly_at(self) -> str:
        """Check the time of day."""
        value: str = self.cleaned_data["nightly_at"]
        if value and not _CLOCK.fullmatch(value):
            raise forms.ValidationError("A time of day such as 02:30, or nothing.")
        return value

    def clean(self) -> dict[str, Any]:
        """Put the policy together and check that it holds."""
        cleaned = dict(super().clean() or {})
        defaults = vars(TrainingPolicy())
        policy: dict[str, Any] = {}
        for name, default in defaults.items():
            value = cleaned.get(f"{PREFIX}{name}")
            if value is not None and value != (list(default) if name == "variants" else default):
                policy[name] = value
        try:
            TrainingPolicy.read(policy)
        except DomainError as error:
            raise forms.ValidationError(error.detail) from error
        cleaned["training_policy"] = policy
        return cleaned


# Declared as a class body would, one field for each member of the policy.
ModelForm = type(
    "ModelForm",
    (_PolicyForm,),
    {
        "__module__": __name__,
        **{
            f"{PREFIX}{field.name}": _policy_field(field.name, getattr(TrainingPolicy, field.name))
            for field in fields(TrainingPolicy)
        },
    },
)


class NewModelForm(ModelForm):  # type: ignore[valid-type, misc]
    """The same with the labels, which are given once."""

    labels = forms.CharField(
        required=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 6}),
        help_text="One to a line, in the order of the network's outputs. They cannot change later."
        " Without labels a model never trains; it takes uploads that are no classifiers.",
    )

    def clean_labels(self) -> list[str]:
        """Read one label from each line."""
        lines = [line for line in self.cleaned_data["labels"].splitlines() if line.strip()]
        try:
            return check_labels(lines) if lines else []
        except DomainError as error:
            raise forms.ValidationError(error.detail) from error

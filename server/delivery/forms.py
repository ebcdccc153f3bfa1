"""Forms of application keys."""

from __future__ import annotations

from django import forms
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminTextInputWidget

from server.registry.models import Model


class KeyForm(forms.Form):
    """What makes a key."""

    name = forms.CharField(
        max_length=120,
        widget=UnfoldAdminTextInputWidget(),
        help_text="Which application it is for.",
    )
    models = forms.ModelMultipleChoiceField(
        queryset=Model.objects.filter(retired_at__isnull=True),
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget(),
        help_text="None ticked: every model, and those to come.",
    )

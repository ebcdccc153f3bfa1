"""Forms of policies, targeting and pins: each member by itself, rules one to a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from django import forms
from unfold.widgets import (
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from server.domain.delivery_policy import DeliveryPolicy
from server.domain.errors import DomainError
from server.domain.rollout_policy import RolloutPolicy
from server.domain.targeting import ATTRIBUTES, OPERATORS, Rule, read_rules
from server.rollouts.forms import PUBLISHED, VersionField, reason_field
from server.rollouts.models import Channel

_BP: Final = 100
_PARTS: Final = 3
_WAYS: Final = (
    ("auto", "In stages where the fleet can decide, else to everyone at once"),
    ("staged", "Always in stages"),
    ("direct", "Always to everyone at once"),
)
_PREFERENCES: Final = (
    ("stated", "The first of its own order"),
    ("fastest", "The fastest measured on its class of devices"),
)
_MEMBERS: Final[Mapping[str, tuple[str, str]]] = {
    "stages_bp": ("Stages", "Per cent of all installations in each arm, growing, up to 50."),
    "min_hours": ("Hours per stage", "A stage lasts at least so long."),
    "min_installations": (
        "Installations per stage", "In each arm, with a first prediction, before a stage ends.",
    ),
    "max_data_age_hours": ("Oldest data, hours", "Without newer reports the rollout is held."),
    "deadline_days": ("Deadline, days", "It is decided then at the latest."),
    "alpha": ("False alarms", "The chance of one false rollback in a whole rollout; 0.05 is 5 %."),
    "margin": (
        "Margin", "A candidate may be this much worse and is still promoted; 0.02 is two points.",
    ),
    "tuned_for": (
        "Tuned for", "Installations with feedback at which success is known most sharply.",
    ),
    "needs_feedback": (
        "Needs feedback", "Off: clean guardrails promote, for apps that send no feedback.",
    ),
    "max_both_arms_share": (
        "In both arms", "The share of installations seen in both arms that is still believed.",
    ),
}  # fmt: skip


def _member_field(name: str, default: object) -> forms.Field:
    label, text = _MEMBERS[name]
    common: dict[str, Any] = {"label": label, "help_text": text}
    if isinstance(default, tuple):
        return forms.CharField(max_length=200, widget=UnfoldAdminTextInputWidget(), **common)
    if isinstance(default, bool):
        return forms.BooleanField(required=False, widget=UnfoldBooleanSwitchWidget(), **common)
    if isinstance(default, int):
        return forms.IntegerField(widget=UnfoldAdminIntegerFieldWidget(), **common)
    widget = UnfoldAdminDecimalFieldWidget(attrs={"step": "any"})
    return forms.FloatField(widget=widget, **common)


def _targeting_field() -> forms.CharField:
    return forms.CharField(
        label="Targeting",
        required=False,
        max_length=50_000,
        strip=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 4, "spellcheck": "false"}),
        help_text=(
            "One rule to a line, such as “app_version version_at_least 3.0” or “platform is"
            " android, ios”; all have to hold, and empty is every installation. Attributes:"
            f" {', '.join(ATTRIBUTES)}. Operators: {', '.join(OPERATORS)}."
        ),
    )


def write_rules(rules: Iterable[Mapping[str, Any]]) -> str:
    """Return rules as lines."""
    return "\n".join(
        f"{rule['attribute']} {rule['operator']} {_write_values(rule['values'])}" for rule in rules
    )


def _write_values(values: list[str]) -> str:
    plain = ", ".join(values)
    return plain if _read_values(plain) == values else json.dumps(values)


def _read_values(text: str) -> object:
    if text.startswith("["):
        # As rules are written whose values hold commas.
        return json.loads(text)
    return [value.strip() for value in text.split(",")]


def parse_rules(text: str) -> list[dict[str, Any]]:
    """Read rules from lines.

    Raises:
        ValidationError: names the line or the rule, and what is wrong with it.

    """
    rules: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        parts = line.split(None, _PARTS - 1)
        if not parts:
            continue
        try:
            if len(parts) < _PARTS:
                raise ValueError  # noqa: TRY301 - said below, with the line
            rules.append(_rule(*parts))
        except ValueError as error:
            message = (
                f"Line {number}: write an attribute, an operator and values, such as"
                " “app_version version_at_least 3.0”."
            )
            raise forms.ValidationError(message) from error
    _believe(lambda: read_rules(rules))
    return rules


def _rule(attribute: str, operator: str, values: str) -> dict[str, Any]:
    return {"attribute": attribute, "operator": operator, "values": _read_values(values.strip())}


def _believe(read: Any) -> Any:
    """Return what ``read`` returns; a refusal's sentence becomes the form's."""
    try:
        return read()
    except DomainError as error:
        raise forms.ValidationError(error.detail) from error


def in_words(rules: Iterable[Mapping[str, Any]]) -> str:
    """Say whom rules are for."""
    texts = [
        str(Rule(rule["attribute"], rule["operator"], tuple(rule["values"]))) for rule in rules
    ]
    return f"installations where {' and '.join(texts)}" if texts else "every installation"


def write_percent(basis_points: Iterable[int]) -> str:
    """Return basis points as per cent, such as ``1, 2.5``."""
    return ", ".join(f"{one / _BP:g}" for one in basis_points)


def _read_percent(text: str) -> list[int]:
    found = []
    for word in text.replace("%", " ").replace(",", " ").split():
        try:
            share = Decimal(word) * _BP
        except InvalidOperation:
            share = Decimal("0.5")
        if not share.is_finite() or share != share.to_integral_value():
            message = f"“{word}” is no percentage such as 5 or 2.5; write them with commas."
            raise forms.ValidationError(message)
        found.append(int(share))
    return found


class _PolicyForm(forms.Form):
    """The members of a rollout's policy as fields."""

    def clean_stages_bp(self) -> list[int]:
        """Read per cent into basis points."""
        return _read_percent(self.cleaned_data["stages_bp"])

    def clean_targeting(self) -> list[dict[str, Any]]:
        """Read the rules."""
        return parse_rules(self.cleaned_data["targeting"])

    def clean(self) -> dict[str, Any]:
        """Put the policy together and check that it holds."""
        cleaned = dict(super().clean() or {})
        members = {name: cleaned[name] for name in _MEMBERS if name in cleaned}
        if not self.errors:
            _believe(lambda: RolloutPolicy.read(members))
        cleaned["policy"] = members
        return cleaned


def policy_initial(policy: RolloutPolicy) -> dict[str, Any]:
    """Return what a form shows of a policy."""
    return {**policy.dump(), "stages_bp": write_percent(policy.stages_bp)}


_Members: Any = type(
    "_Members",
    (_PolicyForm,),
    {
        "__module__": __name__,
        **{name: _member_field(name, getattr(RolloutPolicy, name)) for name in _MEMBERS},
    },
)


class DeliveryForm(_Members):
    """How a model's new versions reach devices."""

    rollout = forms.ChoiceField(
        label="A new version goes", choices=_WAYS, widget=UnfoldAdminSelectWidget()
    )
    targeting = _targeting_field()
    approvals = forms.CharField(
        required=False,
        max_length=2000,
        strip=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text=(
            "How many people have to approve a rollout before it starts: a channel and a number to"
            " a line, such as “production 1”."
        ),
    )
    holdout = forms.DecimalField(
        label="Holdout, per cent",
        min_value=0,
        max_value=100,
        decimal_places=2,
        widget=UnfoldAdminDecimalFieldWidget(attrs={"step": "0.01"}),
        help_text="So many installations stay on the golden version, on channels that have one.",
    )
    prefer = forms.ChoiceField(
        label="Of the files it can run a device gets",
        choices=_PREFERENCES,
        widget=UnfoldAdminSelectWidget(),
        help_text=(
            "Fastest counts what apps measured with the SDK's benchmark, among files within the"
            " training policy's tolerance of the most accurate."
        ),
    )
    field_order = ("rollout", "stages_bp", "targeting", "approvals", "holdout", "prefer")

    def clean_approvals(self) -> dict[str, int]:
        """Read one channel from each line."""
        found: dict[str, int] = {}
        for number, line in enumerate(self.cleaned_data["approvals"].splitlines(), start=1):
            channel, _, count = line.replace(":", " ").strip().rpartition(" ")
            if not line.strip():
                continue
            if not channel or not count.isdecimal():
                message = f"Line {number}: write a channel and a number, such as “production 1”."
                raise forms.ValidationError(message)
            found[channel.strip()] = int(count)
        return found

    def clean(self) -> dict[str, Any]:
        """Put the delivery policy together; members that equal their default are not stored."""
        cleaned: dict[str, Any] = super().clean()
        if self.errors:
            return cleaned
        defaults = RolloutPolicy().dump()
        members = {k: v for k, v in cleaned["policy"].items() if v != defaults[k]}
        document = {
            "rollout": cleaned["rollout"],
            "policy": members,
            "targeting": cleaned["targeting"],
            "approvals": cleaned["approvals"],
            "holdout_bp": int(cleaned["holdout"] * _BP),
            "prefer": cleaned["prefer"],
        }
        _believe(lambda: DeliveryPolicy.read(document))
        return {"document": document}


def delivery_initial(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the form shows of a stored delivery policy."""
    policy = DeliveryPolicy.read(values)
    return {
        **policy_initial(RolloutPolicy.read(policy.policy)),
        "rollout": policy.rollout,
        "targeting": write_rules(values.get("targeting", [])),
        "approvals": "\n".join(f"{name} {count}" for name, count in policy.approvals.items()),
        "holdout": Decimal(policy.holdout_bp) / _BP,
        "prefer": policy.prefer,
    }


class DraftForm(_Members):
    """What of a rollout may change before it starts."""

    targeting = _targeting_field()
    allow_list = forms.CharField(
        label="Installations that get it anyway",
        required=False,
        max_length=150_000,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
        help_text="Their ids, one to a line. They are never analysed.",
    )
    field_order = ("targeting", "stages_bp", "allow_list")

    def clean_allow_list(self) -> list[str]:
        """Read one id from each line."""
        text: str = self.cleaned_data["allow_list"]
        return [line.strip() for line in text.splitlines() if line.strip()]


def golden_form(channel: Channel) -> type[forms.Form]:
    """Return the form of the version that the channel's holdout stays on."""

    class GoldenForm(forms.Form):
        version = VersionField(
            queryset=PUBLISHED.filter(model=channel.model, recall__isnull=True),
            required=False,
            widget=UnfoldAdminSelectWidget(),
            empty_label="None: nobody is held out",
        )

    return GoldenForm


class OverrideForm(forms.Form):
    """Who gets what."""

    channel = forms.ModelChoiceField(
        queryset=Channel.objects.select_related("model"), widget=UnfoldAdminSelectWidget()
    )
    device = forms.CharField(
        label="Installation",
        max_length=128,
        widget=UnfoldAdminTextInputWidget(),
        help_text="Its random id, as the app shows it.",
    )
    version = VersionField(queryset=PUBLISHED, widget=UnfoldAdminSelectWidget())
    reason = reason_field()

    def clean(self) -> dict[str, Any]:
        """See that channel and version are of one model."""
        cleaned = dict(super().clean() or {})
        channel, version = cleaned.get("channel"), cleaned.get("version")
        if channel and version and channel.model_id != version.model_id:
            message = f"{channel} is no channel of {version.model.slug}; choose one of its own."
            raise forms.ValidationError(message)
        return cleaned

"""Rollouts in the console: where each stands and why, and what a verb will come to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.db import transaction
from django.http import Http404, HttpResponse
from django.urls import reverse
from django.utils import timezone
from unfold.decorators import action
from unfold.enums import ActionVariant
from unfold.widgets import (
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from server.http.pages import Page, Question, ReadOnlyPage, ask, display, percent
from server.registry.models import Model
from server.rollouts import queries, staging
from server.rollouts.forms import PUBLISHED, ReasonForm, RolloutForm
from server.rollouts.models import (
    Approval,
    Override,
    Rollout,
    RolloutDecision,
    Webhook,
    WebhookCall,
)
from server.rollouts.pages.delivery import ask_draft, ask_override

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from django.http import HttpRequest

_STATES = {
    "running": "info", "queued": "info", "paused": "warning", "rolled back": "danger",
    "promoted": "success", "expired": "warning",
}  # fmt: skip
_WORDS = {
    "start": "Start", "queue": "Queue", "pause": "Pause", "resume": "Resume",
    "advance": "Advance", "rollback": "Roll back", "kill": "Kill",
}  # fmt: skip
_EFFECTS = {
    "start": "The candidate gets its label and is signed; then the first stage is offered it.",
    "queue": "It starts as soon as nothing else is under way on the channel.",
    "pause": "Nobody new takes part. Who takes part stays in its arm and keeps what it has.",
    "resume": "The stage goes on, and its hours start anew.",
    "advance": "The next stage begins now, whatever this one still waits for.",
    "rollback": "Everybody gets the incumbent again, under a new label; nothing is revoked.",
    "kill": "The candidate's files are revoked: devices delete them at their next check.",
}
_STATE_VERBS = {"rollback": "roll_back"}


@admin.register(Rollout)
class RolloutPage(ReadOnlyPage):
    """Candidates on their way."""

    list_display = ("rollout", "version_shown", "state_shown", "stage_shown", "waits", "created_at")
    list_filter = ("state", "channel__model", "channel__name")
    list_select_related = ("channel__model", "version", "candidate")
    ordering = ("-pk",)
    actions_detail = (*_WORDS, "approve", "targeting")
    change_form_outer_before_template = "rollouts/rollout.html"
    fields = (
        "channel", "version", "candidate", "incumbent", "nonce", "policy", "targeting",
        "allow_list", "reason", "notes", "created_by", "created_at", "started_at", "ended_at",
    )  # fmt: skip
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[Rollout]:
        """Fetch the newest decision of each with the page."""
        rows: QuerySet[Rollout] = super().get_queryset(request)
        return rows.select_related("channel__model", "version", "candidate", "incumbent__version")

    def has_add_permission(self, request: HttpRequest) -> bool:  # type: ignore[override]
        """Drafts are made here."""
        return bool(request.user.has_perm("rollouts.add_rollout"))

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Ask what is to roll out, then draft it."""
        if not self.has_add_permission(request):
            raise Http404
        wanted = request.GET.get("version", "")
        version = PUBLISHED.filter(pk=wanted).first() if wanted.isdecimal() else None

        def act(values: dict[str, Any]) -> tuple[str, str]:
            with transaction.atomic():
                rollout = staging.create_rollout(**values, actor=request.user)
            return f"{rollout} is drafted. {staging.forecast_rollout(rollout)}", _address(rollout)

        question = Question(
            title="Roll a version out in stages",
            submit="Draft it",
            back=reverse("admin:rollouts_rollout_changelist"),
            form=RolloutForm,
            initial={"version": version, "channel": "production"},
            act=act,
            effects=["It reaches nobody before it is started; the next page says what to expect."],
        )
        return ask(self, request, question)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Add the stages, the arms, the guardrails and the log."""
        rollout = self.get_object(request, object_id)
        context = _context(rollout) if rollout is not None else {}
        response: HttpResponse = super().change_view(
            request, object_id, form_url, {**(extra_context or {}), **context}
        )
        return response

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer what the present state takes."""
        offered: list[Any] = super().get_actions_detail(request, object_id)
        rollout = self.get_object(request, object_id)
        if rollout is None or not self.may_act(request):
            return []
        verbs = {verb for verb in _WORDS if _STATE_VERBS.get(verb, verb) in rollout.verbs}
        if rollout.state in {"draft", "queued"} and staging.missing_approvals(rollout):
            verbs.add("approve")
        if rollout.state in {"draft", "queued"}:
            verbs.add("targeting")
        return [one for one in offered if one.action_name.rpartition("_")[2] in verbs]

    def _ask(self, request: HttpRequest, object_id: str, verb: str) -> HttpResponse:
        rollout = self.get_object(request, object_id)
        if rollout is None or not self.may_act(request):
            raise Http404

        def act(values: dict[str, Any]) -> tuple[str, str]:
            staging.VERBS[verb](rollout=rollout, reason=values["reason"], actor=request.user)
            now = queries.get_rollout(rollout.pk)
            return f"{now} is {now.get_state_display()}.", _address(rollout)

        is_possible = _STATE_VERBS.get(verb, verb) in rollout.verbs
        question = Question(
            title=f"{_WORDS[verb]} {rollout}?",
            submit=_WORDS[verb],
            back=_address(rollout),
            form=ReasonForm if is_possible else None,
            act=act,
            is_possible=is_possible,
            is_danger=verb in {"kill", "rollback"},
            effects=_effects(rollout, verb) if is_possible else ["Its state does not take that."],
        )
        return ask(self, request, question)

    @action(description="Start", icon="play_arrow", variant=ActionVariant.PRIMARY)
    def start(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then start."""
        return self._ask(request, object_id, "start")

    @action(description="Queue", icon="queue")
    def queue(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then queue."""
        return self._ask(request, object_id, "queue")

    @action(description="Pause", icon="pause")
    def pause(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then pause."""
        return self._ask(request, object_id, "pause")

    @action(description="Resume", icon="play_arrow", variant=ActionVariant.PRIMARY)
    def resume(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then go on."""
        return self._ask(request, object_id, "resume")

    @action(description="Advance", icon="fast_forward")
    def advance(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then enter the next stage."""
        return self._ask(request, object_id, "advance")

    @action(description="Roll back", icon="undo")
    def rollback(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then give everybody the incumbent again."""
        return self._ask(request, object_id, "rollback")

    @action(description="Kill", icon="block", variant=ActionVariant.DANGER)
    def kill(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then revoke the candidate."""
        return self._ask(request, object_id, "kill")

    @action(description="Approve", icon="thumb_up", variant=ActionVariant.PRIMARY)
    def approve(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then note the approval."""
        rollout = self.get_object(request, object_id)
        if rollout is None or not self.may_act(request):
            raise Http404

        def act(_: dict[str, Any]) -> tuple[str, str]:
            staging.approve_rollout(rollout=rollout, actor=request.user)
            return f"You approve of {rollout}.", _address(rollout)

        question = Question(
            title=f"Approve of {rollout}?",
            submit="Approve",
            back=_address(rollout),
            act=act,
            effects=["With the last approval that is missing, a queued rollout starts."],
        )
        return ask(self, request, question)

    @action(description="Targeting and stages", icon="tune")
    def targeting(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask what is to change before the start."""
        rollout = self.get_object(request, object_id)
        if rollout is None or not self.may_act(request):
            raise Http404
        return ask_draft(self, request, rollout)

    @display(description="rollout", ordering="pk")
    def rollout(self, rollout: Rollout) -> str:
        """Name it."""
        return str(rollout)

    @display(description="version")
    def version_shown(self, rollout: Rollout) -> str:
        """Name version and label."""
        label = f" ({rollout.candidate.label})" if rollout.candidate else ""
        return f"{rollout.version.number}{label}"

    @display(description="state", label=_STATES)
    def state_shown(self, rollout: Rollout) -> str:
        """Say where it stands."""
        return rollout.get_state_display()

    @display(description="stage")
    def stage_shown(self, rollout: Rollout) -> str:
        """Say how far it has come."""
        if not rollout.is_open:
            return "–"
        stages = len(rollout.rules.stages_bp)
        return f"{rollout.stage + 1} of {stages}: {rollout.coverage_bp / 100:g} % per arm"

    @display(description="outcome")
    def waits(self, rollout: Rollout) -> str:
        """Say how it ended."""
        return rollout.outcome[:120]


@admin.register(RolloutDecision)
class DecisionPage(ReadOnlyPage):
    """Every look and every verb with everything that was known."""

    list_display = ("at", "rollout", "verb", "rule", "sentence")
    list_filter = ("verb", "rule")
    list_select_related = ("rollout__channel__model",)
    ordering = ("-at", "-pk")
    fields = (
        "rollout", "number", "at", "actor", "verb", "rule", "sentence", "state_before",
        "state_after", "stage_before", "stage_after", "policy", "evidence", "verdict",
    )  # fmt: skip
    readonly_fields = fields


@admin.register(Approval)
class ApprovalPage(ReadOnlyPage):
    """Who approved of what."""

    list_display = ("at", "rollout", "by")
    list_select_related = ("rollout__channel__model", "by")
    fields = ("rollout", "by", "at")
    readonly_fields = fields


@admin.register(Override)
class OverridePage(ReadOnlyPage):
    """Installations that get one release."""

    list_display = ("device", "channel", "release", "reason", "created_at")
    list_select_related = ("channel__model", "release__channel__model")
    search_fields = ("device",)
    fields = ("device", "channel", "release", "rollout", "reason", "created_by", "created_at")
    readonly_fields = fields
    actions_detail = ("remove",)

    def has_add_permission(self, request: HttpRequest) -> bool:  # type: ignore[override]
        """Installations are given versions here."""
        return bool(request.user.has_perm("rollouts.add_override"))

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Ask who gets what."""
        if not self.has_add_permission(request):
            raise Http404
        return ask_override(self, request)

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer to remove it."""
        offered: list[Any] = super().get_actions_detail(request, object_id)
        return offered if self.may_act(request) else []

    @action(description="Remove", icon="undo")
    def remove(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then let the installation have what it would have without."""
        override = self.get_object(request, object_id)
        if override is None or not self.may_act(request):
            raise Http404
        here = reverse("admin:rollouts_override_changelist")

        def act(_: dict[str, Any]) -> tuple[str, str]:
            staging.remove_override(override=override, actor=request.user)
            return f"{override.device} gets what the others get.", here

        question = Question(
            title=f"Let {override.device} go on?",
            submit="Remove the override",
            back=here,
            act=act,
            effects=["At its next check it is offered what it would have without."],
        )
        return ask(self, request, question)


class _SecretInput(UnfoldAdminTextInputWidget):
    """Takes a secret and never shows one."""

    input_type = "password"

    def get_context(self, name: str, value: Any, attrs: dict[str, Any] | None) -> dict[str, Any]:
        """Leave the value out."""
        context: dict[str, Any] = super().get_context(name, None, attrs)
        return context


class WebhookForm(forms.ModelForm):  # type: ignore[type-arg]
    """An address and its secret, which is never shown again."""

    model = forms.ModelChoiceField(
        queryset=Model.objects.all(), required=False, empty_label="Every model",
        widget=UnfoldAdminSelectWidget(),
    )  # fmt: skip
    channel = forms.SlugField(
        max_length=63, required=False, widget=UnfoldAdminTextInputWidget(),
        help_text="Empty: every channel.",
    )  # fmt: skip
    url = forms.URLField(max_length=500, assume_scheme="https", widget=UnfoldAdminTextInputWidget())
    secret = forms.CharField(
        min_length=16, max_length=200, required=False,
        widget=_SecretInput(attrs={"autocomplete": "off"}),
        help_text="Signs each message. At least 16 characters; empty keeps the one before.",
    )  # fmt: skip
    is_enabled = forms.BooleanField(
        required=False, initial=True, widget=UnfoldBooleanSwitchWidget(), label="Enabled"
    )

    class Meta:
        model = Webhook
        fields = ("model", "channel", "url", "secret", "is_enabled")

    def clean_secret(self) -> str:
        """Keep the secret that is there."""
        secret: str = self.cleaned_data["secret"] or self.initial.get("secret", "")
        if not secret:
            message = "A new webhook needs a secret."
            raise forms.ValidationError(message)
        return secret


@admin.register(Webhook)
class WebhookPage(Page):
    """Addresses that are told of changes."""

    form = WebhookForm
    list_display = ("url", "model", "channel", "is_enabled")
    list_select_related = ("model",)


@admin.register(WebhookCall)
class WebhookCallPage(ReadOnlyPage):
    """Messages, and what came of them."""

    list_display = ("created_at", "webhook", "state", "attempts", "next_at", "failure")
    list_filter = ("state",)
    list_select_related = ("webhook",)
    fields = (
        "id", "webhook", "state", "attempts", "next_at", "failure", "created_at", "delivered_at",
        "payload",
    )  # fmt: skip
    readonly_fields = fields


def _address(rollout: Rollout) -> str:
    return reverse("admin:rollouts_rollout_change", args=[rollout.pk])


def _effects(rollout: Rollout, verb: str) -> list[str]:
    effects = [_EFFECTS[verb]]
    if verb in {"start", "queue"}:
        effects.append(staging.forecast_rollout(rollout))
        missing = staging.missing_approvals(rollout)
        if missing:
            effects.append(f"Approvals missing before it may start: {missing}.")
    if verb == "advance" and rollout.stage + 1 < len(rollout.rules.stages_bp):
        grown = rollout.rules.stages_bp[rollout.stage + 1] / 100
        effects.append(f"Coverage grows to {grown:g} % of all installations in each arm.")
    return effects


def _context(rollout: Rollout) -> dict[str, Any]:
    policy = rollout.rules
    decisions = list(rollout.decisions.select_related("actor")[:50])
    last = rollout.decisions.exclude(verdict={}).first()
    return {
        "rollout": rollout,
        "stages": [
            {"share": f"{bp / 100:g} %", "is_current": rollout.is_open and rollout.stage == number,
             "is_done": number < rollout.stage or rollout.state == "promoted"}
            for number, bp in enumerate(policy.stages_bp)
        ],
        "decisions": decisions,
        "last": last,
        "arms": _arms(last),
        "guardrails": _guardrails(last),
        "checks": last.verdict["checks"] if last else [],
        "forecast": "" if rollout.is_finished else staging.forecast_rollout(rollout),
        "missing_approvals": (
            staging.missing_approvals(rollout) if rollout.state in {"draft", "queued"} else 0
        ),
        "is_unsigned": bool(
            rollout.is_open and rollout.candidate and not rollout.candidate.announced_at
        ),
        "now": timezone.now(),
    }  # fmt: skip


def _arms(last: RolloutDecision | None) -> list[dict[str, Any]]:
    if last is None:
        return []
    seen = last.evidence
    rows = []
    for arm in ("treatment", "control"):
        feedback = seen[arm]
        answers = feedback["answers"]
        rows.append(
            {
                "name": arm,
                "assigned": seen[f"assigned_{arm}"],
                "first_inferences": seen["stage_facts"][f"{arm}_first_inferences"],
                "feedback": feedback["installations"],
                "success": percent(feedback["successes"] / answers if answers else None),
            }
        )
    return rows


def _guardrails(last: RolloutDecision | None) -> list[dict[str, Any]]:
    """Return each guardrail with its evidence in words: how far it is from a rollback."""
    if last is None:
        return []
    rows = []
    for one in last.verdict["guardrails"]:
        e_value, needed = math.exp(min(one["log_e"], 60)), math.exp(one["log_threshold"])
        share = max(0.0, min(1.0, one["log_e"] / one["log_threshold"]))
        rows.append(
            {
                **one,
                "name": one["name"].replace("_", " "),
                "e_value": f"{e_value:.3g}",
                "needed": f"{needed:.0f}",
                "words": _in_words(share, is_breached=one["is_breached"]),
                "percent": round(100 * share),
            }
        )
    return rows


def _in_words(share: float, *, is_breached: bool) -> str:
    if is_breached:
        return "enough to roll back"
    for least, words in ((0.6, "strong"), (0.3, "some"), (0.05, "weak")):
        if share >= least:
            return f"{words} evidence of harm"
    return "no evidence of harm"

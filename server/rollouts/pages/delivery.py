"""Questions on how versions reach devices: delivery policy, golden version, drafts, overrides."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.urls import reverse

from server.domain.delivery_policy import DeliveryPolicy
from server.http.pages import Page, Question, ask
from server.registry.models import Model
from server.rollouts import actions, queries, staging
from server.rollouts.models import Channel, Rollout
from server.rollouts.policy_forms import (
    DeliveryForm,
    DraftForm,
    OverrideForm,
    delivery_initial,
    golden_form,
    in_words,
    policy_initial,
    write_percent,
    write_rules,
)

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse


def soon() -> str:
    """Say when devices notice."""
    hours = settings.POLL_INTERVAL_S / 3600
    return f"at their next check, within about {hours:.1f} hours".replace(".0 hours", " hours")


def ask_delivery(page: Page, request: HttpRequest, model: Model) -> HttpResponse:
    """Ask how the model's new versions reach devices, say what that comes to, and keep it."""

    def act(values: dict[str, Any]) -> tuple[str, str]:
        actions.set_delivery_policy(model=model, policy=values["document"], actor=request.user)
        return f"The delivery policy of {model.slug} is changed. {_tonight(model)}", here

    here = reverse("admin:rollouts_model_delivery", args=[model.pk])
    question = Question(
        title=f"Delivery of {model.slug}",
        submit="Change the policy",
        back=reverse("admin:registry_model_change", args=[model.pk]),
        form=DeliveryForm,
        initial=delivery_initial(model.delivery_policy),
        act=act,
        confirm=lambda values: _delivery_effects(model, values["document"]),
        effects=[
            _tonight(model),
            f"New rollouts are for {in_words(model.delivery_policy.get('targeting', []))}.",
            *(_holdout_now(channel) for channel in _golden_channels(model)),
        ],
    )
    return ask(page, request, question)


def _golden_channels(model: Model) -> list[Channel]:
    channels = model.channels.filter(golden__isnull=False)
    return list(channels.select_related("model", "golden__version", "golden__channel__model"))


def _tonight(model: Model) -> str:
    """Say what a new version would do by the model's policy."""
    plan = staging.plan(model=model, channel=actions.PRODUCTION)
    if not plan.is_staged:
        return f"A new version goes to everyone on production at once. {plan.sentence}"
    stages = write_percent(plan.policy.stages_bp)
    return f"A new version goes to production in stages ({stages} % per arm). {plan.sentence}"


def _holdout_now(channel: Channel) -> str:
    policy = DeliveryPolicy.read(channel.model.delivery_policy)
    return f"{policy.holdout_bp / 100:g} % of {channel} stay on {_named(channel)}."


def _named(channel: Channel) -> str:
    golden = channel.golden
    return f"{golden.label}, version {golden.version.number}" if golden else "no golden version"


def _delivery_effects(model: Model, document: dict[str, Any]) -> list[str]:
    before = DeliveryPolicy.read(model.delivery_policy)
    changed = copy.copy(model)
    changed.delivery_policy = document
    policy = DeliveryPolicy.read(document)
    effects = [_tonight(changed), f"New rollouts are for {in_words(document['targeting'])}."]
    effects += [
        f"A rollout on {channel} starts once {_people(count)} approved."
        for channel, count in policy.approvals.items()
        if count
    ]
    if policy.holdout_bp != before.holdout_bp:
        effects += _holdout_effects(model, before.holdout_bp, policy.holdout_bp)
    if policy.prefer == "fastest":
        effects.append(
            "Devices get the fastest file measured on their class, where it loses little accuracy."
        )
    effects.append(
        "Drafts and rollouts under way keep their stages and targeting; approvals count for every"
        " start from now on."
    )
    return effects


def _people(count: int) -> str:
    return "one more person has" if count == 1 else f"{count} more people have"


def _holdout_effects(model: Model, before: int, after: int) -> list[str]:
    channels = _golden_channels(model)
    if not channels:
        return ["No channel has a golden version, so the holdout reaches no device yet."]
    return [
        f"Devices: on {channel}, {after / 100:g} % of the installations are given"
        f" {_named(channel)}, {soon()}; now it is {before / 100:g} %."
        for channel in channels
    ]


def ask_golden(page: Page, request: HttpRequest, channel: Channel) -> HttpResponse:
    """Ask for the version that the holdout stays on, say whom that reaches, and choose it."""
    model = channel.model

    def act(values: dict[str, Any]) -> tuple[str, str]:
        stream = staging.set_golden(
            model=model, channel=channel.name, version=values["version"], actor=request.user
        )
        said = f"stays on {_named(stream)}" if stream.golden else "has no golden version"
        return f"The holdout of {channel} {said}.", here

    here = reverse("admin:rollouts_channel_change", args=[channel.pk])
    current = channel.golden.version if channel.golden else None
    question = Question(
        title=f"Golden version of {channel}",
        submit="Choose it" if current is None else "Change it on devices",
        back=here,
        form=golden_form(channel),
        initial={"version": current},
        act=act,
        confirm=lambda values: _golden_effects(channel, values["version"]),
        effects=[
            _holdout_now(channel) if current else "Nobody is held out on this channel now.",
            (
                "A holdout shows the sum of many small losses: where the incumbent falls behind the"
                " golden version by more than the margin, promotions stop."
            ),
        ],
    )
    return ask(page, request, question)


def _golden_effects(channel: Channel, version: Any) -> list[str]:
    share = DeliveryPolicy.read(channel.model.delivery_policy).holdout_bp / 100
    if version is None:
        return [f"Devices: the {share:g} % that were held out get what the others get, {soon()}."]
    if not share:
        return [
            (
                f"Version {version.number} gets a label of its own, and no device is given it: the"
                " delivery policy holds out 0 %."
            )
        ]
    return [
        (
            f"Devices: {share:g} % of the installations on {channel} are given version"
            f" {version.number} under a label of its own, {soon()}, and stay on it."
        ),
        "They take part in no rollout. All others are served as before.",
    ]


def ask_draft(page: Page, request: HttpRequest, rollout: Rollout) -> HttpResponse:
    """Ask for what of a rollout may change before its start, say what it comes to, keep it."""

    def act(values: dict[str, Any]) -> tuple[str, str]:
        staging.change_rollout(
            rollout=rollout,
            policy=_changed(rollout, values),
            targeting=values["targeting"],
            allow_list=values["allow_list"],
            actor=request.user,
        )
        return f"{rollout} is changed.", here

    here = reverse("admin:rollouts_rollout_change", args=[rollout.pk])
    is_possible = rollout.state in {"draft", "queued"}
    question = Question(
        title=f"Change {rollout}",
        submit="Change it",
        back=here,
        form=DraftForm if is_possible else None,
        initial={
            **policy_initial(rollout.rules),
            "targeting": write_rules(rollout.targeting),
            "allow_list": "\n".join(rollout.allow_list),
        },
        act=act,
        is_possible=is_possible,
        confirm=lambda values: _draft_effects(rollout, values),
        effects=["It reaches nobody before it starts, and is frozen then."]
        if is_possible
        else ["It has started: its stages, its targeting and its policy are frozen."],
    )
    return ask(page, request, question)


def _changed(rollout: Rollout, values: dict[str, Any]) -> dict[str, Any]:
    """Return the members that differ: stages that were not touched still follow the fleet."""
    before = rollout.rules.dump()
    return {name: value for name, value in values["policy"].items() if value != before[name]}


def _draft_effects(rollout: Rollout, values: dict[str, Any]) -> list[str]:
    effects = [(f"Once it starts, it is for {in_words(values['targeting'])}; others keep what they"
               " have and are not counted.")]  # fmt: skip
    changed = _changed(rollout, values)
    if "stages_bp" in changed:
        effects.append(
            f"Its stages are {write_percent(changed['stages_bp'])} % per arm, whatever the fleet."
        )
    if values["allow_list"]:
        count = len(values["allow_list"])
        effects.append(f"{count} installation{'s' * (count > 1)} get the candidate by name.")
    approvals = rollout.approvals.count()
    if approvals:
        effects.append(f"{approvals} approval{'s' * (approvals > 1)} of it have to be given again.")
    if rollout.state == "queued":
        effects.append("It is queued, and may start at any moment.")
    return effects


def ask_override(page: Page, request: HttpRequest) -> HttpResponse:
    """Ask who shall get what, whatever the others get, and set it."""

    def act(values: dict[str, Any]) -> tuple[str, str]:
        channel = values.pop("channel")
        override = staging.set_override(
            model=channel.model, channel=channel.name, **values, actor=request.user
        )
        done = f"{override.device} gets version {values['version'].number}, as {override.release}."
        return done, reverse("admin:rollouts_override_changelist")

    question = Question(
        title="Give one installation a version",
        submit="Give it",
        back=reverse("admin:rollouts_override_changelist"),
        form=OverrideForm,
        act=act,
        confirm=_override_effects,
        effects=["The installation gets it whatever the others get, and is never analysed."],
    )
    return ask(page, request, question)


def _override_effects(values: dict[str, Any]) -> list[str]:
    channel, version = values["channel"], values["version"]
    standing = queries.standing(channel)
    served = {one.version_id for one in (standing.newest, standing.candidate) if one is not None}
    effects = [
        f"Devices: {values['device']} is given version {version.number} of {channel}, {soon()}."
    ]
    if version.pk not in served:
        effects.append("The version gets a label of its own, for installations by name only.")
    known = channel.overrides.filter(device=values["device"]).select_related("release").first()
    if known is not None:
        effects.append(f"It is given {known.release.label} by name now; that ends.")
    return effects

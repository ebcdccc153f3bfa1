"""Channels and releases: release, roll back and kill, each with what devices will do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.urls import path, reverse
from unfold.decorators import action
from unfold.enums import ActionVariant

from server.http.pages import Question, ReadOnlyPage, ask, display, size
from server.registry.models import Model, ModelVersion
from server.rollouts import actions, queries
from server.rollouts.forms import PUBLISHED, ReasonForm, RecallForm, ReleaseForm
from server.rollouts.models import Channel, Recall, Release
from server.rollouts.pages.admin import RolloutPage
from server.rollouts.pages.delivery import ask_delivery, ask_golden, soon
from server.telemetry.queries import device_count

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.urls import URLPattern

__all__ = ["RolloutPage"]  # registers with its import


@admin.register(Channel)
class ChannelPage(ReadOnlyPage):
    """A channel: what it serves, what it served, and the two ways back."""

    list_display = ("channel", "serves", "since")
    list_filter = ("model",)
    list_select_related = ("model",)
    actions_detail = ("release", "roll_back", "kill", "golden", "delivery")
    change_form_outer_before_template = "rollouts/channel.html"
    fields = ("model", "name")
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[Channel]:
        """Fetch what each channel serves with the page."""
        rows: QuerySet[Channel] = super().get_queryset(request)
        return rows.select_related("model").prefetch_related("releases__version")

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Add the releases."""
        channel = self.get_object(request, object_id)
        context: dict[str, Any] = {}
        if channel is not None:
            current = _current(channel)
            context = {
                "channel": channel,
                "current": current,
                "standing": queries.standing(channel),
                "signing_failure": queries.signing_failure(channel.model),
                "devices": device_count(channel.model, current.label) if current else 0,
                "releases": channel.releases.select_related("channel", "version", "created_by")[
                    :100
                ],
            }
        response: HttpResponse = super().change_view(
            request, object_id, form_url, {**(extra_context or {}), **context}
        )
        return response

    def get_urls(self) -> list[URLPattern]:
        """Add the models' delivery policies: a model has one before it has any channel."""
        view = self.admin_site.admin_view(self.delivery_view)
        return [
            path("delivery/<int:model_id>/", view, name="rollouts_model_delivery"),
            *super().get_urls(),
        ]

    def delivery_view(self, request: HttpRequest, model_id: int) -> HttpResponse:
        """Ask how new versions reach devices."""
        model = Model.objects.filter(pk=model_id).first()
        if model is None or not self.may_act(request):
            raise Http404
        return ask_delivery(self, request, model)

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer what may be done."""
        offered: list[Any] = super().get_actions_detail(request, object_id)
        return offered if self.may_act(request) else []

    @action(description="Release a version", icon="rocket_launch", variant=ActionVariant.PRIMARY)
    def release(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask which version, then release it."""
        channel = self._channel(request, object_id)
        return _ask_release(self, request, None, channel)

    @action(description="Roll back", icon="undo")
    def roll_back(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then release the earlier version again."""
        channel = self._channel(request, object_id)
        current = queries.current_release(channel)
        earlier = queries.earlier_release(channel, current)

        def act(values: dict[str, Any]) -> tuple[str, str]:
            release = actions.roll_back(
                model=channel.model,
                channel=channel.name,
                reason=values["reason"],
                actor=request.user,
            )
            return f"{channel} serves version {release.version.number} as {release.label}.", here

        here = _address(channel)
        is_possible = current is not None and earlier is not None
        question = Question(
            title=f"Roll {channel} back?",
            submit="Roll back",
            back=here,
            form=ReasonForm if is_possible else None,
            act=act,
            is_possible=is_possible,
            effects=_rollback_effects(channel, current, earlier),
        )
        return ask(self, request, question)

    @action(description="Kill", icon="block", variant=ActionVariant.DANGER)
    def kill(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then revoke what the channel serves."""
        channel = self._channel(request, object_id)
        current = queries.current_release(channel)

        def act(values: dict[str, Any]) -> tuple[str, str]:
            serving = actions.kill(
                model=channel.model,
                channel=channel.name,
                reason=values["reason"],
                actor=request.user,
            )
            after = (
                f"{channel} serves version {serving.version.number} as {serving.label}"
                if serving
                else f"{channel} serves nothing: devices use the model embedded in their app"
            )
            return f"The release was killed. {after}.", here

        here = _address(channel)
        question = Question(
            title=f"Kill {current.label} on {channel}?" if current else f"Kill on {channel}",
            submit="Kill it now",
            back=here,
            is_danger=True,
            form=ReasonForm if current else None,
            act=act,
            is_possible=current is not None,
            effects=_kill_effects(channel, current),
        )
        return ask(self, request, question)

    @action(description="Golden version", icon="star")
    def golden(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask for the version that the holdout stays on."""
        return ask_golden(self, request, self._channel(request, object_id))

    @action(description="Delivery policy", icon="tune")
    def delivery(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the question."""
        channel = self._channel(request, object_id)
        return HttpResponseRedirect(
            reverse("admin:rollouts_model_delivery", args=[channel.model_id])
        )

    def _channel(self, request: HttpRequest, object_id: str) -> Channel:
        channel = self.get_object(request, object_id)
        if channel is None or not self.may_act(request):
            raise Http404
        return channel  # type: ignore[no-any-return]

    @display(description="channel", ordering="name")
    def channel(self, channel: Channel) -> str:
        """Name model and channel."""
        return str(channel)

    @display(description="serves")
    def serves(self, channel: Channel) -> str:
        """Say what devices get."""
        current = _current(channel)
        return f"{current.label}: version {current.version.number}" if current else "nothing"

    @display(description="since")
    def since(self, channel: Channel) -> Any:
        """Say since when."""
        current = _current(channel)
        return current.created_at if current else "–"


@admin.register(Release)
class ReleasePage(ReadOnlyPage):
    """The releases, of which each stays what it was."""

    list_display = (
        "release", "version_shown", "kind", "state_shown", "reason", "created_at", "announced_at"
    )  # fmt: skip
    list_filter = ("kind", "channel__model", "channel__name")
    list_select_related = ("channel__model__signing", "version__model")
    date_hierarchy = "created_at"
    fields = (
        "channel", "version", "counter", "kind", "reason", "notes", "is_mandatory", "created_at",
        "created_by", "announced_at", "killed_at", "killed_reason",
    )  # fmt: skip
    readonly_fields = fields

    def has_add_permission(self, request: HttpRequest) -> bool:  # type: ignore[override]
        """Adding a release is releasing a version."""
        return bool(request.user.has_perm("rollouts.add_release"))

    def add_view(
        self,
        request: HttpRequest,
        form_url: str = "",
        extra_context: Any = None,
    ) -> HttpResponse:
        """Ask, then release."""
        if not self.has_add_permission(request):
            raise Http404
        wanted = request.GET.get("version", "")
        version = PUBLISHED.filter(pk=wanted).first() if wanted.isdecimal() else None
        return _ask_release(self, request, version, None)

    @display(description="release", ordering="label_number")
    def release(self, release: Release) -> str:
        """Name channel and label."""
        return str(release)

    @display(description="version")
    def version_shown(self, release: Release) -> int:
        """Name the version."""
        return release.version.number

    @display(
        description="state",
        label={
            "killed": "danger",
            "announced": "success",
            "signing": "info",
            "not signed": "danger",
        },
    )
    def state_shown(self, release: Release) -> str:
        """Say where it stands, and since it may be asked, whether signing it failed."""
        if release.state == Release.State.SIGNING and release.channel.model.signing.failure:
            return "not signed"
        return release.state


@admin.register(Recall)
class RecallPage(ReadOnlyPage):
    """Versions that no device may run any more."""

    list_display = ("version", "reason", "created_at", "created_by")
    list_select_related = ("version__model", "created_by")
    ordering = ("-created_at",)
    fields = ("version", "reason", "created_at", "created_by")
    readonly_fields = fields

    def has_add_permission(self, request: HttpRequest) -> bool:  # type: ignore[override]
        """Adding one is recalling a version."""
        return bool(request.user.has_perm("rollouts.add_recall"))

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Ask, then recall."""
        if not self.has_add_permission(request):
            raise Http404
        wanted = request.GET.get("version", "")
        version = PUBLISHED.filter(pk=wanted).first() if wanted.isdecimal() else None

        def act(values: dict[str, Any]) -> tuple[str, str]:
            recall = actions.recall_version(**values, actor=request.user)
            return f"Version {recall.version} is recalled from every channel.", here

        here = reverse("admin:rollouts_recall_changelist")
        question = Question(
            title=f"Recall {version.model.slug} {version.number}?"
            if version
            else "Recall a version",
            submit="Recall it for good",
            back=here,
            is_danger=True,
            form=RecallForm,
            initial={"version": version},
            act=act,
            effects=_recall_effects(version),
        )
        return ask(self, request, question)


def _ask_release(
    page: ReadOnlyPage, request: HttpRequest, version: ModelVersion | None, channel: Channel | None
) -> HttpResponse:
    def act(values: dict[str, Any]) -> tuple[str, str]:
        release = actions.release_version(**values, actor=request.user)
        done = f"Version {release.version.number} is released as {release}; it is being signed."
        return done, _address(release.channel)

    name = channel.name if channel else actions.PRODUCTION
    question = Question(
        title=f"Release {version.model.slug} {version.number}?" if version else "Release a version",
        submit="Release",
        back=_address(channel) if channel else reverse("admin:rollouts_release_changelist"),
        form=ReleaseForm,
        initial={"version": version, "channel": name},
        act=act,
        effects=_release_effects(version, name),
    )
    return ask(page, request, question)


def _current(channel: Channel) -> Release | None:
    """Return what the channel serves, from releases fetched along with it."""
    return queries.stand(sorted(channel.releases.all(), key=lambda one: one.label_number)).newest


def _address(channel: Channel) -> str:
    return reverse("admin:rollouts_channel_change", args=[channel.pk])


def _release_effects(version: ModelVersion | None, channel: str) -> list[str]:
    if version is None:
        return [f"Devices on the channel are offered the version {soon()}."]
    current = queries.incumbent(version.model, channel)
    before = (
        f"Devices on {channel} are served {current.label} (version {current.version.number}) now."
        if current
        else f"Devices on {channel} are served nothing yet."
    )
    files = ", ".join(
        f"{variant.runtime} {variant.precision} ({size(variant.size_bytes)})"
        for variant in version.variants.filter(is_shipped=True)
    )
    return [
        before,
        f"All of them are offered version {version.number} {soon()}.",
        f"Each downloads one file that suits it: {files}.",
        "A device that cannot fetch or verify its file keeps what it has.",
    ]


def _rollback_effects(
    channel: Channel, current: Release | None, earlier: Release | None
) -> list[str]:
    if current is None:
        return ["The channel serves nothing, so there is nothing to go back from."]
    if earlier is None:
        return [
            f"{current.label} is the first version here: there is nothing to go back to.",
            "To withdraw it, kill it.",
        ]
    return [
        (
            f"Version {earlier.version.number} is released again as v{channel.next_label}, in place"
            f" of {current.label} (version {current.version.number})."
        ),
        f"Devices change over {soon()}; those that still hold the older file fetch nothing.",
        f"Version {current.version.number} is not revoked and may be released again.",
    ]


def _kill_effects(channel: Channel, current: Release | None) -> list[str]:
    if current is None:
        return ["The channel serves nothing that could be killed."]
    earlier = queries.earlier_release(channel, current)
    after = (
        f"Version {earlier.version.number} is released again as v{channel.next_label}."
        if earlier
        else "Nothing else was released: devices go back to the model embedded in their app."
    )
    return [
        (
            f"{current.label} (version {current.version.number}) is revoked. Devices that hold it"
            f" delete it {soon()}, and its files are no longer served."
        ),
        f"{device_count(channel.model, current.label)} devices have reported about it so far.",
        after,
        f"Version {current.version.number} can never be released on {channel.name} again.",
    ]


def _recall_effects(version: ModelVersion | None) -> list[str]:
    if version is None:
        return ["Devices delete the version's files and never run them again."]
    effects = [
        (
            f"Every file of version {version.number} is revoked on every channel. Devices that hold"
            f" one delete it {soon()}, and none is served any more."
        )
    ]
    withdrawn = queries.releases_with_files_of(version)
    for channel, release in queries.serving([version.model]):
        if release is None or not withdrawn.filter(pk=release.pk).exists():
            continue
        earlier = queries.earlier_release(channel, release)
        effects.append(
            f"{channel.name} serves it now, and goes back to version {earlier.version.number}."
            if earlier
            else f"{channel.name} serves it now, and nothing else was released there: devices go"
            " back to the model embedded in their app."
        )
        devices = device_count(channel.model, release.label)
        effects.append(f"{devices} devices have reported about {channel.name} {release.label}.")
    twins = withdrawn.exclude(version=version).values_list("version__number", flat=True).distinct()
    effects += [f"Version {number} holds one of its very files and goes too." for number in twins]
    effects.append(f"Version {version.number} can never be released again.")
    return effects

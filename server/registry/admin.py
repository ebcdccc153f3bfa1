"""Models and versions in the admin: what there is, how good it is, and where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import reverse
from unfold.admin import TabularInline
from unfold.decorators import action
from unfold.enums import ActionVariant

from server.domain.maturity import label_maturity, poorest
from server.http.pages import Page, Question, ReadOnlyPage, ask, display
from server.registry import actions, queries
from server.registry.figures import (
    accepted_photos,
    shown_accuracy,
    version_maturity,
    version_photos_sentence,
)
from server.registry.forms import POLICY_FIELDS, ModelForm, NewModelForm
from server.registry.models import Label, Model, ModelVersion
from server.registry.tables import confusion_table, label_rows, patch_rows, variant_rows

if TYPE_CHECKING:
    from django import forms
    from django.http import HttpRequest

_MATURITY_COLOURS = {
    "untrained": "danger",
    "prototype": "warning",
    "thin": "warning",
    "enough": "success",
    "unknown": "info",
}
_STATE_COLOURS = {"draft": "info", "published": "success", "failed": "danger"}


class LabelInline(TabularInline):
    """A model's labels in their order."""

    model = Label
    fields = ("position", "name", "accepted_photos")
    readonly_fields = ("accepted_photos",)
    ordering = ("position",)
    can_delete = False
    extra = 0
    hide_title = True
    verbose_name_plural = "labels, in the order of the network's outputs"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Label]:
        """Count the photos, in the same query."""
        rows: QuerySet[Label] = super().get_queryset(request)
        return rows.annotate(accepted=Count("photos", filter=Q(photos__state="accepted")))

    @display(description="accepted photos")
    def accepted_photos(self, label: Any) -> str:
        """Count, and say how far that carries."""
        minimum = queries.training_policy(label.model).min_photos_per_label
        return f"{label.accepted}: {label_maturity(label.accepted, minimum=minimum)}"

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Say no: versions depend on the order."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Say no."""
        return False


_MORE = (
    "upload_version",
    "search_budget",
    "see_versions",
    "see_photos",
    "change_delivery",
    "retire",
)


@admin.register(Model)
class ModelPage(Page):
    """A model: its labels, its policies, and the way to its versions, runs and releases."""

    form = ModelForm
    list_display = (
        "slug",
        "name",
        "label_count",
        "maturity_shown",
        "version_count",
        "devices",
        "trains",
        "service",
    )
    search_fields = ("slug", "name")
    ordering = ("slug",)
    inlines = (LabelInline,)
    actions_detail = (
        "train_now",
        {"title": "More", "items": _MORE},
    )
    fieldsets = (
        (None, {"fields": ("slug", "name", "description", "is_open")}),
        ("Nights", {"fields": ("nightly_enabled", "nightly_at")}),
        ("Training and release", {"fields": POLICY_FIELDS, "classes": ("collapse",)}),
    )
    add_fieldsets = (
        (None, {"fields": ("slug", "name", "description", "labels", "is_open")}),
        *fieldsets[1:],
    )

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> Any:
        """Ask for the labels where there are none yet."""
        kwargs["form"] = ModelForm if obj else NewModelForm
        # The declared fields are the form's own; the framework would look for them on the model.
        kwargs["fields"] = _PLAIN_FIELDS
        return super().get_form(request, obj, change, **kwargs)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Keep the name in addresses: devices call by it."""
        return ("slug",) if obj else ()

    def get_inlines(self, request: HttpRequest, obj: Any) -> tuple[type[LabelInline], ...]:
        """Show labels where there are some."""
        return self.inlines if obj else ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Model]:
        """Count what the list shows, in the same query."""
        rows = queries.models_with_photos().order_by("slug")
        return rows.annotate(
            label_total=Count("labels", distinct=True),
            version_total=Count("versions", distinct=True),
        )

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Say no: a model is retired, and its history stays."""
        return False

    def save_model(self, request: HttpRequest, obj: Model, form: forms.Form, change: bool) -> None:
        """Write through the action, which checks and keeps the audit log."""
        values = {name: form.cleaned_data[name] for name in form.cleaned_data if name in _WRITTEN}
        if change:
            # None takes a member's default again.
            unset = dict.fromkeys(set(queries.get_model(obj.slug).training_policy))
            values["training_policy"] = {**unset, **form.cleaned_data["training_policy"]}
            values.pop("slug", None)
            actions.change_model(model=obj, **values, actor=request.user)
            return
        nightly = {name: values.pop(name) for name in ("nightly_at", "nightly_enabled")}
        model = actions.create_model(
            **values,
            labels=form.cleaned_data["labels"],
            training_policy=form.cleaned_data["training_policy"],
            actor=request.user,
        )
        actions.change_model(model=model, **nightly, actor=request.user)
        obj.pk = model.pk

    @display(description="labels", ordering="label_total")
    def label_count(self, model: Any) -> int:
        """Count."""
        return int(model.label_total)

    @display(description="photos", label=_MATURITY_COLOURS)
    def maturity_shown(self, model: Model) -> str:
        """Say how far the photos of the poorest label carry today."""
        minimum = queries.training_policy(model).min_photos_per_label
        found = poorest(accepted_photos(model), minimum=minimum)
        return found.value if found is not None else "unknown"

    @display(description="versions", ordering="version_total")
    def version_count(self, model: Any) -> int:
        """Count."""
        return int(model.version_total)

    @display(description="devices need a key", boolean=True)
    def devices(self, model: Model) -> bool:
        """Say whether devices need a key."""
        return not model.is_open

    @display(description="trains")
    def trains(self, model: Model) -> str:
        """Say when the model trains."""
        if not model.nightly_enabled:
            return "off"
        return f"at {model.nightly_at or settings.NIGHTLY_AT} UTC"

    @display(description="state", label={"in service": "success", "retired": "danger"})
    def service(self, model: Model) -> str:
        """Say whether devices are served."""
        return "retired" if model.retired_at else "in service"

    @action(description="Train now", icon="model_training", variant=ActionVariant.PRIMARY)
    def train_now(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the question."""
        return _to("admin:training_trainingrun_add", model=object_id)

    @action(description="Upload a version", icon="upload")
    def upload_version(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the form."""
        return _to("admin:training_trainingrun_upload", model=object_id)

    @action(description="Search within a budget", icon="travel_explore")
    def search_budget(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the form."""
        return _to("admin:training_trainingrun_search", model=object_id)

    @action(description="Versions", icon="layers")
    def see_versions(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the list."""
        return _to("admin:registry_modelversion_changelist", model__id__exact=object_id)

    @action(description="Photos", icon="photo_library")
    def see_photos(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the list."""
        return _to("admin:photos_photo_changelist", model__id__exact=object_id)

    @action(description="Delivery policy", icon="tune")
    def change_delivery(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the question."""
        return HttpResponseRedirect(reverse("admin:rollouts_model_delivery", args=[object_id]))

    @action(
        description="Retire", icon="delete_forever", permissions=["change"],
        variant=ActionVariant.DANGER,
    )  # fmt: skip
    def retire(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then take the model out of service."""
        model = self.get_object(request, object_id)
        if model is None:
            return HttpResponseRedirect(reverse("admin:registry_model_changelist"))
        here = reverse("admin:registry_model_change", args=[model.pk])

        def act(_: dict[str, Any]) -> tuple[str, str]:
            actions.retire_model(model=model, actor=request.user)
            return f"{model.slug} is retired.", here

        question = Question(
            title=f"Retire {model.slug}?",
            submit="Retire for good",
            is_danger=True,
            is_possible=model.retired_at is None,
            back=here,
            act=act,
            effects=(
                "Devices that ask are told that the model is gone (410), and keep what they have.",
                "Nothing of it is trained or released any more.",
                "Versions, photos and history stay readable here. It cannot be undone.",
            )
            if model.retired_at is None
            else ("It is retired already.",),
        )
        return ask(self, request, question)


_PLAIN_FIELDS = ("slug", "name", "description", "is_open", "nightly_at", "nightly_enabled")
_WRITTEN = frozenset(_PLAIN_FIELDS)


@admin.register(ModelVersion)
class VersionPage(ReadOnlyPage):
    """A version: figures, confusion, variants and lineage."""

    list_display = (
        "version",
        "state_shown",
        "source",
        "architecture",
        "accuracy",
        "maturity_shown",
        "shipped",
        "created_at",
    )
    list_filter = ("state", "source", "model")
    search_fields = ("model__slug", "notes", "architecture")
    list_select_related = ("model",)
    ordering = ("-created_at",)
    actions_detail = ("release", "compile_more", "recall")
    change_form_outer_before_template = "registry/version.html"
    fields = ("notes", "failure", "lineage", "preprocessing", "signature")
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[ModelVersion]:
        """Fetch the variants of a whole page at once."""
        rows: QuerySet[ModelVersion] = super().get_queryset(request)
        return rows.select_related("model", "parent").prefetch_related("variants")

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Add the tables."""
        version = self.get_object(request, object_id)
        context = _describe(version) if version is not None else {}
        response: HttpResponse = super().change_view(
            request, object_id, form_url, {**(extra_context or {}), **context}
        )
        return response

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer a release where the version can be released."""
        offered: list[Any] = super().get_actions_detail(request, object_id)
        is_ready = ModelVersion.objects.filter(
            pk=object_id, state=ModelVersion.State.PUBLISHED, variants__is_shipped=True
        ).exists()
        return offered if is_ready else []

    @display(description="version", ordering="number")
    def version(self, version: ModelVersion) -> str:
        """Name the version."""
        return f"{version.model.slug} {version.number}"

    @display(description="state", ordering="state", label=_STATE_COLOURS)
    def state_shown(self, version: ModelVersion) -> str:
        """Name the state."""
        return version.state

    @display(description="accuracy")
    def accuracy(self, version: ModelVersion) -> str:
        """Show the accuracy on the test photos with its interval and their number."""
        return shown_accuracy(version.metrics)

    @display(description="maturity", label=_MATURITY_COLOURS)
    def maturity_shown(self, version: ModelVersion) -> str:
        """Say how far the photos of the poorest label carry."""
        return version_maturity(version) or "unknown"

    @display(description="shipped variants")
    def shipped(self, version: ModelVersion) -> str:
        """Count the files that devices may get."""
        variants = list(version.variants.all())
        return f"{sum(variant.is_shipped for variant in variants)} of {len(variants)}"

    @action(description="Release this version", icon="rocket_launch", variant=ActionVariant.PRIMARY)
    def release(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the question."""
        return _to("admin:rollouts_release_add", version=object_id)

    @action(description="Compile more files", icon="compress")
    def compile_more(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the menu."""
        return _to("admin:training_trainingrun_variants", version=object_id)

    @action(description="Recall", icon="undo", variant=ActionVariant.DANGER)
    def recall(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the question."""
        return _to("admin:rollouts_recall_add", version=object_id)


def _to(name: str, **query: str) -> HttpResponseRedirect:
    """Go to a page of an app above this one, which is known by its address only."""
    return HttpResponseRedirect(reverse(name, query=query))


def _describe(version: ModelVersion) -> dict[str, Any]:
    return {
        "title": f"{version.model.slug}, version {version.number}",
        "version": version,
        "accuracy": shown_accuracy(version.metrics),
        "golden": shown_accuracy(version.metrics["golden"])
        if version.metrics.get("golden")
        else "",
        "maturity": version_maturity(version),
        "photos_sentence": version_photos_sentence(version),
        "label_rows": label_rows(version),
        "confusion": confusion_table(version),
        "variant_rows": variant_rows(version),
        "patch_rows": patch_rows(version),
        "runs": version.runs.select_related("snapshot"),
        "releases": version.releases.select_related("channel"),
    }

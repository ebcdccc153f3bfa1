"""Runs with their live progress, snapshots, and the way a file of one's own comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from unfold.decorators import action
from unfold.enums import ActionVariant

from server import blobs
from server.domain.budgets import Budget
from server.domain.errors import DomainError, NotFound
from server.http.charts import line_chart
from server.http.pages import Question, ReadOnlyPage, ask, display, shorten
from server.photos.admin import photo_image
from server.photos.models import Photo, PhotoEmbedding
from server.photos.queries import view_pictures
from server.registry.figures import shown, shown_accuracy
from server.registry.models import Model, ModelVersion
from server.registry.tables import confusion_table, label_rows, variant_rows
from server.training import actions, golden, queries, searches, uploads
from server.training.cards import model_card
from server.training.forms import (
    PinForm,
    ReasonForm,
    SearchForm,
    TrainForm,
    UploadForm,
    VariantsForm,
)
from server.training.models import (
    DatasetSnapshot,
    GoldenPhoto,
    Night,
    RunLine,
    SnapshotEntry,
    TrainingRun,
)

if TYPE_CHECKING:
    import uuid

    from django.db.models import QuerySet
    from django.http import HttpRequest
    from django.utils.safestring import SafeString

_STATE_COLOURS = {
    "queued": "info",
    "running": "warning",
    "succeeded": "success",
    "failed": "danger",
    "cancelled": "info",
}
# Phases as people read them, with the stages that runs report in each.
_PHASES: dict[str, dict[str, tuple[str, ...]]] = {
    TrainingRun.Kind.TRAIN: {
        "snapshot": ("snapshot",),
        "embedding": ("embedding",),
        "choosing": ("probing", "tuning"),
        "training": ("training", "regularisation", "head", "scratch", "reading", "fine_tuning"),
        "evaluating": ("evaluating",),
        "compiling": ("compiling", "compressing"),
        "gate": ("gating",),
    },
    TrainingRun.Kind.COMPILE_UPLOAD: {"inspecting": ("inspecting",), "compiling": ("compiling",)},
    TrainingRun.Kind.COMPILE_VARIANTS: {
        "loading": ("loading",),
        "compiling": ("compiling", "compressing"),
    },
    TrainingRun.Kind.SEARCH: {
        "candidates": ("snapshot", "candidates"),
        "rounds": ("round 1", "round 2", "round 3", "embedding", "probing"),
        "finalists": ("finalists", "regularisation", "head"),
    },
}
_KINDS = {
    TrainingRun.Kind.TRAIN: "training",
    TrainingRun.Kind.COMPILE_UPLOAD: "compiling an upload",
    TrainingRun.Kind.COMPILE_VARIANTS: "compiling more files",
    TrainingRun.Kind.SEARCH: "searching within a budget",
}


@admin.register(TrainingRun)
class RunPage(ReadOnlyPage):
    """A run: where it stands, live; its curves and its log; cancel."""

    list_display = (
        "model",
        "kind_shown",
        "state_shown",
        "stage",
        "version",
        "outcome_shown",
        "created_at",
    )
    list_display_links = ("model", "kind_shown")
    list_filter = ("state", "kind", "trigger", "model")
    list_select_related = ("model", "version__model")
    date_hierarchy = "created_at"
    actions_list = ("upload",)
    actions_detail = ("cancel",)
    change_form_outer_before_template = "training/run.html"
    fields = ("id", "trigger", "requested_by", "seed", "pins", "job_id")
    readonly_fields = fields

    def has_add_permission(self, request: HttpRequest) -> bool:  # type: ignore[override]
        """Adding a run is training now."""
        return bool(request.user.has_perm("training.add_trainingrun"))

    def get_urls(self) -> list[URLPattern]:
        """Add the part of a run's page that is fetched again and again."""
        live = self.admin_site.admin_view(self.live_view)
        card = self.admin_site.admin_view(self.card_view)
        variants = self.admin_site.admin_view(self.variants_view)
        views = self.admin_site.admin_view(self.picture_view)
        search = self.admin_site.admin_view(self.search_view)
        adopt = self.admin_site.admin_view(self.adopt_view)
        return [
            path("views/<int:picture_id>/", views, name="training_trainingrun_views"),
            path("<uuid:run_id>/live/", live, name="training_trainingrun_live"),
            path("cards/<int:version_id>/", card, name="training_trainingrun_card"),
            path("variants/", variants, name="training_trainingrun_variants"),
            path("search/", search, name="training_trainingrun_search"),
            path("<uuid:run_id>/adopt/<int:place>/", adopt, name="training_trainingrun_adopt"),
            *super().get_urls(),
        ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[TrainingRun]:
        """Fetch what the page names along with it."""
        rows: QuerySet[TrainingRun] = super().get_queryset(request)
        return rows.select_related("model", "version__model", "snapshot", "requested_by")

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Add the progress."""
        run = self.get_object(request, object_id)
        context = self._describe(request, run) if run is not None else {}
        if run is not None and request.user.has_perm("photos.view_photo"):
            context["view_pictures"] = view_pictures(run.model)
        response: HttpResponse = super().change_view(
            request, object_id, form_url, {**(extra_context or {}), **context}
        )
        return response

    def live_view(self, request: HttpRequest, run_id: uuid.UUID) -> HttpResponse:
        """Answer with the moving part of a run's page."""
        if not self.has_view_permission(request):
            raise Http404
        try:
            run = queries.get_run(run_id)
        except NotFound as error:
            raise Http404 from error
        return TemplateResponse(request, "training/run_live.html", self._describe(request, run))

    def _describe(self, request: HttpRequest, run: TrainingRun) -> dict[str, Any]:
        context = describe_run(run)
        if run.kind == TrainingRun.Kind.SEARCH:
            context["search"] = describe_search(run, may_adopt=_may_adopt(request))
        return context

    def search_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for the budget, then search."""
        if not self.has_add_permission(request):
            raise Http404

        def act(values: dict[str, Any]) -> tuple[str, str]:
            model = values.pop("model")
            run = searches.request_search(model=model, budget=values, actor=request.user)
            return f"The search for {model.slug} is queued.", _address(run)

        question = Question(
            title="Search the best network within a budget",
            submit="Search",
            back=reverse("admin:training_trainingrun_changelist"),
            form=SearchForm,
            initial={"model": _chosen_model(request)},
            act=act,
            effects=(
                (
                    "Networks whose weights are at hand are tried in every size and cut at every"
                    " depth; half of them go after each round."
                ),
                "Nothing is trained for devices and no policy changes until you take a finalist.",
                "The model trains nothing else until the search has ended.",
            ),
        )
        return ask(self, request, question)

    def adopt_view(self, request: HttpRequest, run_id: uuid.UUID, place: int) -> HttpResponse:
        """Ask, then make a finalist the model's policy."""
        if not _may_adopt(request):
            raise Http404
        try:
            run = queries.get_run(run_id)
            search = searches.get_search(run)
            policy = searches.policy_of(search, place)
        except DomainError as error:
            raise Http404 from error

        def act(_: dict[str, Any]) -> tuple[str, str]:
            searches.adopt_candidate(search=search, place=place, actor=request.user)
            return f"{run.model.slug} trains it from the next night on.", _address(run)

        question = Question(
            title=f"Train {searches.candidate_rows(search)[place].name} for {run.model.slug}?",
            submit="Change the policy",
            back=_address(run),
            act=act,
            effects=(
                *(f"{name} becomes {_words(value)}." for name, value in policy.items()),
                "Devices notice nothing until a version of it has passed the gate.",
            ),
        )
        return ask(self, request, question)

    def picture_view(self, request: HttpRequest, picture_id: int) -> HttpResponse:
        """Answer with a photo and some of the views that training draws of it, as a JPEG."""
        if not request.user.has_perm("photos.view_photo"):
            raise Http404
        pictures = PhotoEmbedding.objects.filter(key__startswith=PhotoEmbedding.VIEWS_PREFIX)
        picture = get_object_or_404(pictures, pk=picture_id)
        try:
            content = blobs.store().read(picture.blob_sha256)
        except blobs.BlobNotFound as error:
            raise Http404 from error
        headers = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
        return HttpResponse(content, content_type="image/jpeg", headers=headers)

    def card_view(self, request: HttpRequest, version_id: int) -> HttpResponse:
        """Answer with a version's model card."""
        if not request.user.has_perm("registry.view_modelversion"):
            raise Http404
        versions = ModelVersion.objects.select_related("model", "parent")
        version = get_object_or_404(versions.prefetch_related("variants"), pk=version_id)
        return self.show(
            request,
            "training/card.html",
            f"{version.model.slug} {version.number}: model card",
            **describe_card(version),
        )

    def variants_view(self, request: HttpRequest) -> HttpResponse:
        """Ask which files a version shall have besides, then compile them."""
        if not self.has_add_permission(request):
            raise Http404
        wanted = request.GET.get("version", "")
        versions = ModelVersion.objects.select_related("model")
        version = get_object_or_404(versions, pk=int(wanted) if wanted.isdecimal() else 0)

        def act(values: dict[str, Any]) -> tuple[str, str]:
            run = actions.request_variants(
                version=version, kinds=values["kinds"], actor=request.user
            )
            return f"{len(values['kinds'])} more files are being compiled.", _address(run)

        shipped = ", ".join(sorted(queries.shipped_kinds(version))) or "none"
        question = Question(
            title=f"Compile more files of {version.model.slug} {version.number}",
            submit="Compile",
            back=reverse("admin:registry_modelversion_change", args=[version.pk]),
            form=VariantsForm,
            act=act,
            effects=(
                f"It has {shipped}.",
                (
                    "A new version of the same weights gets these files and the ones you choose;"
                    " each is measured on the test photos, and refused where it falls behind."
                ),
                "Devices notice nothing until the new version is released.",
            ),
        )
        return ask(self, request, question)

    def add_view(
        self,
        request: HttpRequest,
        form_url: str = "",
        extra_context: Any = None,
    ) -> HttpResponse:
        """Ask, then train."""
        if not self.has_add_permission(request):
            raise Http404
        model = _chosen_model(request)

        def act(values: dict[str, Any]) -> tuple[str, str]:
            run = actions.request_run(model=values["model"], actor=request.user)
            return f"{run.model.slug} is being trained.", _address(run)

        question = Question(
            title=f"Train {model.slug} now?" if model else "Train a model now",
            submit="Train now",
            back=reverse("admin:training_trainingrun_changelist"),
            form=TrainForm,
            initial={"model": model},
            act=act,
            effects=_training_effects(model),
        )
        return ask(self, request, question)

    @action(description="Upload a network", icon="upload")
    def upload(self, request: HttpRequest) -> HttpResponse:
        """Take a trained file, which a run then compiles and measures."""
        if not self.has_add_permission(request):
            raise Http404

        def act(values: dict[str, Any]) -> tuple[str, str]:
            file = values.pop("file")
            run = actions.upload_version(
                **values, file=file, filename=file.name, actor=request.user
            )
            return f"{file.name} is being compiled and measured.", _address(run)

        question = Question(
            title="Upload a trained network",
            submit="Upload",
            back=reverse("admin:training_trainingrun_changelist"),
            form=UploadForm,
            initial={"model": _chosen_model(request)},
            act=act,
            effects=(
                (
                    "The file becomes the model's next version. A run compiles it and measures it"
                    " on the newest test photos."
                ),
                "Devices notice nothing until the version is released.",
            ),
        )
        return ask(self, request, question)

    upload.max_body_bytes = uploads.max_body_bytes

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer to cancel what is under way."""
        offered: list[Any] = super().get_actions_detail(request, object_id)
        is_active = TrainingRun.objects.filter(pk=object_id, state__in=TrainingRun.ACTIVE).exists()
        return offered if is_active and self.may_act(request) else []

    @action(description="Cancel", icon="cancel", variant=ActionVariant.DANGER)
    def cancel(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then cancel."""
        run = self.get_object(request, object_id)
        if run is None or not self.may_act(request):
            raise Http404
        is_active = run.state in TrainingRun.ACTIVE

        def act(_: dict[str, Any]) -> tuple[str, str]:
            actions.cancel_run(run=run, actor=request.user)
            return "Cancelling was asked for.", _address(run)

        question = Question(
            title=f"Cancel this run of {run.model.slug}?",
            submit="Cancel the run",
            is_danger=True,
            is_possible=is_active,
            back=_address(run),
            act=act,
            effects=(
                "The run stops within seconds and makes no version.",
                "Devices keep what they have; the photos stay, and the next run uses them.",
            )
            if is_active
            else (f"The run has {run.state} already.",),
        )
        return ask(self, request, question)

    @display(description="kind", ordering="kind")
    def kind_shown(self, run: TrainingRun) -> str:
        """Name the kind."""
        return _KINDS[TrainingRun.Kind(run.kind)]

    @display(description="state", ordering="state", label=_STATE_COLOURS)
    def state_shown(self, run: TrainingRun) -> str:
        """Name the state."""
        return run.state

    @display(description="outcome")
    def outcome_shown(self, run: TrainingRun) -> str:
        """Show the beginning of what came of it."""
        return shorten(run.outcome)


def describe_card(version: ModelVersion) -> dict[str, Any]:
    """Return what the page of a model card shows."""
    card = model_card(version)
    return {
        "version": version,
        "card": card,
        "overall": shown_accuracy(version.metrics),
        "golden": shown_accuracy(version.metrics.get("golden") or {})
        if card["metrics"]["golden"]
        else "",
        "label_rows": label_rows(version),
        "variant_rows": variant_rows(version),
        "confusion": confusion_table(version),
        "camera_rows": [
            (row["camera"], shown(row["correct"], row["count"]))
            for row in card["metrics"]["per_camera"]
        ],
        "pins": ", ".join(
            f"{name} {value}" for name, value in (version.lineage.get("pins") or {}).items()
        ),
    }


def describe_search(run: TrainingRun, *, may_adopt: bool) -> dict[str, Any]:
    """Return what the page of a search shows of its candidates."""
    search = searches.get_search(run)
    rows = searches.candidate_rows(search)
    return {
        "budget": Budget.read(search.budget).describe(),
        "plot": searches.plot(search),
        "files": [row for row in rows if row.is_file],
        "dropped": [row for row in rows if not row.is_file],
        "may_adopt": may_adopt and run.state == TrainingRun.State.SUCCEEDED,
    }


def _may_adopt(request: HttpRequest) -> bool:
    return bool(request.user.has_perm("registry.change_model"))


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def describe_run(run: TrainingRun) -> dict[str, Any]:
    """Return what the live part of a run's page shows."""
    points = queries.curve(run)
    share = run.step / run.total_steps if run.total_steps else 0.0
    return {
        "run": run,
        "is_active": run.state in TrainingRun.ACTIVE,
        "phases": [
            (phase, run.stage in stages)
            for phase, stages in _PHASES[TrainingRun.Kind(run.kind)].items()
        ],
        "percent": min(100, round(share * 100)),
        "charts": _charts(points),
        "validation_photos": _validation_photos(run),
        "lines": queries.log(run),
        "duration": _duration(run),
    }


def _validation_photos(run: TrainingRun) -> int:
    """Return how many photos a curve's validation figures are of."""
    return sum(_split_counts(run.snapshot, "validation").values()) if run.snapshot else 0


def _duration(run: TrainingRun) -> str:
    if run.started_at is None or run.finished_at is None:
        return ""
    minutes, seconds = divmod(round((run.finished_at - run.started_at).total_seconds()), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _charts(points: list[RunLine]) -> list[SafeString]:
    """Return a picture of the losses and one of the accuracies of each stage that has some."""
    stages: dict[str, list[RunLine]] = {}
    for point in points:
        stages.setdefault(point.stage, []).append(point)
    return [
        line_chart(series, title=f"{word.capitalize()}, {stage}")
        for stage, found in stages.items()
        for word in ("loss", "accuracy")
        if (series := _series(found, word))
    ]


def _series(points: list[RunLine], word: str) -> dict[str, list[tuple[float, float]]]:
    """Return the figures whose names hold ``word``, each as points over the step."""
    series: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        for name, value in point.metrics.items():
            if word in name and isinstance(value, int | float):
                series.setdefault(name, []).append((point.step, float(value)))
    # One point makes no curve.
    return {name: line for name, line in series.items() if len(line) > 1}


def _chosen_model(request: HttpRequest) -> Model | None:
    wanted = request.GET.get("model", "")
    return Model.objects.filter(pk=wanted).first() if wanted.isdecimal() else None


def _address(run: TrainingRun) -> str:
    return reverse("admin:training_trainingrun_change", args=[run.pk])


def _training_effects(model: Model | None) -> tuple[str, ...]:
    released = (
        "If the result passes the gate and the policy says so, it is released to production;"
        " else devices notice nothing."
    )
    if model is None:
        return ("The model's accepted photos are frozen and a new version is trained.", released)
    accepted = Photo.objects.filter(model=model, state=Photo.State.ACCEPTED).count()
    fresh = queries.new_photo_count(model)
    return (
        (
            f"{accepted} accepted photos of {model.slug} are frozen, {fresh} of them new, and a"
            " version is trained from them."
        ),
        released,
    )


@admin.register(DatasetSnapshot)
class SnapshotPage(ReadOnlyPage):
    """A frozen list of photos, in figures."""

    list_display = ("model", "photos", "split_by", "short_digest", "created_at")
    list_filter = ("model",)
    list_select_related = ("model",)
    change_form_outer_before_template = "training/snapshot.html"
    fields = ("model", "split_by", "created_at")
    readonly_fields = fields

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Add the table of labels and splits."""
        snapshot = self.get_object(request, object_id)
        context: dict[str, Any] = {}
        if snapshot is not None:
            context = {"snapshot": snapshot, "rows": _snapshot_rows(snapshot)}
        response: HttpResponse = super().change_view(
            request, object_id, form_url, {**(extra_context or {}), **context}
        )
        return response

    @display(description="photos")
    def photos(self, snapshot: DatasetSnapshot) -> int:
        """Count the photos of all splits."""
        return sum(sum(_split_counts(snapshot, split).values()) for split in _SPLITS)

    @display(description="digest")
    def short_digest(self, snapshot: DatasetSnapshot) -> str:
        """Show enough of the digest to compare two."""
        return snapshot.digest[:12]


_SPLITS = ("train", "validation", "test")


def _split_counts(snapshot: DatasetSnapshot, split: str) -> dict[str, int]:
    counts = snapshot.counts.get(split)
    return counts if isinstance(counts, dict) else {}


def _snapshot_rows(snapshot: DatasetSnapshot) -> list[tuple[str, list[int]]]:
    return [
        (label, [_split_counts(snapshot, split).get(label, 0) for split in _SPLITS])
        for label in snapshot.labels
    ]


@admin.register(SnapshotEntry)
class SnapshotEntryPage(ReadOnlyPage):
    """Which photo was used for what."""

    list_display = ("snapshot", "photo", "label", "split", "is_golden")
    show_full_result_count = False
    list_filter = ("split", "is_golden", "snapshot__model")
    list_select_related = ("snapshot__model", "photo__label")
    search_fields = ("photo__id", "label")
    fields = ("snapshot", "photo", "label", "split", "is_golden")


@admin.register(GoldenPhoto)
class GoldenPage(ReadOnlyPage):
    """The test photos that staff chose, with who chose each, when and why."""

    list_display = ("thumbnail", "label_shown", "model_shown", "reason", "pinned_by", "pinned_at")
    list_display_links = ("thumbnail", "label_shown")
    list_filter = ("photo__model",)
    list_select_related = ("photo__label", "photo__model", "pinned_by")
    search_fields = ("photo__id", "reason")
    actions_detail = ("unpin",)
    fields = ("picture", "photo", "model_shown", "reason", "pinned_by", "pinned_at")
    readonly_fields = fields

    def has_add_permission(self, request: HttpRequest) -> bool:  # type: ignore[override]
        """Adding is pinning."""
        return bool(request.user.has_perm("training.add_goldenphoto"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[GoldenPhoto]:
        """Leave out what was withdrawn."""
        rows: QuerySet[GoldenPhoto] = super().get_queryset(request)
        return rows.filter(photo__state=Photo.State.ACCEPTED)

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Ask, then pin."""
        if not self.has_add_permission(request):
            raise Http404
        here = reverse("admin:training_goldenphoto_changelist")

        def act(values: dict[str, Any]) -> tuple[str, str]:
            pinned = golden.pin_golden(
                model=values["model"],
                photo_ids=values["photos"],
                reason=values["reason"],
                actor=request.user,
            )
            return f"{len(pinned)} photos of {values['model'].slug} are golden now.", here

        model = _chosen_model(request)
        question = Question(
            title=f"Pin golden photos of {model.slug}" if model else "Pin golden photos",
            submit="Pin",
            back=here,
            form=PinForm,
            initial={
                "model": model,
                "photos": request.GET.get("photos", "").replace(",", "\n"),
            },
            act=act,
            effects=(
                "Golden photos are test photos for ever, even when they leave the set again.",
                "So are all other photos of the people who took them, now and later.",
                "Every version is measured on them; with gate_on the gate judges on them.",
                "Photos that trained before are refused, and those of people whose photos train.",
            ),
        )
        return ask(self, request, question)

    @action(description="Take out of the golden set", icon="undo", permissions=["unpin"])
    def unpin(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then take one out."""
        row = self.get_object(request, object_id)
        if row is None or not self.has_unpin_permission(request):
            raise Http404
        here = reverse("admin:training_goldenphoto_changelist")

        def act(values: dict[str, Any]) -> tuple[str, str]:
            golden.unpin_golden(
                model=row.photo.model, photo_ids=[row.photo_id], actor=request.user, **values
            )
            return "The photo is golden no longer.", here

        question = Question(
            title="Take this photo out of the golden set?",
            submit="Take it out",
            back=reverse("admin:training_goldenphoto_change", args=[row.pk]),
            form=ReasonForm,
            act=act,
            effects=(
                "It stays a test photo for ever, and so do the others of whoever took it.",
                "Figures on the golden set from before and after are of different photos.",
            ),
        )
        return ask(self, request, question)

    def has_unpin_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        """Ask for the right to change the set."""
        return bool(request.user.has_perm("training.delete_goldenphoto"))

    @admin.display(description="photo")
    def thumbnail(self, row: GoldenPhoto) -> str:
        """Show the photo in small."""
        return photo_image(row.photo, "photo-thumbnail", 96)

    @admin.display(description="photo")
    def picture(self, row: GoldenPhoto) -> str:
        """Show the photo."""
        return photo_image(row.photo, "photo-image", 640)

    @admin.display(description="label", ordering="photo__label__name")
    def label_shown(self, row: GoldenPhoto) -> str:
        """Name what the photo shows."""
        return row.photo.label.name

    @admin.display(description="model", ordering="photo__model__slug")
    def model_shown(self, row: GoldenPhoto) -> str:
        """Name the model."""
        return row.photo.model.slug


@admin.register(Night)
class NightPage(ReadOnlyPage):
    """What the last night did for each model."""

    list_display = ("model", "last_on", "summary")
    list_select_related = ("model",)
    fields = ("model", "last_on", "summary")

"""Photos as pictures, decided in bulk; volunteers with their trust; reviews to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.http import HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import display

from server.photos import actions
from server.photos.models import Challenge, Consent, Photo, Review, Volunteer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.db.models import QuerySet
    from django.forms import ModelForm
    from django.http import HttpRequest

# As many ids as every server takes in an address.
MAX_PINNED_BY_ADDRESS = 50
_STATE_COLOURS = {
    Photo.State.PENDING: "warning",
    Photo.State.ACCEPTED: "success",
    Photo.State.REJECTED: "danger",
    Photo.State.WITHDRAWN: "info",
}


class _ReadOnly(ModelAdmin):
    """To look at: rows come from actions alone."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Say no."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Say no."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Say no."""
        return False


def photo_image(photo: Photo, name: str, width_px: int) -> str:
    """Return the photo as an image of at most ``width_px``, or a dash where it was withdrawn."""
    if not photo.blob_sha256:
        return "–"
    return format_html(
        '<img src="{}" alt="{}" loading="lazy" style="max-width:{}px;max-height:{}px">',
        reverse(name, args=[photo.pk]),
        f"claimed to show {photo.label.name}",
        width_px,
        width_px,
    )


@admin.register(Photo)
class PhotoAdmin(_ReadOnly):
    """The photos: look, tick, accept or reject."""

    list_display = (
        "thumbnail",
        "label_name",
        "model",
        "state_shown",
        "notes_shown",
        "volunteer",
        "created_at",
    )
    list_display_links = ("thumbnail", "label_name")
    list_filter = ("state", "model", "label", "created_at")
    list_filter_submit = False
    list_select_related = ("model", "label", "volunteer")
    list_per_page = 50
    search_fields = ("id", "volunteer__nickname", "contributor")
    date_hierarchy = "created_at"
    actions = ("accept", "reject", "pin_golden")
    fields = (
        "picture",
        "model",
        "label",
        "state",
        "volunteer",
        "contributor",
        "look_alike",
        "width",
        "height",
        "size_bytes",
        "camera",
        "quality",
        "notes",
        "rejection_code",
        "rejection_reason",
        "created_at",
        "decided_at",
        "decided_by",
        "withdrawn_at",
    )
    readonly_fields = fields

    @admin.display(description="photo")
    def thumbnail(self, photo: Photo) -> str:
        """Show the photo in small."""
        return photo_image(photo, "photo-thumbnail", 96)

    @admin.display(description="photo")
    def picture(self, photo: Photo) -> str:
        """Show the photo."""
        return photo_image(photo, "photo-image", 640)

    @admin.display(description="label", ordering="label__name")
    def label_name(self, photo: Photo) -> str:
        """Name what the photo is said to show."""
        return photo.label.name

    @display(description="state", ordering="state", label=_STATE_COLOURS)
    def state_shown(self, photo: Photo) -> str:
        """Name the state; its colour only repeats it."""
        return photo.state

    @admin.display(description="notes")
    def notes_shown(self, photo: Photo) -> str:
        """List what intake noticed."""
        return ", ".join(note.replace("_", " ") for note in photo.notes) or "–"

    @admin.display(description="looks like")
    def look_alike(self, photo: Photo) -> str:
        """Show the other person's photo that looks the same."""
        return photo_image(photo.resembles, "photo-image", 320) if photo.resembles else "–"

    @admin.action(description="Accept")
    def accept(self, request: HttpRequest, queryset: QuerySet[Photo]) -> None:
        """Accept the ticked photos."""
        ids = queryset.values_list("pk", flat=True)
        count = actions.accept_photos(photo_ids=ids, actor=request.user)
        self.message_user(request, f"{count} photos accepted.", messages.SUCCESS)

    @admin.action(description="Reject")
    def reject(self, request: HttpRequest, queryset: QuerySet[Photo]) -> None:
        """Reject the ticked photos."""
        ids = queryset.values_list("pk", flat=True)
        count = actions.reject_photos(photo_ids=ids, actor=request.user)
        self.message_user(request, f"{count} photos rejected.", messages.SUCCESS)

    @admin.action(description="Pin as golden test photos")
    def pin_golden(
        self, request: HttpRequest, queryset: QuerySet[Photo]
    ) -> HttpResponseRedirect | None:
        """Go to the question, which is known by its address only: it stands above this app."""
        rows = list(queryset.values_list("pk", "model_id")[: MAX_PINNED_BY_ADDRESS + 1])
        if len({model for _, model in rows}) != 1 or len(rows) > MAX_PINNED_BY_ADDRESS:
            sentence = f"Tick at most {MAX_PINNED_BY_ADDRESS} photos, all of one model."
            self.message_user(request, sentence, messages.ERROR)
            return None
        query = {"model": rows[0][1], "photos": ",".join(str(pk) for pk, _ in rows)}
        return HttpResponseRedirect(reverse("admin:training_goldenphoto_add", query=query))


class ConsentInline(TabularInline):
    """What a volunteer allows, and allowed."""

    model = Consent
    extra = 0
    can_delete = False
    fields = readonly_fields = ("kind", "version", "given_at", "withdrawn_at")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Say no: only volunteers consent."""
        return False


@admin.register(Volunteer)
class VolunteerAdmin(ModelAdmin):
    """The volunteers: trust is given here."""

    list_display = ("nickname", "is_trusted", "photo_count", "created_at")
    list_filter = ("is_trusted", "created_at")
    search_fields = ("nickname", "id")
    actions = ("trust", "distrust")
    fields = ("nickname", "email", "is_trusted", "created_at")
    readonly_fields = ("nickname", "email", "created_at")
    inlines = (ConsentInline,)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Say no: volunteers register themselves."""
        return False

    @admin.display(description="photos")
    def photo_count(self, volunteer: Volunteer) -> int:
        """Count the photos."""
        return volunteer.photos.count()

    def save_model(
        self, request: HttpRequest, obj: Volunteer, form: ModelForm[Volunteer], change: Any
    ) -> None:
        """Change trust by its action, which writes the audit row."""
        del form, change
        actions.set_trusted(volunteers=[obj], is_trusted=obj.is_trusted, actor=request.user)

    def get_deleted_objects(self, objs: Iterable[Volunteer], request: HttpRequest) -> Any:
        """Say what an erasure takes; what protects photos from other deletions is no bar to it."""
        counts = [(volunteer, volunteer.photos.count()) for volunteer in objs]
        lines = [f"{volunteer}, with {count} photos" for volunteer, count in counts]
        total = {"volunteers": len(counts), "photos": sum(count for _, count in counts)}
        return lines, total, set(), []

    def delete_model(self, request: HttpRequest, obj: Volunteer) -> None:
        """Erase the person with all that is theirs."""
        actions.erase_volunteer(volunteer=obj, actor=request.user)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Volunteer]) -> None:
        """Erase several."""
        for volunteer in queryset:
            actions.erase_volunteer(volunteer=volunteer, actor=request.user)

    @admin.action(description="Trust")
    def trust(self, request: HttpRequest, queryset: QuerySet[Volunteer]) -> None:
        """Trust the ticked volunteers."""
        actions.set_trusted(volunteers=queryset, is_trusted=True, actor=request.user)

    @admin.action(description="No longer trust")
    def distrust(self, request: HttpRequest, queryset: QuerySet[Volunteer]) -> None:
        """Trust the ticked volunteers no longer."""
        actions.set_trusted(volunteers=queryset, is_trusted=False, actor=request.user)


@admin.register(Review)
class ReviewAdmin(_ReadOnly):
    """Every decision, to read."""

    list_display = ("photo", "decision", "reviewer", "reason", "created_at")
    list_filter = ("decision", "created_at")
    list_select_related = ("photo__label", "reviewer")


@admin.register(Challenge)
class ChallengeAdmin(ModelAdmin):
    """What is asked for on a day; without one, the label with the fewest photos."""

    list_display = ("date", "model", "label", "text")
    list_filter = ("model",)
    list_select_related = ("model", "label")

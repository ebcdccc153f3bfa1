"""The console's home takes the place of the admin's index; the trust page shows what is signed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin

from server.console.queries import trust_overview
from server.http.pages import ReadOnlyPage, display
from server.trust.models import MetadataFile

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

admin.site.index_template = "console/home.html"
admin.site.index_title = "Home"
admin.site.empty_value_display = "–"


@admin.register(MetadataFile)
class TrustPage(ReadOnlyPage):
    """Signed metadata: the roles with the life they have left, and every file that was signed."""

    list_display = ("file", "created_at", "expires_at")
    list_filter = ("role",)
    ordering = ("-created_at", "-pk")
    date_hierarchy = "created_at"
    list_before_template = "console/trust.html"
    fields = ("role", "version", "sha256", "created_at", "expires_at")
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> Any:
        """Leave the bytes where they are."""
        return super().get_queryset(request).defer("content")

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Add the roles."""
        context = {**(extra_context or {}), **trust_overview(), "title": "Trust"}
        response: HttpResponse = super().changelist_view(request, context)
        return response

    @display(description="file", ordering="role")
    def file(self, metadata: MetadataFile) -> str:
        """Name the file as devices ask for it."""
        return str(metadata)

"""Application keys: made here, shown once, revoked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import admin
from django.http import Http404, HttpResponse
from django.urls import reverse
from unfold.decorators import action
from unfold.enums import ActionVariant

from server.delivery import actions
from server.delivery.forms import KeyForm
from server.delivery.models import ApplicationKey
from server.http.pages import Question, ReadOnlyPage, ask, display

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from django.http import HttpRequest


@admin.register(ApplicationKey)
class KeyPage(ReadOnlyPage):
    """Keys as far as they are known after their making."""

    list_display = ("name", "starts_with", "opens", "state", "created_at")
    search_fields = ("name", "hint")
    actions_detail = ("revoke",)
    fields = ("name", "hint", "opens", "created_at", "revoked_at")
    readonly_fields = fields

    def has_add_permission(self, request: HttpRequest) -> bool:  # type: ignore[override]
        """Keys are made here."""
        return bool(request.user.has_perm("delivery.add_applicationkey"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApplicationKey]:
        """Fetch the models of a whole page at once."""
        rows: QuerySet[ApplicationKey] = super().get_queryset(request)
        return rows.prefetch_related("covers")

    def add_view(
        self,
        request: HttpRequest,
        form_url: str = "",
        extra_context: Any = None,
    ) -> HttpResponse:
        """Make a key and show it, this once."""
        if not self.has_add_permission(request):
            raise Http404

        def act(values: dict[str, Any]) -> HttpResponse:
            key, text = actions.create_application_key(**values, actor=request.user)
            return self.show(
                request, "delivery/new_key.html", f"Key for {key.name}", key=key, text=text
            )

        question = Question(
            title="New application key",
            submit="Make the key",
            back=reverse("admin:delivery_applicationkey_changelist"),
            form=KeyForm,
            act=act,
            effects=(
                (
                    "Applications send the key to fetch models. It is shown once, on the next page:"
                    " only its digest is kept here."
                ),
            ),
        )
        return ask(self, request, question)

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer to revoke what is in force."""
        offered: list[Any] = super().get_actions_detail(request, object_id)
        in_force = ApplicationKey.objects.filter(pk=object_id, revoked_at__isnull=True).exists()
        return offered if in_force and self.may_act(request) else []

    @action(description="Revoke", icon="key_off", variant=ActionVariant.DANGER)
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then close the key."""
        key = self.get_object(request, object_id)
        if key is None or not self.may_act(request):
            raise Http404

        def act(_: dict[str, Any]) -> tuple[str, str]:
            actions.revoke_application_key(key=key, actor=request.user)
            return f"{key} is revoked.", reverse("admin:delivery_applicationkey_changelist")

        question = Question(
            title=f"Revoke {key}?",
            submit="Revoke the key",
            is_danger=True,
            is_possible=key.revoked_at is None,
            back=reverse("admin:delivery_applicationkey_change", args=[key.pk]),
            act=act,
            effects=(
                (
                    f"Within about {settings.DECISION_REFRESH_S} seconds, applications that send it"
                    " are refused (401). Their devices keep the models they have."
                ),
                "It cannot be undone; make a new key instead.",
            ),
        )
        return ask(self, request, question)

    @display(description="starts with")
    def starts_with(self, key: ApplicationKey) -> str:
        """Show the key's first characters."""
        return f"{key.hint}…"

    @display(description="opens")
    def opens(self, key: ApplicationKey) -> str:
        """Name the models."""
        return ", ".join(model.slug for model in key.covers.all()) or "every model"

    @display(description="state", label={"in force": "success", "revoked": "danger"})
    def state(self, key: ApplicationKey) -> str:
        """Say whether it is taken."""
        return "revoked" if key.revoked_at else "in force"

"""What the apps' admin pages share: rows to look at only, and questions before consequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from unfold.admin import ModelAdmin
from unfold.decorators import display

from server.domain.errors import DomainError

if TYPE_CHECKING:
    from django import forms

__all__ = ["Page", "Question", "ReadOnlyPage", "ask", "display", "percent", "size"]

KIB = 1024
LONGEST_TEXT = 120


class Page(ModelAdmin):
    """An admin page of ours."""

    list_filter_sheet = False

    def show(
        self, request: HttpRequest, template: str, title: str, **context: Any
    ) -> TemplateResponse:
        """Render a page of one's own inside the admin's frame."""
        request.current_app = self.admin_site.name
        return TemplateResponse(
            request,
            template,
            {**self.admin_site.each_context(request), "opts": self.opts, "title": title, **context},
        )


class ReadOnlyPage(Page):
    """Rows that actions write and people read."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Say no."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Say no."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Say no."""
        return False

    def may_act(self, request: HttpRequest) -> bool:
        """Say whether the account may do what this page's buttons do."""
        return bool(request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}"))


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked before something with consequences is done.

    ``effects`` are sentences that say what will happen, to whom and when. ``act`` gets the form's
    values and returns a sentence that says what was done, with the address to go on at, or a
    page of its own. ``confirm`` gets them before and returns sentences on what just these values
    come to, which are shown with one more question; none of them, and it is done at once.
    """

    title: str
    submit: str
    back: str
    act: Callable[[dict[str, Any]], tuple[str, str] | HttpResponse]
    confirm: Callable[[dict[str, Any]], Sequence[str]] | None = None
    effects: Sequence[str] = ()
    form: type[forms.Form] | None = None
    initial: dict[str, Any] | None = None
    is_danger: bool = False
    is_possible: bool = True


def ask(page: Page, request: HttpRequest, question: Question) -> HttpResponse:
    """Show the question, or do it where it was answered; a refusal is shown with its reason."""
    form = _form(question, request)
    error = ""
    consequences: Sequence[str] = ()
    is_answered = request.method == "POST" and question.is_possible and "again" not in request.POST
    if is_answered and (form is None or form.is_valid()):
        values = form.cleaned_data if form is not None else {}
        try:
            if question.confirm is not None and "confirmed" not in request.POST:
                consequences = question.confirm(values)
            done = None if consequences else question.act(values)
        except DomainError as refusal:
            error = refusal.detail
        else:
            if done is not None:
                return done if isinstance(done, HttpResponse) else _go_on(request, *done)
    response = page.show(
        request,
        "nightferry/question.html",
        question.title,
        question=question,
        form=form,
        error=error,
        consequences=consequences,
        # Templates call what can be called.
        is_first_step=question.confirm is not None and not consequences,
    )
    # A refused answer is no success, whatever its page looks like.
    response.status_code = 409 if error else 200
    return response


def _form(question: Question, request: HttpRequest) -> forms.Form | None:
    if question.form is None:
        return None
    if request.method == "POST":
        return question.form(request.POST, request.FILES, initial=question.initial)
    return question.form(initial=question.initial)


def _go_on(request: HttpRequest, sentence: str, address: str) -> HttpResponse:
    messages.success(request, sentence)
    return HttpResponseRedirect(address)


def shorten(text: str) -> str:
    """Return the beginning of a text that is too long for a column."""
    return f"{text[: LONGEST_TEXT - 1]}…" if len(text) > LONGEST_TEXT else text


def percent(share: float | None) -> str:
    """Return a share of one as per cent, or a dash where it is not known."""
    return "–" if share is None else f"{share * 100:.1f} %"


def size(size_bytes: int) -> str:
    """Return a size in words."""
    if size_bytes < KIB:
        return f"{size_bytes} B"
    if size_bytes < KIB * KIB:
        return f"{size_bytes / KIB:.0f} KiB"
    return f"{size_bytes / KIB / KIB:.2f} MiB"

"""``manage.py compile MODEL VERSION KIND…``: more files of a version, here and now."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from server.domain.errors import DomainError
from server.domain.variants import MENU
from server.registry.queries import get_model, get_version
from server.training import actions
from server.training.management.foreground import perform_run


class Command(BaseCommand):
    help = (
        "Compile more files of a published version. They go, with the files it has, into a new"
        " version of the same weights, which is not released. Without KIND the menu is shown."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("model", metavar="MODEL")
        parser.add_argument("number", metavar="VERSION", type=int)
        parser.add_argument("kinds", nargs="*", metavar="KIND", help="such as coreml:palette4")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002
        try:
            version = get_version(get_model(options["model"]), options["number"])
            if not options["kinds"]:
                self._show_menu()
                return
            run = actions.request_variants(version=version, kinds=options["kinds"])
        except DomainError as error:
            raise CommandError(error.detail) from error
        self.stdout.write(f"{version}: run {run.pk}")
        if not perform_run(self, run):
            raise CommandError(run.outcome or "The run did not reach its end.")

    def _show_menu(self) -> None:
        for name, kind in MENU.items():
            self.stdout.write(f"{name:<24} {kind.purpose}")

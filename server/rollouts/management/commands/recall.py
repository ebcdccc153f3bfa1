"""``manage.py recall MODEL NUMBER``: withdraw a version from every channel, for good."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from server.domain.errors import DomainError
from server.registry.queries import get_model, get_version
from server.rollouts import actions, queries


class Command(BaseCommand):
    help = (
        "Recall a version: it is killed on every channel, no device may run its files any more,"
        " and it can never be released again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("model", metavar="MODEL")
        parser.add_argument("number", metavar="NUMBER", type=int, help="the version's number")
        parser.add_argument("--reason", default="", help="for the audit log")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002
        try:
            model = get_model(options["model"])
            version = get_version(model, options["number"])
            actions.recall_version(version=version, reason=options["reason"])
        except DomainError as error:
            raise CommandError(error.detail) from error
        self.stdout.write(f"{version} is recalled.")
        for channel, release in queries.serving([model]):
            serves = (
                f"version {release.version.number} as {release.label}" if release else "nothing"
            )
            self.stdout.write(f"  {channel.name} serves {serves}.")
        if not queries.is_signed(model):
            self.stdout.write(
                "Devices hear of it once the policy is signed, which a worker does at once, or the"
                " next one that starts."
            )

"""``manage.py create_staff_token USERNAME``: a bearer token for a member of staff."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser

from server.console import actions


class Command(BaseCommand):
    help = "Print a new bearer token for a member of staff; --create makes the account first."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username")
        parser.add_argument("--days", type=int, default=actions.TOKEN_DAYS)
        parser.add_argument(
            "--create",
            action="store_true",
            help="make a superuser of that name, without a password, where there is none",
        )

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002
        users = get_user_model().objects
        user = users.filter(username=options["username"]).first()
        if user is None and options["create"]:
            user = users.create_superuser(options["username"])
        if user is None or not (user.is_active and user.is_staff):
            name = options["username"]
            raise CommandError(f"There is no active member of staff called {name!r}.")
        _, text = actions.create_staff_token(user=user, days=options["days"])
        self.stdout.write(text)

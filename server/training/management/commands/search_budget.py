"""``manage.py search_budget MODEL …``: the best network within a budget, here and now."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from server.domain.errors import DomainError
from server.registry.queries import get_model
from server.training import searches
from server.training.management.foreground import perform_run


class Command(BaseCommand):
    help = (
        "Search the best network within a budget, by successive halving on cached features; print"
        " every candidate. --adopt makes the chosen one what the model trains."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("model", metavar="MODEL")
        parser.add_argument("--max-size-bytes", type=int, metavar="BYTES")
        parser.add_argument("--max-latency-ms", type=float, metavar="MS", help="on this server")
        parser.add_argument("--min-accuracy", type=float, metavar="SHARE", help="such as 0.8")
        parser.add_argument("--network", action="append", dest="networks", metavar="NAME")
        parser.add_argument("--finalists", type=int, metavar="COUNT")
        parser.add_argument("--adopt", action="store_true", help="change the model's policy")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002
        names = ("max_size_bytes", "max_latency_ms", "min_accuracy", "networks", "finalists")
        budget = {name: options[name] for name in names if options[name] is not None}
        try:
            model = get_model(options["model"])
            run = searches.request_search(model=model, budget=budget)
        except DomainError as error:
            raise CommandError(error.detail) from error
        self.stdout.write(f"{model.slug}: run {run.pk}")
        is_good = perform_run(self, run)
        search = searches.get_search(run)
        for row in searches.candidate_rows(search):
            self.stdout.write("  " + "  ".join(row.as_words()))
        if not is_good:
            raise CommandError(run.outcome or "The run did not reach its end.")
        self.stdout.write(run.outcome)
        if options["adopt"] and search.chosen is not None:
            searches.adopt_candidate(search=search, place=search.chosen, actor=None)
            self.stdout.write(f"{model.slug} trains it from the next night on.")

"""``manage.py rollout MODEL …``: see, start and steer a model's rollout from a shell."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from server.domain.errors import DomainError
from server.registry.models import Model
from server.registry.queries import get_model, get_version
from server.rollouts import actions, queries, staging
from server.rollouts.models import Rollout

_STEERING = tuple(verb for verb in staging.VERBS if verb not in {"start", "queue"})


class Command(BaseCommand):
    help = (
        "Without a verb, show the channel's rollout. start NUMBER rolls a version out in stages;"
        " the other verbs steer the rollout that is under way. kill without one revokes what the"
        " channel serves."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("model", metavar="MODEL")
        parser.add_argument(
            "verb", nargs="?", default="show", choices=("show", "start", "queue", *_STEERING)
        )
        parser.add_argument("number", nargs="?", type=int, help="the version, for start and queue")
        parser.add_argument("--channel", default=actions.PRODUCTION)
        parser.add_argument("--reason", default="", help="for the log")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002
        try:
            rollout = self._act(get_model(options["model"]), options)
        except DomainError as error:
            raise CommandError(error.detail) from error
        if rollout is None:
            self.stdout.write("There is no rollout yet.")
            return
        self._show(queries.get_rollout(rollout.pk))

    def _act(self, model: Model, options: dict[str, Any]) -> Rollout | None:
        verb, channel, reason = options["verb"], options["channel"], options["reason"]
        if verb in {"start", "queue"}:
            if options["number"] is None:
                raise CommandError(f"{verb} takes the number of a version.")
            version = get_version(model, options["number"])
            with transaction.atomic():
                rollout = staging.create_rollout(version=version, channel=channel, reason=reason)
                return staging.VERBS[verb](rollout=rollout, reason=reason)
        if verb == "kill":
            # In an emergency what counts is what devices get, and not what waits or is drafted.
            actions.kill(model=model, channel=channel, reason=reason)
        newest = queries.newest_rollout(queries.get_channel(model, channel))
        if verb in {"show", "kill"} or newest is None:
            return newest
        return staging.VERBS[verb](rollout=newest, reason=reason)

    def _show(self, rollout: Rollout) -> None:
        label = rollout.candidate.label if rollout.candidate else "no label yet"
        state = rollout.get_state_display()
        self.stdout.write(f"{rollout}: version {rollout.version.number} ({label}), {state}")
        if rollout.is_open:
            stages = len(rollout.rules.stages_bp)
            self.stdout.write(
                f"  stage {rollout.stage + 1} of {stages}: {rollout.coverage_bp / 100:g} % in each"
                f" arm, decided by {rollout.deadline_at:%Y-%m-%d %H:%M} UTC at the latest"
            )
        if not rollout.is_finished:
            self.stdout.write(f"  {staging.forecast_rollout(rollout)}")
        for decision in rollout.decisions.all()[:5]:
            done = decision.verb or "no change"
            self.stdout.write(f"  {decision.at:%Y-%m-%d %H:%M} {done}: {decision.sentence}")

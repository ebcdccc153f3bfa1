"""Signing what changed of a model, reading it back, and only then telling devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from server.domain.errors import DomainError
from server.registry.models import Model
from server.registry.queries import get_model
from server.rollouts import actions as rollouts
from server.rollouts import queries
from server.training import actions as training
from server.training.models import TrainingRun
from server.trust import actions as trust
from server.trust import roles
from server.trust.targets import SignedTarget

if TYPE_CHECKING:
    from datetime import datetime

    from server.rollouts.models import Release
    from worker.context import JobContext

log = structlog.get_logger(__name__)


def run(context: JobContext) -> Mapping[str, Any]:
    """Sign what the job's model wants signed; what another job signed meanwhile is left alone."""
    model = get_model(context.args["model"])
    if queries.is_signed(model):
        return {"outcome": f"What {model.slug} serves was signed already."}
    return {"outcome": publish_model(model)}


def renew(*, now: datetime) -> None:
    """Sign again what would expire; called every hour."""
    renewed = trust.renew(now=now)
    if renewed.signed or renewed.overdue:
        log.info("metadata_renewed", signed=renewed.signed, overdue=renewed.overdue)


def catch_up(*, now: datetime) -> None:
    """Sign what jobs left undone, whatever became of them; called every minute."""
    for model in queries.late_signings(now):
        # One model's trouble must not cost the others their releases.
        try:
            log.info("late_publication", model=model.slug, outcome=publish_model(model))
        except DomainError as error:
            log.warning("not_published", model=model.slug, error=error.detail)
        except Exception:
            log.exception("not_published", model=model.slug)


def publish_model(model: Model) -> str:
    """Sign, read back and announce everything that the model serves now; say what came of it.

    Safe to call at any time and to cut off anywhere: equal content is signed once, devices hear
    of a release only after a fresh client has found it, and whoever calls next goes on.

    Raises:
        DomainError: what signing or reading back raises; it is kept for the console too.

    """
    try:
        publication = _sign(model)
    except Exception as error:
        _note_failure(model, error)
        raise
    fresh = rollouts.announce(publication=publication)
    for release in fresh:
        _tell_runs(release, f"{release.label} is signed and offered to {release.channel.name}.")
    for release in rollouts.note_refusals(publication=publication):
        reason = publication.refused[release.pk]
        log.warning("not_signed", release=str(release), reason=reason)
        _tell_runs(release, f"{release.label} is not signed: {reason}", level="warning")
    if not fresh and publication.refused:
        return f"{model.slug}: {' '.join(dict.fromkeys(publication.refused.values()))}"
    if not fresh:
        return f"The signed metadata of {model.slug} are up to date."
    names = ", ".join(f"{release.channel.name} {release.label}" for release in fresh)
    return f"{model.slug}: {names} signed and offered to devices."


def _sign(model: Model) -> rollouts.Publication:
    """Sign what the model serves and read it back; return it.

    What is read back may be newer, where another process signed meanwhile: then ours is taken
    again. It is drawn up while the repository is held, so that an older one never comes last.
    """
    role = roles.role_of(model.slug)
    drawn: list[rollouts.Publication] = []

    def draw() -> Sequence[SignedTarget]:
        drawn.append(rollouts.prepare_publication(model=model))
        return drawn[-1].targets

    for is_last in (False, False, True):
        trust.publish(role=role, paths=roles.paths_of(model.slug), targets=draw)
        try:
            trust.read_back(role=role, targets=drawn[-1].targets)
        except DomainError:
            if is_last or rollouts.prepare_publication(model=model) == drawn[-1]:
                raise
        else:
            break
    return drawn[-1]


def _note_failure(model: Model, error: Exception) -> None:
    """Keep the reason where people look: beside the release, and in the log of its run, once."""
    reason = error.detail if isinstance(error, DomainError) else f"{type(error).__name__}: {error}"
    if not rollouts.note_signing_failure(model=model, reason=reason):
        return
    for release in queries.listed_releases(model):
        if release.announced_at is None:
            _tell_runs(release, f"{release.label} waits to be signed: {reason}", level="warning")


def _tell_runs(release: Release, message: str, *, level: str = "info") -> None:
    """Add a line to the log of the run that made the release's version."""
    for run in TrainingRun.objects.filter(version=release.version_id):
        training.write_line(run=run, stage="release", message=message, level=level)

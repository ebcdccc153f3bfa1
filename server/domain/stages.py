"""The states of a rollout, the verbs between them, and when a stage may grow.

Coverage goes 1, 5, 10, 25, 50 % with a control arm as large, then the candidate is promoted to
everyone. Every change is one verb on one ``Progress``: a stage can only be followed by the next
one, and its clock starts when it is entered. After an outage nothing is made up for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from server.domain.errors import Conflict
from server.domain.rollout_policy import RolloutPolicy

State = Literal[
    "draft", "queued", "running", "paused", "rolled_back", "promoted", "expired", "superseded"
]
Verb = Literal[
    "queue",
    "start",
    "pause",
    "resume",
    "advance",
    "roll_back",
    "kill",
    "promote",
    "expire",
    "supersede",
]

TRANSITIONS: Mapping[State, Mapping[Verb, State]] = {
    "draft": {"queue": "queued", "start": "running", "supersede": "superseded"},
    "queued": {"start": "running", "kill": "rolled_back", "supersede": "superseded"},
    "running": {
        "pause": "paused",
        "advance": "running",
        "roll_back": "rolled_back",
        "kill": "rolled_back",
        "promote": "promoted",
        "expire": "expired",
    },
    "paused": {
        "resume": "running",
        "roll_back": "rolled_back",
        "kill": "rolled_back",
        "expire": "expired",
    },
    "rolled_back": {},
    "promoted": {},
    "expired": {},
    "superseded": {},
}
# What follows from evidence, the deadline or a newer candidate; nobody can ask for it.
_OF_THE_ENGINE: tuple[Verb, ...] = ("promote", "expire", "supersede")
FINAL_STATES = tuple(state for state, verbs in TRANSITIONS.items() if not verbs)
OPEN_STATES: tuple[State, ...] = ("running", "paused")


@dataclass(frozen=True)
class Progress:
    """Where a rollout stands. ``stage`` counts from 0 and means nothing before the start."""

    state: State = "draft"
    stage: int = 0
    started_at: datetime | None = None
    stage_started_at: datetime | None = None


@dataclass(frozen=True)
class StageFacts:
    """What was seen in the present stage, per arm: installations with a first inference."""

    treatment_first_inferences: int = 0
    control_first_inferences: int = 0


@dataclass(frozen=True)
class StageVerdict:
    """Whether the stage has run its course; ``missing`` says what it still waits for."""

    is_complete: bool
    missing: tuple[str, ...]


def allowed_verbs(state: State) -> tuple[Verb, ...]:
    """Return the verbs that ``state`` takes."""
    return tuple(TRANSITIONS[state])


def apply(progress: Progress, verb: Verb, policy: RolloutPolicy, *, now: datetime) -> Progress:
    """Return the progress after ``verb`` at ``now``.

    Raises:
        Conflict: ``rollout_finished``, ``verb_not_allowed`` or ``last_stage``.

    """
    target = TRANSITIONS[progress.state].get(verb)
    if target is None:
        raise _forbidden(progress.state, verb)
    if verb == "start":
        return Progress(target, 0, now, now)
    if verb == "advance":
        if progress.stage + 1 >= len(policy.stages_bp):
            message = "The rollout is in its last stage; what follows is to promote it."
            raise Conflict(message, code="last_stage")
        return replace(progress, stage=progress.stage + 1, stage_started_at=now)
    if verb == "resume":
        # A pause tells nothing about the candidate: the stage's hours start anew.
        return replace(progress, state=target, stage_started_at=now)
    return replace(progress, state=target)


def coverage_bp(progress: Progress, policy: RolloutPolicy) -> int:
    """Return the treatment arm's basis points; the control arm has as many."""
    return policy.stages_bp[progress.stage] if progress.state in OPEN_STATES else 0


def is_last_stage(progress: Progress, policy: RolloutPolicy) -> bool:
    """Say whether no larger stage is left but everyone."""
    return progress.stage + 1 >= len(policy.stages_bp)


def deadline_at(progress: Progress, policy: RolloutPolicy) -> datetime | None:
    """Return when the rollout is decided at the latest, or None before its start."""
    if progress.started_at is None:
        return None
    return progress.started_at + timedelta(days=policy.deadline_days)


def judge_stage(
    progress: Progress, facts: StageFacts, policy: RolloutPolicy, *, now: datetime
) -> StageVerdict:
    """Say whether the present stage has run long enough and on enough installations."""
    missing: list[str] = []
    started_at = progress.stage_started_at
    hours = (now - started_at).total_seconds() / 3600 if started_at else 0.0
    if hours < policy.min_hours:
        missing.append(f"{hours:.1f} of {policy.min_hours:g} hours in this stage")
    counts = {
        "treatment": facts.treatment_first_inferences,
        "control": facts.control_first_inferences,
    }
    missing += [
        f"{count} of {policy.min_installations} installations with a first inference in {arm}"
        for arm, count in counts.items()
        if count < policy.min_installations
    ]
    return StageVerdict(not missing, tuple(missing))


def _forbidden(state: State, verb: Verb) -> Conflict:
    if state in FINAL_STATES:
        message = (
            f"The rollout is {state.replace('_', ' ')}, which is final; start a new one instead."
        )
        return Conflict(message, code="rollout_finished")
    named = (one for one in allowed_verbs(state) if one not in _OF_THE_ENGINE)
    verbs = ", ".join(one.replace("_", " ") for one in named)
    message = f"A {state} rollout does not take {verb.replace('_', ' ')}; it takes {verbs}."
    return Conflict(message, code="verb_not_allowed", state=state, allowed=verbs)

"""Which release one installation gets while a rollout may run: a pure function.

It answers with every rule it tried, in order, what came of it and why. It reads no clock, keeps
no state and queries nothing: an installation that asks twice gets the same answer, and stays in
its arm for as long as the rollout runs, because coverage only grows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from server.domain.cohorts import (
    CONTROL_START,
    MAX_COVERAGE_BP,
    check_unit,
    cohort,
    holdout_seed,
    in_range,
    split_seed,
)
from server.domain.targeting import Rule, match
from server.domain.versions import parse_version

Arm = Literal["treatment", "control"]
StepOutcome = Literal["passed", "decided"]


@dataclass(frozen=True)
class Requirements:
    """What the candidate asks of an installation.

    ``versions`` holds the oldest version per attribute (``app_version``, ``runtime_version``,
    ``os_version``), ``operators`` the names of the operators in its file, ``labels`` the
    fingerprint of its list of labels; empty asks nothing.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    operators: frozenset[str] = frozenset()
    labels: str = ""


@dataclass(frozen=True)
class RolloutFacts:
    """A rollout that is under way. ``candidate`` is a release's label."""

    key: str
    nonce: str
    candidate: str
    coverage_bp: int
    is_paused: bool = False
    targeting: tuple[Rule, ...] = ()
    requirements: Requirements = Requirements()

    def __post_init__(self) -> None:
        if not 0 <= self.coverage_bp <= MAX_COVERAGE_BP:
            message = f"coverage_bp is {self.coverage_bp}; it takes 0 to {MAX_COVERAGE_BP}"
            raise ValueError(message)


@dataclass(frozen=True)
class ChannelState:
    """What a channel serves. Releases are named by their labels; None is the embedded model.

    ``overrides`` maps an installation's id to a release, ``golden`` is what the holdout of
    ``holdout_bp`` basis points stays on, ``revoked`` are releases that nobody may get any more.
    """

    model: str
    incumbent: str | None
    rollout: RolloutFacts | None = None
    is_killed: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)
    golden: str | None = None
    holdout_bp: int = 200
    revoked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Installation:
    """What an installation says of itself. ``enrolled`` is the echo ``<rollout>:<arm>``.

    ``operators`` and ``labels`` are None where the installation does not state them.
    """

    unit: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    enrolled: str = ""
    operators: frozenset[str] | None = None
    labels: str | None = None


class Step(NamedTuple):
    """One rule that was tried, whether it decided, and why; a poll makes a dozen of them."""

    rule: str
    outcome: StepOutcome
    reason: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """The answer. Only with an ``arm`` is the installation enrolled, and only then analysed."""

    release: str | None
    arm: Arm | None
    rollout: str | None
    reason: str
    steps: tuple[Step, ...]

    @property
    def enrolment(self) -> str:
        """The echo that the installation sends with its next poll, or nothing."""
        return f"{self.rollout}:{self.arm}" if self.arm else ""


class _Ruling(NamedTuple):
    reason: str
    is_final: bool = False
    release: str | None = None
    arm: Arm | None = None


# Says why the installation cannot run a release, by its label; nothing where it can.
Unfit = Callable[[str], str]
_Rule = Callable[[ChannelState, Installation, Unfit], _Ruling]


def _always_fit(_: str) -> str:
    return ""


def assign(
    channel: ChannelState, installation: Installation, unfit: Unfit = _always_fit
) -> Assignment:
    """Return what ``installation`` gets on ``channel``, with every rule that was tried.

    ``unfit`` says of a release why the installation has no use for any of its files.

    Raises:
        InvalidInput: ``missing_unit`` or ``invalid_unit``; no id is ever made up.

    """
    check_unit(installation.unit)
    steps: list[Step] = []
    for name, rule in _RULES:
        ruling = rule(channel, installation, unfit)
        steps.append(Step(name, "decided" if ruling.is_final else "passed", ruling.reason))
        if ruling.is_final:
            break
    rollout = channel.rollout.key if channel.rollout and ruling.arm else None
    return Assignment(ruling.release, ruling.arm, rollout, ruling.reason, tuple(steps))


def _kill(channel: ChannelState, _: Installation, __: Unfit) -> _Ruling:
    if channel.is_killed:
        return _incumbent(channel, "the channel was killed")
    return _Ruling("not killed")


def _override(channel: ChannelState, installation: Installation, unfit: Unfit) -> _Ruling:
    release = channel.overrides.get(installation.unit)
    if release is None:
        return _Ruling("no override for this installation")
    if release in channel.revoked:
        return _Ruling(f"its override {release} was revoked")
    if unmet := unfit(release):
        return _Ruling(f"its override {release} does not fit: {unmet}")
    return _Ruling(
        f"an override gives it {release}; it is not analysed", is_final=True, release=release
    )


def _compatibility(channel: ChannelState, installation: Installation, unfit: Unfit) -> _Ruling:
    if channel.rollout is None:
        return _Ruling("no candidate to fit")
    candidate = channel.rollout.candidate
    if unmet := _unmet(channel.rollout.requirements, installation) or unfit(candidate):
        return _incumbent(channel, f"{channel.rollout.candidate} does not fit: {unmet}")
    return _Ruling(f"{channel.rollout.candidate} fits")


def _holdout(channel: ChannelState, installation: Installation, unfit: Unfit) -> _Ruling:
    if channel.golden is None:
        return _Ruling("no golden version is chosen")
    if channel.golden in channel.revoked:
        return _Ruling(f"the golden version {channel.golden} was revoked")
    place = cohort(holdout_seed(channel.model), installation.unit)
    if in_range(place, 0, channel.holdout_bp):
        if unmet := unfit(channel.golden):
            return _Ruling(f"the golden version {channel.golden} does not fit: {unmet}")
        said = f"holdout cohort {place} of {channel.holdout_bp} stays on {channel.golden}"
        return _Ruling(said, is_final=True, release=channel.golden)
    return _Ruling(f"holdout cohort {place} is outside [0, {channel.holdout_bp})")


def _running(channel: ChannelState, _: Installation, __: Unfit) -> _Ruling:
    rollout = channel.rollout
    if rollout is None:
        return _incumbent(channel, "no rollout is running")
    if rollout.candidate in channel.revoked:
        return _incumbent(channel, f"the candidate {rollout.candidate} was revoked")
    return _Ruling(f"rollout {rollout.key} is {'paused' if rollout.is_paused else 'running'}")


def _enrolled(channel: ChannelState, installation: Installation, __: Unfit) -> _Ruling:
    if not installation.enrolled:
        return _Ruling("not enrolled so far")
    rollout = _rollout(channel)
    key, _, claimed = installation.enrolled.rpartition(":")
    if key != rollout.key:
        return _Ruling(f"enrolled in {key[:60]!r}, which is not open")
    place, arm = _split_of(rollout, installation)
    # The echo keeps an arm when targeting no longer matches; it never lets a client choose one.
    if arm is None or arm != claimed:
        return _Ruling(f"split cohort {place} is not in the {claimed[:60]!r} arm it names")
    return _arm(channel, arm, f"enrolled in the {arm} arm, split cohort {place}")


def _targeting(channel: ChannelState, installation: Installation, _: Unfit) -> _Ruling:
    rollout = _rollout(channel)
    if rollout.is_paused:
        return _incumbent(channel, "the rollout is paused and takes nobody new")
    matched = match(rollout.targeting, installation.attributes)
    if not matched.is_matched:
        return _incumbent(channel, matched.reason)
    return _Ruling(matched.reason)


def _split(channel: ChannelState, installation: Installation, _: Unfit) -> _Ruling:
    rollout = _rollout(channel)
    place, arm = _split_of(rollout, installation)
    treatment = f"[0, {rollout.coverage_bp})"
    control = f"[{CONTROL_START}, {CONTROL_START + rollout.coverage_bp})"
    if arm is None:
        return _incumbent(channel, f"split cohort {place} is outside {treatment} and {control}")
    where = treatment if arm == "treatment" else control
    return _arm(channel, arm, f"split cohort {place} is in {where}, the {arm} arm")


# Overrides and the holdout hold between rollouts too: whoever stays on the golden version would
# otherwise change models every time a rollout starts or ends.
_RULES: tuple[tuple[str, _Rule], ...] = (
    ("kill", _kill),
    ("override", _override),
    ("compatibility", _compatibility),
    ("holdout", _holdout),
    ("running", _running),
    ("enrolled", _enrolled),
    ("targeting", _targeting),
    ("split", _split),
)
RULES = tuple(name for name, _ in _RULES)


def _rollout(channel: ChannelState) -> RolloutFacts:
    if channel.rollout is None:
        message = "the rules after 'running' need a rollout"
        raise ValueError(message)
    return channel.rollout


def _incumbent(channel: ChannelState, reason: str) -> _Ruling:
    return _Ruling(reason, is_final=True, release=channel.incumbent)


def _arm(channel: ChannelState, arm: Arm, reason: str) -> _Ruling:
    release = _rollout(channel).candidate if arm == "treatment" else channel.incumbent
    return _Ruling(reason, is_final=True, release=release, arm=arm)


def _split_of(rollout: RolloutFacts, installation: Installation) -> tuple[int, Arm | None]:
    place = cohort(split_seed(rollout.key, rollout.nonce), installation.unit)
    if in_range(place, 0, rollout.coverage_bp):
        return place, "treatment"
    if in_range(place, CONTROL_START, CONTROL_START + rollout.coverage_bp):
        return place, "control"
    return place, None


def _unmet(needed: Requirements, installation: Installation) -> str:
    for name, oldest in needed.versions.items():
        stated = installation.attributes.get(name, "")
        version, least = parse_version(stated), parse_version(oldest)
        if not stated:
            return f"it needs {name} {oldest}, and {name} is not stated"
        if version is None or least is None or version < least:
            return f"it needs {name} {oldest}, this is {stated[:60]}"
    if needed.operators:
        if installation.operators is None:
            return "it needs certain operators, and the installation states none"
        missing = needed.operators - installation.operators
        if missing:
            return f"operators not known there: {', '.join(sorted(missing))}"
    if needed.labels and installation.labels not in (None, needed.labels):
        return "its list of labels is not the one the app was built for"
    return ""

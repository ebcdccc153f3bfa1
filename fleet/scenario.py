"""What a simulated fleet is like and what befalls it, read strictly from a TOML or JSON file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

Outcome = Literal["any", "promoted", "rolled_back", "not_promoted"]

_SUM_TOLERANCE = 1e-6


class ScenarioError(ValueError):
    """A scenario cannot be followed; the sentence names the member."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How a version does on a device.

    ``load_failure``, ``crash``, ``inference_error`` and ``slow`` are shares of installations that
    meet it whenever they use the version; ``success`` is the share of right answers; latencies
    are log-normal around ``latency_ms``, and ``limit_ms`` is what the app finds acceptable.
    """

    success: float = 0.9
    load_failure: float = 0.0
    crash: float = 0.0
    inference_error: float = 0.0
    slow: float = 0.0
    latency_ms: float = 25.0
    limit_ms: float = 200.0

    def __post_init__(self) -> None:
        for name in ("success", "load_failure", "crash", "inference_error", "slow"):
            _require(0 <= getattr(self, name) <= 1, f"{name} is a share, from 0 to 1")
        _require(0 < self.latency_ms < self.limit_ms, "latency_ms is above 0 and below limit_ms")


@dataclass(frozen=True, kw_only=True)
class DeviceClass:
    """A class of hardware: its share of the fleet, and how it differs.

    ``candidate`` holds members of Behaviour that hold here instead of the candidate's own.
    """

    name: str
    share: float
    platform: str = "android"
    os_version: str = "14"
    slowness: float = 1.0
    candidate: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(0 <= self.share <= 1, "share lies between 0 and 1")
        _require(self.slowness > 0, "slowness is above 0")
        known = {one.name for one in fields(Behaviour)}
        unknown = sorted(set(self.candidate) - known)
        _require(not unknown, f"candidate knows no {', '.join(unknown)}")


@dataclass(frozen=True, kw_only=True)
class Clock:
    """A share of devices whose clock is wrong by so many seconds (ahead of the time if above 0)."""

    share: float
    offset_s: float


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Who is out there.

    ``arrival_days``: first starts are spread over so many days. ``polls_per_day`` 0 leaves it to
    the server's wish. ``offline_per_day`` spells begin per device and day, and last
    ``offline_days`` on average. ``feedback_share`` of the installations answer once in
    ``feedback_every`` sessions, ``feedback_delay_days`` later on average. ``lost_answers`` is the
    share of event batches whose answer does not come back.
    """

    devices: int = 1000
    arrival_days: float = 1.0
    polls_per_day: float = 0.0
    sessions_per_day: float = 3.0
    predictions_per_session: int = 5
    offline_per_day: float = 0.0
    offline_days: float = 1.0
    feedback_share: float = 0.5
    feedback_every: float = 1.0
    feedback_delay_days: float = 0.0
    lost_answers: float = 0.0
    opted_out: float = 0.0
    app_versions: Mapping[str, float] = field(default_factory=lambda: {"1.0.0": 1.0})
    classes: tuple[DeviceClass, ...] = field(
        default_factory=lambda: (DeviceClass(name="phone", share=1.0),)
    )
    clocks: tuple[Clock, ...] = ()

    def __post_init__(self) -> None:
        _require(self.devices > 0, "devices is above 0")
        for name in ("arrival_days", "polls_per_day", "offline_per_day", "feedback_delay_days"):
            _require(getattr(self, name) >= 0, f"{name} is at least 0")
        for name in ("sessions_per_day", "offline_days", "feedback_every"):
            _require(getattr(self, name) > 0, f"{name} is above 0")
        for name in ("feedback_share", "lost_answers", "opted_out"):
            _require(0 <= getattr(self, name) <= 1, f"{name} is a share, from 0 to 1")
        _require(self.lost_answers < 1, "lost_answers is below 1, or nothing ever arrives")
        _require(self.predictions_per_session > 0, "predictions_per_session is above 0")
        _require_whole("app_versions", self.app_versions.values())
        _require_whole("the classes' shares", [one.share for one in self.classes])
        _require(sum(one.share for one in self.clocks) <= 1, "the clocks' shares are at most 1")


@dataclass(frozen=True, kw_only=True)
class Candidate(Behaviour):
    """The candidate: how it does, and on which day it is released (0: with the fleet's start)."""

    day: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What ought to come of it; a rollback where none was due is a false alarm."""

    outcome: Outcome = "any"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A fleet, two versions, and how time passes.

    ``day_s`` real seconds stand for one simulated day; 0 lets everything happen as fast as it
    can. It ends after ``days``, or ``days_after`` the rollout's end where that is sooner and not 0.
    ``policy`` holds members of the rollout's policy in simulated time: its hours and days are
    shortened alike, because the server's clock is the real one. What it leaves out is the
    server's own policy, which nothing shortens.
    """

    name: str
    days: float = 7.0
    days_after: float = 0.0
    day_s: float = 30.0
    fleet: Fleet = field(default_factory=Fleet)
    incumbent: Behaviour = field(default_factory=Behaviour)
    candidate: Candidate = field(default_factory=Candidate)
    policy: Mapping[str, object] = field(default_factory=dict)
    expect: Expectation = field(default_factory=Expectation)

    def __post_init__(self) -> None:
        _require(self.days > 0, "days is above 0")
        _require(self.days_after >= 0, "days_after is at least 0")
        _require(self.day_s >= 0, "day_s is at least 0")

    @property
    def seconds_per_second(self) -> float:
        """How many real seconds stand for a simulated one."""
        return self.day_s / 86400

    def scaled_policy(self) -> dict[str, object]:
        """Return the rollout's policy in the server's time, which passes as it does."""
        if not self.day_s:
            return dict(self.policy)
        shortened = {"min_hours", "max_data_age_hours", "deadline_days"}
        return {
            name: value * self.seconds_per_second
            if name in shortened and isinstance(value, int | float)
            else value
            for name, value in self.policy.items()
        }


def read_scenario(path: Path) -> Scenario:
    """Read a scenario file, TOML or by its name JSON. Raises ScenarioError, naming the member."""
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ScenarioError(f"{path} cannot be read: {error}") from error
    scenario: Scenario = _read(Scenario, document, path.name)
    return scenario


def _read(kind: Any, value: object, name: str) -> Any:
    """Return ``value`` as a dataclass or plain type; raise ScenarioError."""
    if is_dataclass(kind) and isinstance(kind, type):
        return _read_object(kind, value, name)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _checked(value, value in arguments, name, f"one of {', '.join(arguments)}")
    if origin is tuple:
        _checked(value, isinstance(value, list), name, "a list")
        return tuple(_read(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))  # type: ignore[arg-type, var-annotated]
    if origin is not None and issubclass(origin, Mapping):
        _checked(value, isinstance(value, dict), name, "a table")
        return {k: _read(arguments[1], v, f"{name}.{k}") for k, v in value.items()}  # type: ignore[attr-defined]
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_checked(value, is_number, name, "a number"))  # type: ignore[arg-type]
    if kind is object:
        return value
    return _checked(value, type(value) is kind, name, _WORDS[kind])


_WORDS = {int: "a whole number", str: "a text", bool: "true or false"}


def _read_object(kind: type, value: object, name: str) -> Any:
    _checked(value, isinstance(value, dict), name, "a table")
    given: dict[str, object] = value  # type: ignore[assignment]
    types = get_type_hints(kind)
    known = {one.name: one for one in fields(kind)}
    for member in given:
        if member not in known:
            raise ScenarioError(
                f"{name} has no member {member!r}; it takes {', '.join(sorted(known))}."
            )
    for one in known.values():
        if one.name not in given and one.default is MISSING and one.default_factory is MISSING:
            raise ScenarioError(f"{name} lacks {one.name!r}.")
    values = {m: _read(types[m], item, f"{name}.{m}") for m, item in given.items()}
    try:
        return kind(**values)
    except ScenarioError as error:
        raise ScenarioError(f"{name}: {error}") from error


def _checked(value: object, fits: bool, name: str, wanted: str) -> object:  # noqa: FBT001
    if not fits:
        raise ScenarioError(f"{name} is {value!r}; it takes {wanted}.")
    return value


def _require(holds: bool, rule: str) -> None:  # noqa: FBT001
    if not holds:
        raise ScenarioError(rule)


def _require_whole(what: str, shares: Any) -> None:
    total = sum(shares)
    _require(abs(total - 1) < _SUM_TOLERANCE, f"{what} add up to {total:g}, not to 1")

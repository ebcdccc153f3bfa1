"""What one installation should run: a pure function, which returns every step it took.

:mod:`server.domain.assignment` chooses the release, here a file of it is chosen that the
installation can run; the two meet in ``decide``, which is the only decision there is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from server.domain.assignment import (
    Arm,
    Assignment,
    ChannelState,
    Installation,
    RolloutFacts,
    Step,
    assign,
)
from server.domain.errors import InvalidInput
from server.domain.versions import parse_version

Kind = Literal["update", "rollback_to_embedded", "none"]
RUNTIMES = ("tflite", "coreml")
# What a device gets that states no preference: near-lossless first, then small, then exact; what
# loses more or needs a newer system only where there is nothing else. Never what is slow on most
# devices (int16x8) or not meant for them (edgetpu).
DEFAULT_ORDER = (
    "float16", "int8", "palette8", "float32",
    "linear8", "palette6", "dynamic_int8", "palette4", "pruned50", "clustered16", "joint",
    "pruned75", "filter_pruned50", "palette2", "palette1", "neuralnetwork",
)  # fmt: skip
_UNIT = re.compile(r"\A[!-~]{1,128}\Z")
_ATTRIBUTES = (
    "app_version", "device_class", "os_version", "platform", "runtime", "sdk_version",
)  # fmt: skip
# Requirements of a file that an installation has to meet by what it states of itself.
_STATED = ("app_version", "runtime_version", "sdk_version")


@dataclass(frozen=True)
class VariantFacts:
    """What the decision needs to know of a variant."""

    precision: str
    sha256: str
    requires: Mapping[str, object] = field(default_factory=dict)
    accuracy: float | None = None
    # Median milliseconds an inference, by class of devices, where enough runs were measured.
    latency_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReleaseFacts:
    """What the decision needs to know of a release."""

    label: str
    version: int
    reason: str
    variants: Mapping[str, Sequence[VariantFacts]]


@dataclass(frozen=True)
class ChannelFacts:
    """One channel: what it serves, what was revoked on it, and what it waits for meanwhile.

    ``release`` is the incumbent. ``others`` are the candidate of ``rollout``, the ``golden``
    release and those that ``overrides`` name, all by label. ``is_emptied`` says that everything
    was killed. With a ``tolerance`` (a share of accuracy) a device gets the fastest file measured
    on its class that loses no more against the most accurate one; without, the first it accepts.
    """

    release: ReleaseFacts | None
    revoked: tuple[str, ...] = ()
    hold: str = ""
    model: str = ""
    is_emptied: bool = False
    rollout: RolloutFacts | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    golden: str | None = None
    holdout_bp: int = 0
    tolerance: float | None = None
    others: Mapping[str, ReleaseFacts] = field(default_factory=dict)

    @cached_property
    def state(self) -> ChannelState:
        """The channel as the order of rules takes it."""
        return ChannelState(
            model=self.model,
            incumbent=self.release.label if self.release else None,
            rollout=self.rollout,
            is_killed=self.is_emptied,
            overrides=self.overrides,
            golden=self.golden,
            holdout_bp=self.holdout_bp,
        )

    def find(self, label: str | None) -> ReleaseFacts | None:
        """Return the release of that label."""
        if self.release is not None and self.release.label == label:
            return self.release
        return self.others.get(label) if label is not None else None


@dataclass(frozen=True)
class Poll:
    """One installation's question; ``attributes`` are what it states of itself."""

    device: str
    runtime: str
    channel: str = "production"
    accept: tuple[str, ...] = ()
    current: str = ""
    enrolled: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """The answer. ``release`` and ``variant`` are None where the installation gets nothing.

    With an ``arm`` it takes part in ``rollout``, also where its arm gets nothing.
    """

    release: ReleaseFacts | None
    variant: VariantFacts | None
    is_embedded_wanted: bool
    reason: str
    steps: tuple[Step, ...]
    rollout: str | None = None
    arm: Arm | None = None


def read_poll(query: Mapping[str, str]) -> Poll:
    """Read the query of an update check.

    Raises:
        InvalidInput: ``missing_device``, ``invalid_device`` or ``invalid_runtime``.

    """
    device = query.get("device", "")
    if not device:
        message = "The query names no device; a poll needs the installation's own id."
        raise InvalidInput(message, code="missing_device")
    if not _UNIT.match(device):
        message = "device takes 1 to 128 printable ASCII characters without spaces."
        raise InvalidInput(message, code="invalid_device")
    runtime = query.get("runtime", "")
    if runtime not in RUNTIMES:
        message = f"runtime is {runtime[:40]!r}; it takes {' or '.join(RUNTIMES)}."
        raise InvalidInput(message, code="invalid_runtime")
    return Poll(
        device=device,
        runtime=runtime,
        channel=query.get("channel") or "production",
        accept=tuple(word for word in query.get("accept", "").split(",") if word),
        current=query.get("current", ""),
        enrolled=query.get("enrolled", ""),
        attributes={name: query[name] for name in _ATTRIBUTES if name in query},
    )


def decide(channel: ChannelFacts | None, poll: Poll) -> Decision:
    """Return what ``poll``'s installation should run on ``channel``."""
    if channel is None:
        nowhere = Step("channel", "decided", f"no channel {poll.channel[:63]!r}")
        return Decision(
            None, None, is_embedded_wanted=False, reason="no such channel", steps=(nowhere,)
        )
    fitting = _Fitting(channel, poll)
    installation = Installation(poll.device, poll.attributes, poll.enrolled)
    assignment = assign(channel.state, installation, fitting.unfit)
    release = channel.find(assignment.release)
    if release is None:
        return _without_release(channel, assignment)
    choice = fitting.choose(release)
    steps = (*assignment.steps, *choice.steps)
    if choice.variant is None:
        reason = f"{release.label} has no {poll.runtime} variant this installation can run"
    else:
        reason = release.reason
    return Decision(
        release if choice.variant else None,
        choice.variant,
        is_embedded_wanted=False,
        reason=reason,
        steps=steps,
        rollout=assignment.rollout,
        arm=assignment.arm,
    )


def _without_release(channel: ChannelFacts, assignment: Assignment) -> Decision:
    """Return the answer where there is nothing to give: an empty channel, or its control arm."""
    if assignment.arm is not None:
        reason = assignment.reason
    elif channel.hold:
        reason = channel.hold
    else:
        reason = "every release was revoked" if channel.revoked else "nothing released yet"
    return Decision(
        None,
        None,
        is_embedded_wanted=_is_embedded_wanted(channel),
        reason=reason,
        steps=(*assignment.steps, Step("release", "decided", reason)),
        rollout=assignment.rollout,
        arm=assignment.arm,
    )


def _is_embedded_wanted(channel: ChannelFacts) -> bool:
    is_withdrawn = channel.is_emptied or (bool(channel.revoked) and channel.rollout is None)
    return is_withdrawn and not channel.hold


@dataclass(frozen=True)
class _Choice:
    variant: VariantFacts | None
    steps: tuple[Step, ...]


class _Fitting:
    """Which file of a release the installation can run; each release is looked at once."""

    def __init__(self, channel: ChannelFacts, poll: Poll) -> None:
        self._channel = channel
        self._poll = poll
        self._known: dict[str, _Choice] = {}

    def choose(self, release: ReleaseFacts) -> _Choice:
        known = self._known.get(release.label)
        if known is None:
            offered = release.variants.get(self._poll.runtime, ())
            known = _choose(offered, self._poll, self._channel.tolerance)
            self._known[release.label] = known
        return known

    def unfit(self, label: str) -> str:
        release = self._channel.find(label)
        if release is None:
            return "it is not offered yet"
        choice = self.choose(release)
        return "" if choice.variant else "; ".join(step.reason for step in choice.steps)


def _choose(offered: Sequence[VariantFacts], poll: Poll, tolerance: float | None = None) -> _Choice:
    steps: list[Step] = []
    by_precision = {variant.precision: variant for variant in offered}
    usable: list[VariantFacts] = []
    for precision in poll.accept or DEFAULT_ORDER:
        variant = by_precision.get(precision)
        if variant is None:
            reason = f"{precision[:20]}: not shipped for {poll.runtime}"
            steps.append(Step("variant", "passed", reason))
            continue
        missing = _unmet(variant.requires, poll.attributes)
        if missing:
            steps.append(Step("variant", "passed", f"{precision}: {missing}"))
            continue
        usable.append(variant)
        if tolerance is None:
            break
    if not usable:
        return _Choice(None, tuple(steps))
    fastest = None if tolerance is None else _fastest(usable, poll, tolerance)
    chosen = fastest or usable[0]
    reason = f"{chosen.precision}: chosen"
    if fastest is not None:
        device_class = poll.attributes["device_class"][:60]
        reason += (
            f", the fastest measured on {device_class}"
            f" ({fastest.latency_ms[poll.attributes['device_class']]:.3g} ms)"
        )
    steps.append(Step("variant", "decided", reason))
    return _Choice(chosen, tuple(steps))


def _fastest(usable: Sequence[VariantFacts], poll: Poll, tolerance: float) -> VariantFacts | None:
    """Return the fastest file measured on the poll's class of devices, or None without a choice.

    A file whose accuracy is not known does not take part: nobody could say what its speed costs.
    """
    device_class = poll.attributes.get("device_class", "")
    known = [variant for variant in usable if variant.accuracy is not None]
    best = max((variant.accuracy or 0.0 for variant in known), default=0.0)
    timed = [
        variant
        for variant in known
        if device_class in variant.latency_ms and (variant.accuracy or 0.0) >= best - tolerance
    ]
    return min(timed, key=lambda variant: variant.latency_ms[device_class], default=None)


def _unmet(requires: Mapping[str, object], stated: Mapping[str, str]) -> str:
    """Return which requirement the installation does not meet, or nothing.

    ``requires`` may hold the oldest system per platform, such as ``{"ios": "16.0"}``. An
    installation that does not state its system's version is taken at its word that it can run
    what it asks for. It may also hold the oldest ``app_version``, ``sdk_version`` or
    ``runtime_version``, which have to be stated.
    """
    if not requires:
        return ""
    for name in _STATED:
        oldest = requires.get(name)
        if isinstance(oldest, str) and (unmet := _too_old(name, stated.get(name, ""), oldest)):
            return unmet
    platform = stated.get("platform", "")
    needed = requires.get(platform.lower())
    version = parse_version(stated.get("os_version", ""))
    least = parse_version(needed) if isinstance(needed, str) else None
    if version is None or least is None or version >= least:
        return ""
    return f"needs {platform} {needed}, this is {stated['os_version'][:60]}"


def _too_old(name: str, stated: str, oldest: str) -> str:
    if not stated:
        return f"needs {name} {oldest}, and {name} is not stated"
    version, least = parse_version(stated), parse_version(oldest)
    if version is None or least is None or version < least:
        return f"needs {name} {oldest}, this is {stated[:60]}"
    return ""

"""What one installation should run: a pure function, which returns every step it took."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from server.domain.errors import InvalidInput

Kind = Literal["update", "rollback_to_embedded", "none"]
RUNTIMES = ("tflite", "coreml")
# What a device gets that states no preference: near-lossless first, then small, then exact.
DEFAULT_ORDER = ("float16", "int8", "palette8", "float32")
_UNIT = re.compile(r"\A[!-~]{1,128}\Z")
_VERSION = re.compile(r"\A\d+(\.\d+){0,3}\Z")


@dataclass(frozen=True)
class VariantFacts:
    """What the decision needs to know of a variant."""

    precision: str
    sha256: str
    requires: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class ReleaseFacts:
    """What the decision needs to know of a release."""

    label: str
    version: int
    reason: str
    variants: Mapping[str, Sequence[VariantFacts]]


@dataclass(frozen=True)
class ChannelFacts:
    """One channel: what it serves, what was revoked on it, and what it waits for meanwhile."""

    release: ReleaseFacts | None
    revoked: tuple[str, ...] = ()
    hold: str = ""


@dataclass(frozen=True)
class Poll:
    """One installation's question."""

    device: str
    runtime: str
    channel: str = "production"
    accept: tuple[str, ...] = ()
    platform: str = ""
    os_version: str = ""
    current: str = ""


@dataclass(frozen=True)
class Step:
    """One rule that was tried, and what came of it."""

    rule: str
    outcome: str


@dataclass(frozen=True)
class Decision:
    """The answer. ``release`` and ``variant`` are None where the installation gets nothing."""

    release: ReleaseFacts | None
    variant: VariantFacts | None
    is_embedded_wanted: bool
    reason: str
    steps: tuple[Step, ...]


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
        platform=query.get("platform", ""),
        os_version=query.get("os_version", ""),
        current=query.get("current", ""),
    )


def decide(channel: ChannelFacts | None, poll: Poll) -> Decision:
    """Return what ``poll``'s installation should run on ``channel``."""
    steps: list[Step] = []
    if channel is None:
        steps.append(Step("channel", f"no channel {poll.channel[:63]!r}"))
        return Decision(
            None, None, is_embedded_wanted=False, reason="no such channel", steps=tuple(steps)
        )
    steps.append(Step("kill", f"{len(channel.revoked)} files revoked"))
    release = channel.release
    if release is None:
        reason = "every release was revoked" if channel.revoked else "nothing released yet"
        steps.append(Step("release", channel.hold or "nothing released"))
        return Decision(
            None,
            None,
            is_embedded_wanted=bool(channel.revoked) and not channel.hold,
            reason=channel.hold or reason,
            steps=tuple(steps),
        )
    steps.append(Step("release", f"{release.label} (version {release.version})"))
    offered = release.variants.get(poll.runtime, ())
    variant = _choose(offered, poll, steps)
    if variant is None:
        reason = f"{release.label} has no {poll.runtime} variant this installation can run"
        return Decision(None, None, is_embedded_wanted=False, reason=reason, steps=tuple(steps))
    return Decision(
        release, variant, is_embedded_wanted=False, reason=release.reason, steps=tuple(steps)
    )


def _choose(offered: Sequence[VariantFacts], poll: Poll, steps: list[Step]) -> VariantFacts | None:
    order = poll.accept or DEFAULT_ORDER
    by_precision = {variant.precision: variant for variant in offered}
    for precision in order:
        variant = by_precision.get(precision)
        if variant is None:
            steps.append(Step("variant", f"{precision[:20]}: not shipped for {poll.runtime}"))
            continue
        missing = _unmet(variant.requires, poll)
        if missing:
            steps.append(Step("compatibility", f"{precision}: {missing}"))
            continue
        steps.append(Step("variant", f"{precision}: chosen"))
        return variant
    return None


def _unmet(requires: Mapping[str, object], poll: Poll) -> str:
    """Return which requirement the installation does not meet, or nothing.

    ``requires`` may hold the oldest system per platform, such as ``{"ios": "16.0"}``. An
    installation that does not state its system's version is taken at its word that it can run
    what it asks for.
    """
    needed = requires.get(poll.platform.lower())
    if not isinstance(needed, str) or not _VERSION.match(poll.os_version):
        return ""
    if _numbers(poll.os_version) >= _numbers(needed):
        return ""
    return f"needs {poll.platform} {needed}, this is {poll.os_version}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))

"""Compares what installations recorded with what the server counted."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fleet.report import Run
    from fleet.staff import Operator

_LOOK_AGAIN_S = 1.0
# Counted as installations; the others are sums.
_COUNTED = (
    "assigned", "downloaded", "activated", "first_inference", "confirmed", "failed", "rolled_back",
    "heartbeat",
)  # fmt: skip
_NOT_MODIFIED = {("poll", "304")}


def check_run(
    run: Run,
    operator: Operator,
    channel: str,
    before: Mapping[str, Mapping[str, Any]],
    *,
    counted_within_s: float,
) -> None:
    """Add to ``run.checks`` whether events were counted once each, and rest was answered by 304.

    ``before`` is what the server had counted of each release when the run began.
    """
    _check_receipts(run)
    _check_rest(run)
    expected = expect(run)
    deadline = time.monotonic() + counted_within_s
    while True:
        differences = [
            difference
            for label, wanted in sorted(expected.items())
            for difference in _differences(
                label, wanted, before.get(label, {}), operator.telemetry(run.model, channel, label)
            )
        ]
        if not differences or time.monotonic() > deadline:
            break
        time.sleep(_LOOK_AGAIN_S)
    run.checks["the server counted every event once"] = not differences
    run.findings += differences


def expect(run: Run) -> dict[str, dict[str, int]]:
    """Return by label how many installations recorded what, and how many answers were given."""
    wanted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for share in run.shares:
        for (label, kind), devices in share.ledger.devices.items():
            if kind in _COUNTED:
                wanted[label][kind] += len(devices)
        for label, count in share.ledger.answers.items():
            wanted[label]["answers"] += count
            wanted[label]["right answers"] += share.ledger.right_answers[label]
    return {label: dict(counts) for label, counts in wanted.items() if label}


def count(telemetry: Mapping[str, Any]) -> dict[str, int]:
    """Return the server's counts of a release under the same names."""
    if not telemetry:
        return {}
    feedback = telemetry["feedback"]
    sums = {"answers": feedback["answers"], "right answers": feedback["successes"]}
    return {**telemetry["by_type"], **sums}


def _differences(
    label: str,
    wanted: Mapping[str, int],
    before: Mapping[str, Any],
    now: Mapping[str, Any],
) -> list[str]:
    had, has = count(before), count(now)
    return [
        f"{label} {kind}: {number} recorded, {has.get(kind, 0) - had.get(kind, 0)} counted"
        for kind, number in sorted(wanted.items())
        if has.get(kind, 0) - had.get(kind, 0) != number
    ]


def _check_receipts(run: Run) -> None:
    """Every event recorded was accepted once; what was sent again was known."""
    recorded = sum(share.ledger.recorded for share in run.shares)
    accepted = sum(share.traffic.accepted for share in run.shares)
    rejected = sum(sum(share.traffic.rejected.values()) for share in run.shares)
    waiting = sum(share.waiting for share in run.shares)
    run.checks["every event was accepted once, none is left"] = (
        accepted == recorded and not rejected and not waiting
    )
    if accepted != recorded or rejected or waiting:
        run.findings.append(
            f"{recorded} recorded, {accepted} accepted, {rejected} rejected, {waiting} waiting"
        )


def _check_rest(run: Run) -> None:
    """Who has nothing new and a clock that is right is answered by 304."""
    answers: Counter[tuple[str, str]] = Counter()
    for share in run.shares:
        answers.update(share.check_traffic.answers)
    polls = {key: number for key, number in answers.items() if key[0] == "poll"}
    held = sum(not word.has_right_clock for share in run.shares for word in share.last_words)
    others = sum(number for key, number in polls.items() if key not in _NOT_MODIFIED)
    name = "304 for everyone who has nothing new"
    run.checks[name] = bool(polls) and others <= held
    if others > held:
        shown = ", ".join(f"{outcome}: {number}" for (_, outcome), number in sorted(polls.items()))
        run.findings.append(f"the last polls were answered {shown}")

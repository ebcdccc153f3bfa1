"""What a simulation showed, as JSON and as a table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from array import array

    from fleet.driver import Share
    from fleet.network import Traffic
    from fleet.scenario import Scenario

_CURVE_POINTS = 20
_KINDS = ("poll", "metadata", "artifact", "events")


@dataclass
class Happening:
    """One thing that happened on the server, on a simulated day."""

    day: float
    what: str


@dataclass
class Run:
    """A whole simulation: what the processes brought back, and what the operator saw."""

    scenario: Scenario
    seed: str
    model: str
    candidate: int
    shares: Sequence[Share]
    last_day: float
    happenings: list[Happening] = field(default_factory=list)
    rollout: Mapping[str, Any] | None = None
    checks: dict[str, bool] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


def describe(run: Run) -> dict[str, Any]:
    """Return the report as JSON values; times are in simulated days unless they say ``_s``."""
    from fleet.network import Traffic

    traffic = Traffic()
    for share in run.shares:
        traffic.merge(share.traffic)
    busy_s = max((share.busy_s for share in run.shares), default=0.0)
    lags = sorted(lag for share in run.shares for lag in share.lag_s)
    errors: Counter[str] = Counter()
    for share in run.shares:
        errors.update(share.errors)
    return {
        "scenario": asdict(run.scenario),
        "seed": run.seed,
        "model": run.model,
        "candidate": run.candidate or None,
        "rollout": _rollout(run),
        "timeline": [asdict(one) for one in run.happenings],
        "last_day": run.last_day,
        "exposed": _exposed(run),
        "remaining": _remaining(run),
        "adoption": _adoption(run),
        "events": {
            "recorded": sum(share.ledger.recorded for share in run.shares),
            "accepted": traffic.accepted,
            "duplicates": traffic.duplicates,
            "rejected": dict(traffic.rejected),
            "lost_answers": traffic.lost_answers,
            "waiting": sum(share.waiting for share in run.shares),
        },
        "load": {
            "busy_s": round(busy_s, 2),
            "installations_per_s": _rate(run.scenario.fleet.devices, busy_s),
            "received_bytes": traffic.received_bytes,
            "late_s": {"p50": _quantile(lags, 0.5), "p99": _quantile(lags, 0.99)},
            "requests": _requests(traffic, max((one.whole_s for one in run.shares), default=0.0)),
        },
        "errors": dict(errors.most_common()),
        "checks": run.checks,
        "findings": run.findings,
    }


def _rollout(run: Run) -> dict[str, Any] | None:
    if run.rollout is None:
        return None
    state = str(run.rollout["state"])
    expected = run.scenario.expect.outcome
    return {
        "id": run.rollout["id"],
        "state": state,
        "outcome": run.rollout.get("outcome", ""),
        "expected": expected,
        "as_expected": {
            "any": True,
            "promoted": state == "promoted",
            "rolled_back": state == "rolled_back",
            "not_promoted": state != "promoted",
        }[expected],
        "false_alarm": expected == "promoted" and state == "rolled_back",
    }


def _exposed(run: Run) -> int:
    """Count the installations that ever used the candidate."""
    return sum(
        any(version == run.candidate for _, _, version, _ in releases)
        for share in run.shares
        for _, releases in share.releases
    )


def _remaining(run: Run) -> int:
    """Count the installations that used the candidate at the end."""
    return sum(
        bool(releases) and releases[-1][2] == run.candidate
        for share in run.shares
        for _, releases in share.releases
    )


def _adoption(run: Run) -> list[dict[str, Any]]:
    """Return how many installations use which release, at equal steps of time."""
    points = [run.last_day * i / _CURVE_POINTS for i in range(_CURVE_POINTS + 1)]
    curve: list[defaultdict[str, int]] = [defaultdict(int) for _ in points]
    for share in run.shares:
        for _, releases in share.releases:
            for index, day in enumerate(points):
                before = [label for at, label, _, _ in releases if at <= day]
                curve[index][before[-1] if before else "none"] += 1
    return [
        {"day": round(day, 3), "installations": dict(sorted(counts.items()))}
        for day, counts in zip(points, curve, strict=True)
    ]


def _requests(traffic: Traffic, whole_s: float) -> dict[str, Any]:
    shown = {}
    for kind in _KINDS:
        seconds = sorted(traffic.seconds.get(kind, ()))
        shown[kind] = {
            "count": len(seconds),
            "per_s": _rate(len(seconds), whole_s),
            "p50_ms": _milliseconds(seconds, 0.5),
            "p99_ms": _milliseconds(seconds, 0.99),
            "answers": {
                outcome: count
                for (k, outcome), count in sorted(traffic.answers.items())
                if k == kind
            },
        }
    return shown


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 1) if seconds else 0.0


def _quantile(ordered: Sequence[float] | array[float], share: float) -> float:
    return round(ordered[int(share * (len(ordered) - 1))], 3) if ordered else 0.0


def _milliseconds(ordered: Sequence[float], share: float) -> float:
    return round(_quantile(ordered, share) * 1000, 1) if ordered else 0.0


def render(report: Mapping[str, Any]) -> str:
    """Return the report as text for a terminal."""
    lines = [*_summary(report), *_timeline(report), *_table(report), *_verdicts(report)]
    return "\n".join(lines)


def _summary(report: Mapping[str, Any]) -> Iterable[str]:
    scenario, events, load = report["scenario"], report["events"], report["load"]
    devices = scenario["fleet"]["devices"]
    yield f"Scenario '{scenario['name']}': {devices} installations, {report['last_day']:g} days"
    candidate = report["candidate"]
    if candidate:
        yield (
            f"  version {candidate} was used by {report['exposed']} installations,"
            f" by {report['remaining']} at the end"
        )
    rollout = report["rollout"]
    if rollout:
        word = "as expected" if rollout["as_expected"] else f"expected: {rollout['expected']}"
        yield f"  rollout {rollout['id']}: {rollout['state']} ({word}). {rollout['outcome']}"
        if rollout["false_alarm"]:
            yield "  FALSE ALARM: an equal candidate was rolled back"
    yield (
        f"  events: {events['recorded']} recorded, {events['accepted']} accepted,"
        f" {events['duplicates']} duplicates, {sum(events['rejected'].values())} rejected,"
        f" {events['waiting']} waiting; {events['lost_answers']} answers were lost on purpose"
    )
    yield (
        f"  {load['busy_s']:g} s, {load['installations_per_s']:g} installations/s, calls came"
        f" {load['late_s']['p50']:g} s late (p99 {load['late_s']['p99']:g} s)"
    )


def _timeline(report: Mapping[str, Any]) -> Iterable[str]:
    for one in report["timeline"]:
        yield f"  day {one['day']:6.2f}  {one['what']}"


def _table(report: Mapping[str, Any]) -> Iterable[str]:
    yield f"  {'requests':<10}{'count':>9}{'per s':>9}{'p50 ms':>9}{'p99 ms':>9}  answers"
    for kind, row in report["load"]["requests"].items():
        answers = ", ".join(f"{code}: {count}" for code, count in row["answers"].items())
        yield (
            f"  {kind:<10}{row['count']:>9}{row['per_s']:>9g}{row['p50_ms']:>9g}"
            f"{row['p99_ms']:>9g}  {answers}"
        )


def _verdicts(report: Mapping[str, Any]) -> Iterable[str]:
    if report["errors"]:
        shown = ", ".join(f"{code} {count}" for code, count in report["errors"].items())
        yield f"  on devices: {shown}"
    for what, holds in report["checks"].items():
        yield f"  {'✓' if holds else '✗'} {what}"
    for finding in report["findings"][:_CURVE_POINTS]:
        yield f"    {finding}"

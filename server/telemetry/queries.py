"""Reads of what devices reported: for the rollout engine, for staff, for charts.

Everything is counted in distinct installations and answered in a fixed number of queries,
whatever the fleet's size. docs/telemetry.md says what the figures can and cannot see.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

from django.conf import settings
from django.db import connection
from django.db.models import Case, Count, IntegerField, Max, Min, Q, QuerySet, Sum, Value, When
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from server.domain.guardrails import StageEvents
from server.domain.sequences import ArmFeedback
from server.registry.models import Model, ModelVersion
from server.telemetry import histograms
from server.telemetry.counting import SILENT, SLOW
from server.telemetry.models import (
    DailySummary,
    Drain,
    Event,
    FirstFact,
    FleetDay,
    Installation,
    LatencyCount,
    ReleaseArm,
)

# Who was not heard of for longer is out of the field: the app is gone, or the phone.
IN_THE_FIELD: Final = timedelta(days=30)
# The SDK sends a heartbeat once a day, with a poll.
HEARTBEAT: Final = timedelta(hours=24)
_MISSED_HEARTBEATS: Final = 2
_MISSED_POLLS: Final = 4
# Fewer timed inferences than this say little of a class of devices.
FEWEST_BENCHMARKED: Final = 20
_Type = Event.Type


def silent_after() -> timedelta:
    """Return how long an installation may say nothing before it counts as silent.

    Two heartbeats and four polls missed: 3 days by default. Polls themselves are not stored.
    """
    poll = timedelta(seconds=settings.POLL_INTERVAL_S)
    return _MISSED_HEARTBEATS * HEARTBEAT + _MISSED_POLLS * poll


def device_count(model: Model, label: str) -> int:
    """Return how many different devices reported anything about a release."""
    facts = FirstFact.objects.filter(release_arm__model=model, release_arm__label=label)
    return facts.order_by().values("device").distinct().count()


# For the rollout engine


@dataclass(frozen=True)
class StageFacts:
    """What the installations reported that were first assigned in one stage, in one arm.

    All are counts of distinct installations over the whole rollout so far, but for ``feedback``,
    which sums their answers as the delta method needs them. ``run_failures`` are crashes or
    inference errors; ``tried`` activated it or could not load it, or both; ``slow`` a latency over
    the limit; ``silent`` who was once found silent.
    ``last_event_at`` is when the server last heard of any of them.
    """

    assigned: int = 0
    activated: int = 0
    first_inference: int = 0
    confirmed: int = 0
    rolled_back: int = 0
    load_failures: int = 0
    crashes: int = 0
    inference_errors: int = 0
    run_failures: int = 0
    tried: int = 0
    slow: int = 0
    silent: int = 0
    feedback: ArmFeedback = field(default_factory=ArmFeedback)
    last_event_at: datetime | None = None


_COUNTED: Final[Mapping[str, str]] = {
    "assigned": "type = 'assigned'",
    "activated": "type = 'activated'",
    "first_inference": "type = 'first_inference'",
    "confirmed": "type = 'confirmed'",
    "rolled_back": "type = 'rolled_back'",
    "load_failures": "type = 'failed' AND code = 'load_failure'",
    "crashes": "type = 'failed' AND code = 'crash'",
    "inference_errors": "type = 'failed' AND code = 'inference_error'",
    "run_failures": "type = 'failed' AND code IN ('crash', 'inference_error')",
    "tried": "type = 'activated' OR (type = 'failed' AND code = 'load_failure')",
    "slow": f"type = '{SLOW}'",
    "silent": f"type = '{SILENT}'",
}


def arm_facts(rollout: str, stages: Sequence[datetime]) -> dict[str, list[StageFacts]]:
    """Return, per arm, what was reported of a rollout in each of its stages.

    ``stages`` are the times at which the stages so far were entered, in order. An installation
    belongs to the stage in which it was first assigned (before the first: to the first), and
    stays there with all it reports later. Where its assignment was lost on the way, its first
    fact stands for that, without counting as ``assigned``. Two queries.

    Raises:
        ValueError: ``stages`` is empty or not in order.

    """
    if not stages or list(stages) != sorted(stages):
        raise ValueError("stages are times in order, at least one")
    facts: dict[str, list[StageFacts]] = {
        arm: [StageFacts() for _ in stages] for arm in ("treatment", "control")
    }
    feedback = _staged_feedback(rollout, stages)
    for row in _staged_counts(rollout, stages):
        arm, stage, last, *counts = row
        facts.setdefault(arm, [StageFacts() for _ in stages])[stage] = StageFacts(
            **dict(zip(_COUNTED, counts, strict=True)),
            feedback=feedback.get((arm, stage), ArmFeedback()),
            last_event_at=_moment(last),
        )
    return facts


def _staged_counts(rollout: str, stages: Sequence[datetime]) -> list[tuple[Any, ...]]:
    flags = ", ".join(
        f"MAX(CASE WHEN {condition} THEN 1 ELSE 0 END) AS {name}"
        for name, condition in _COUNTED.items()
    )
    sums = ", ".join(f"SUM(m.{name})" for name in _COUNTED)
    stage, values = _stage_of("m.joined_at", stages)
    # First one row per installation, then one per stage: no installation counts twice.
    statement = f"""
        SELECT m.arm, {stage}, MAX(i.heard_at), {sums}
        FROM (
            SELECT a.model_id, a.arm, f.device, {_JOINED} AS joined_at, {flags}
            FROM telemetry_firstfact f
            JOIN telemetry_releasearm a ON a.id = f.release_arm_id
            WHERE a.rollout = %s
            GROUP BY a.model_id, a.arm, f.device
        ) m
        LEFT JOIN telemetry_installation i ON i.model_id = m.model_id AND i.device = m.device
        GROUP BY 1, 2
    """  # noqa: S608 - all parts are our own
    return _rows(statement, [*values, rollout])


_JOINED: Final = (
    "COALESCE(MIN(CASE WHEN f.type = 'assigned' THEN f.first_occurred_at END),"
    " MIN(f.first_occurred_at))"
)


def _stage_of(column: str, stages: Sequence[datetime]) -> tuple[str, list[Any]]:
    """Return the SQL expression of the stage in which a time lies, with its values."""
    if len(stages) == 1:
        return "0", []
    cases = "".join(f" WHEN {column} < %s THEN {index}" for index in range(len(stages) - 1))
    adapt = connection.ops.adapt_datetimefield_value
    return f"CASE{cases} ELSE {len(stages) - 1} END", [adapt(at) for at in stages[1:]]


_SUMS: Final = (
    "COUNT(*), SUM(t.answers), SUM(t.successes), SUM(t.answers * t.answers),"
    " SUM(t.successes * t.successes), SUM(t.successes * t.answers),"
    " SUM(CASE WHEN t.successes > 0 THEN 1 ELSE 0 END),"
    " SUM(CASE WHEN t.successes < t.answers THEN 1 ELSE 0 END)"
)


def _staged_feedback(
    rollout: str, stages: Sequence[datetime]
) -> dict[tuple[str, int], ArmFeedback]:
    stage, values = _stage_of("m.joined_at", stages)
    statement = f"""
        SELECT t.arm, {stage}, {_SUMS}
        FROM (
            SELECT a.arm, b.device,
                   SUM(CAST(b.answers AS BIGINT)) AS answers,
                   SUM(CAST(b.successes AS BIGINT)) AS successes
            FROM telemetry_feedbacktotal b
            JOIN telemetry_releasearm a ON a.id = b.release_arm_id
            WHERE a.rollout = %s
            GROUP BY a.arm, b.device
        ) t
        LEFT JOIN (
            SELECT a.arm, f.device, {_JOINED} AS joined_at
            FROM telemetry_firstfact f
            JOIN telemetry_releasearm a ON a.id = f.release_arm_id
            WHERE a.rollout = %s
            GROUP BY a.arm, f.device
        ) m ON m.arm = t.arm AND m.device = t.device
        GROUP BY 1, 2
    """  # noqa: S608 - all parts are our own
    found = _rows(statement, [*values, rollout, rollout])
    return {(arm, stage): _feedback(sums) for arm, stage, *sums in found}


def _feedback(sums: Sequence[Any]) -> ArmFeedback:
    return ArmFeedback(*(int(value or 0) for value in sums))


def guardrail_events(
    facts: Mapping[str, Sequence[StageFacts]],
) -> dict[str, tuple[StageEvents, ...]]:
    """Return ``arm_facts`` as the guardrails' e-processes take them, by guardrail.

    Each stage's installations are at risk of events from then on, in whichever stage these come.
    """
    pairs = list(zip(facts["treatment"], facts["control"], strict=True))
    return {
        name: tuple(
            StageEvents(
                treatment_events=getattr(treatment, member),
                control_events=getattr(control, member),
                treatment_at_risk=treatment.assigned,
                control_at_risk=control.assigned,
            )
            for treatment, control in pairs
        )
        for name, member in _GUARDRAILS.items()
    }


_GUARDRAILS: Final[Mapping[str, str]] = {
    "load_failure": "load_failures",
    "crash": "crashes",
    "inference_error": "inference_errors",
    "latency": "slow",
    "silence": "silent",
}


def total_feedback(stages: Sequence[StageFacts]) -> ArmFeedback:
    """Return the feedback of all stages of an arm; no installation is in two of them."""
    names = ArmFeedback.__dataclass_fields__
    return ArmFeedback(
        **{name: sum(getattr(stage.feedback, name) for stage in stages) for name in names}
    )


def in_both_arms(rollout: str) -> int:
    """Return how many installations reported from both arms of a rollout. One query."""
    facts = FirstFact.objects.filter(release_arm__rollout=rollout).order_by()
    arms = facts.values("device").annotate(arms=Count("release_arm__arm", distinct=True))
    return arms.filter(arms__gt=1).count()


def counted_until() -> datetime | None:
    """Return the time until which events received are counted; None before the first count."""
    drain = Drain.objects.filter(pk=1).first()
    return drain.drained_at if drain else None


# One release


@dataclass(frozen=True)
class LatencyFacts:
    """Latencies of one class of hardware; quantiles are at most 19 % above the true ones."""

    device_class: str
    count: int
    p50_ms: float | None
    p95_ms: float | None
    sha256: str = ""


@dataclass(frozen=True)
class DayFacts:
    """How many installations first reported what on a day; keys are types, ``failed:crash``."""

    day: date
    arm: str
    rollout: str
    installations: Mapping[str, int]


@dataclass(frozen=True)
class ReleaseFacts:
    """What was reported of a release on a channel by all installations, enrolled or not."""

    model: str
    channel: str
    label: str
    installations: int
    by_type: Mapping[str, int]
    failures: Mapping[str, int]
    feedback: ArmFeedback
    latencies: Sequence[LatencyFacts]
    benchmarks: Sequence[LatencyFacts]
    days: Sequence[DayFacts]
    first_event_at: datetime | None
    last_fact_at: datetime | None


def release_facts(model: str, channel: str, label: str, *, days: int = 60) -> ReleaseFacts:
    """Return what was reported of a release; ``model`` is its slug. Five queries.

    ``days`` bounds the daily figures, not the totals. Daily figures lag by up to a minute.
    """
    arms = ReleaseArm.objects.filter(model__slug=model, channel=channel, label=label)
    keys = {arm.pk: arm for arm in arms}
    facts = FirstFact.objects.filter(release_arm__in=keys).order_by()
    by_kind = facts.values("type", "code").annotate(
        count=Count("device", distinct=True),
        first=Min("first_occurred_at"),
        last=Max("first_occurred_at"),
    )
    rows = list(by_kind)
    whole = facts.aggregate(
        all=Count("device", distinct=True),
        failed=Count("device", distinct=True, filter=Q(type=_Type.FAILED)),
    )
    by_type = {row["type"]: row["count"] for row in rows if row["type"] != _Type.FAILED}
    if whole["failed"]:
        by_type[_Type.FAILED.value] = whole["failed"]
    timed = _latencies(keys)
    return ReleaseFacts(
        model=model,
        channel=channel,
        label=label,
        installations=whole["all"],
        by_type=by_type,
        failures={row["code"]: row["count"] for row in rows if row["type"] == _Type.FAILED},
        feedback=_release_feedback(list(keys)),
        latencies=timed[LatencyCount.Kind.INFERENCE.value],
        benchmarks=timed[LatencyCount.Kind.BENCHMARK.value],
        days=_days(keys, since=timezone.now().date() - timedelta(days=days)),
        first_event_at=min((row["first"] for row in rows), default=None),
        last_fact_at=max((row["last"] for row in rows), default=None),
    )


def benchmark_medians(files: Collection[str]) -> dict[str, dict[str, float]]:
    """Return median milliseconds of an inference by file and class of devices, one query in all.

    Only what ``FEWEST_BENCHMARKED`` inferences or more were measured for is named.
    """
    rows = (
        LatencyCount.objects.filter(kind=LatencyCount.Kind.BENCHMARK, sha256__in=files)
        .exclude(device_class="")
        .order_by()
        .values_list("sha256", "device_class", "bucket")
        .annotate(Sum("count"))
    )
    counts: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for sha256, device_class, bucket, count in rows:
        counts[sha256, device_class][bucket] = int(count)
    medians: dict[str, dict[str, float]] = defaultdict(dict)
    for (sha256, device_class), buckets in counts.items():
        median = histograms.quantile_ms(buckets, 0.5)
        if median is not None and sum(buckets.values()) >= FEWEST_BENCHMARKED:
            medians[sha256][device_class] = median
    return dict(medians)


def _release_feedback(arms: Sequence[int]) -> ArmFeedback:
    if not arms:
        return ArmFeedback()
    places = ", ".join(["%s"] * len(arms))
    statement = f"""
        SELECT {_SUMS} FROM (
            SELECT device, SUM(CAST(answers AS BIGINT)) AS answers,
                   SUM(CAST(successes AS BIGINT)) AS successes
            FROM telemetry_feedbacktotal WHERE release_arm_id IN ({places}) GROUP BY device
        ) t
    """  # noqa: S608 - places alone
    return _feedback(_rows(statement, arms)[0])


def _latencies(arms: Mapping[int, ReleaseArm]) -> dict[str, list[LatencyFacts]]:
    rows = (
        LatencyCount.objects.filter(release_arm__in=arms)
        .order_by()
        .values_list("kind", "device_class", "sha256", "bucket")
        .annotate(Sum("count"))
    )
    counts: dict[tuple[str, str, str], dict[int, int]] = defaultdict(dict)
    for kind, device_class, sha256, bucket, count in rows:
        counts[kind, device_class, sha256][bucket] = int(count)
    found: dict[str, list[LatencyFacts]] = {kind: [] for kind in LatencyCount.Kind.values}
    for (kind, device_class, sha256), buckets in sorted(counts.items()):
        found[kind].append(
            LatencyFacts(
                device_class,
                sum(buckets.values()),
                histograms.quantile_ms(buckets, 0.5),
                histograms.quantile_ms(buckets, 0.95),
                sha256,
            )
        )
    return found


def _days(arms: Mapping[int, ReleaseArm], *, since: date) -> list[DayFacts]:
    rows = DailySummary.objects.filter(
        release_arm__in=arms, day__gte=since, installations__gt=0
    ).values_list("day", "release_arm", "type", "code", "installations")
    found: dict[tuple[date, int], dict[str, int]] = defaultdict(dict)
    for day, arm, kind, code, count in rows:
        found[day, arm][f"{kind}:{code}" if code else kind] = count
    return [
        DayFacts(day, arms[arm].arm, arms[arm].rollout, counts)
        for (day, arm), counts in sorted(found.items())
    ]


def facts_of_day(summary: DailySummary) -> QuerySet[FirstFact]:
    """Return the facts that a daily summary counts."""
    begin = datetime.combine(summary.day, time(), UTC)
    return FirstFact.objects.filter(
        release_arm=summary.release_arm_id,
        type=summary.type,
        code=summary.code,
        first_occurred_at__gte=begin,
        first_occurred_at__lt=begin + timedelta(days=1),
    )


# The fleet


@dataclass(frozen=True)
class VersionShare:
    """One release as the field runs it; an empty ``label`` is the model embedded in the app."""

    channel: str
    label: str
    version: int | None
    installations: int
    share: float
    is_revoked: bool


@dataclass(frozen=True)
class Fleet:
    """What the installations of a model run, by the newest event of each that says so.

    ``installations`` were heard of within ``days``. ``silent`` of them have sent nothing for
    longer than ``silent_after_s``. ``revoked`` still run a version that was recalled or killed.
    ``unknown`` have not said yet what they run.
    """

    model: str
    days: int
    installations: int
    unknown: int
    silent: int
    silent_after_s: int
    revoked: int
    revoked_share: float
    versions: Sequence[VersionShare]
    last_event_at: datetime | None


def fleet(model: Model, *, days: int = IN_THE_FIELD.days, now: datetime | None = None) -> Fleet:
    """Return the fleet of a model among the installations heard of within ``days``. 3 queries."""
    now = now or timezone.now()
    quiet_since = now - silent_after()
    rows = list(
        Installation.objects.filter(model=model, heard_at__gt=now - timedelta(days=days))
        .order_by()
        .annotate(
            knows=Case(
                When(running_event="", then=Value(0)), default=Value(1), output_field=IntegerField()
            )
        )
        .values("channel", "label", "knows")
        .annotate(
            count=Count("pk"),
            silent=Count("pk", filter=Q(heard_at__lt=quiet_since)),
            last=Max("heard_at"),
            version=Max("version_number"),
        )
    )
    released = _released(model)
    versions = _shares(rows, released)
    installations = sum(row["count"] for row in rows)
    revoked = sum(share.installations for share in versions if share.is_revoked)
    return Fleet(
        model=model.slug,
        days=days,
        installations=installations,
        unknown=sum(row["count"] for row in rows if not row["knows"]),
        silent=sum(row["silent"] for row in rows),
        silent_after_s=int(silent_after().total_seconds()),
        revoked=revoked,
        revoked_share=revoked / installations if installations else 0.0,
        versions=versions,
        last_event_at=max((row["last"] for row in rows), default=None),
    )


@dataclass(frozen=True)
class _Released:
    """The versions behind labels, and those that nobody may run any more."""

    numbers: Mapping[tuple[str, str], int]
    revoked: frozenset[int]


def _released(model: Model) -> _Released:
    # By attribute: releases and recalls belong to a layer above this one.
    versions = ModelVersion.objects.filter(model=model).order_by()
    labels = versions.filter(releases__isnull=False).values_list(
        "releases__channel__name", "releases__label_number", "number"
    )
    revoked = versions.filter(Q(recall__isnull=False) | Q(releases__killed_at__isnull=False))
    return _Released(
        {(channel, f"v{label}"): number for channel, label, number in labels},
        frozenset(revoked.values_list("number", flat=True)),
    )


def _shares(rows: Sequence[Mapping[str, Any]], released: _Released) -> list[VersionShare]:
    told = [row for row in rows if row["knows"]]
    total = sum(row["count"] for row in told)
    shares = []
    for row in told:
        number = released.numbers.get((row["channel"], row["label"]), row["version"])
        number = number if row["label"] else None
        shares.append(
            VersionShare(
                channel=row["channel"],
                label=row["label"],
                version=number,
                installations=row["count"],
                share=row["count"] / total,
                is_revoked=number in released.revoked,
            )
        )
    return sorted(shares, key=lambda one: (-one.installations, one.channel, one.label))


def fleet_history(model: Model, *, days: int = 60) -> Iterator[tuple[date, str, int]]:
    """Yield (day, label, installations) of a model's fleet, oldest first. One query."""
    since = timezone.now().date() - timedelta(days=days)
    rows = FleetDay.objects.filter(model=model, day__gte=since).order_by("day")
    counts: dict[tuple[date, str], int] = defaultdict(int)
    for row in rows:
        counts[row.day, row.label] += row.installations
    for (day, label), count in counts.items():
        yield day, label, count


# Raw statements


def _rows(statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, list(values))
        return list(cursor.fetchall())


def _moment(value: Any) -> datetime | None:
    """Return a time as a raw statement gave it: SQLite keeps text."""
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    found = parse_datetime(value)
    return found.replace(tzinfo=UTC) if found and found.tzinfo is None else found

"""Everything an update check needs, held in the process: a poll touches no database.

A daemon thread compares the epoch in the database with the one loaded, every
``DECISION_REFRESH_S`` seconds, and loads the set again when it grew. While the database is away
the last set goes on serving.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import close_old_connections, connection

from server.delivery.models import ApplicationKey
from server.domain.assignment import RolloutFacts
from server.domain.decision import ChannelFacts, Decision, ReleaseFacts, VariantFacts
from server.domain.delivery_policy import DeliveryPolicy
from server.domain.errors import InvalidInput
from server.domain.stages import OPEN_STATES
from server.domain.targeting import read_rules
from server.registry.figures import figures, version_maturity
from server.registry.models import Model, ModelVersion, Variant
from server.registry.queries import training_policy
from server.rollouts import queries as rollout_queries
from server.rollouts.models import Channel, Override, Patch, Release, Rollout, Signing
from server.rollouts.queries import Standing
from server.rollouts.targets import release_path
from server.telemetry.queries import benchmark_medians

SPEC_VERSION = 1
PATCH_MEDIA_TYPE = "application/octet-stream"
# How soon devices come again that asked between a kill and its signature.
URGENT_POLL_S = 900
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A file that devices may fetch, and the models it belongs to."""

    sha256: str
    size_bytes: int
    media_type: str
    filename: str
    models: frozenset[str]


@dataclass(frozen=True)
class Answer:
    """A manifest rendered once, with its entity tag."""

    etag: str
    body: bytes


@dataclass
class ModelFacts:
    """One model as devices see it."""

    slug: str
    is_open: bool
    is_retired: bool
    holdout_bp: int = 0
    tolerance: float | None = None
    channels: dict[str, ChannelFacts] = field(default_factory=dict)
    # By channel, label and file; the empty label and file are those of a channel's nothing.
    manifests: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    answers: dict[tuple[str, ...], Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class DecisionSet:
    """What all devices may be told at one epoch."""

    epoch: int
    models: Mapping[str, ModelFacts]
    # Digest of an application key → slugs it opens; None opens all.
    keys: Mapping[str, frozenset[str] | None]
    artifacts: Mapping[str, Artifact]
    revoked: frozenset[str]

    def may_fetch(self, model: ModelFacts, key: str) -> bool:
        """Say whether an application key (maybe empty) opens the model."""
        return model.is_open or self.opens(key, model.slug)

    def opens(self, key: str, slug: str) -> bool:
        """Say whether the application key is known and covers the model."""
        if not key:
            return False
        allowed = self.keys.get(hashlib.sha256(key.encode()).hexdigest(), frozenset())
        return allowed is None or slug in allowed

    def answer(
        self, model: ModelFacts, channel: str, decision: Decision, current: str
    ) -> Answer | None:
        """Return the manifest for a decision, or None where there is nothing to say."""
        release, variant = decision.release, decision.variant
        enrolment = (decision.rollout or "", decision.arm or "")
        if release is None or variant is None:
            if decision.arm:
                # Control of a first release: nothing to install, and yet it takes part.
                return self._render(model, (channel, "", ""), "none", enrolment)
            if not decision.is_embedded_wanted:
                return None
            return self._render(model, (channel, "", ""), "rollback_to_embedded", enrolment)
        kind = "none" if current == release.label else "update"
        return self._render(model, (channel, release.label, variant.sha256), kind, enrolment)

    def _render(
        self,
        model: ModelFacts,
        place: tuple[str, str, str],
        kind: str,
        enrolment: tuple[str, str],
    ) -> Answer:
        key = (*place, kind, *enrolment)
        if (known := model.answers.get(key)) is not None:
            return known
        rollout, arm = enrolment
        manifest = model.manifests[place]
        if arm:
            manifest = {**manifest, "enrolment": {"rollout": rollout, "arm": arm}}
        # The tag covers the decision alone, so a device that just installed it gets a 304.
        tag = hashlib.sha256(_dump(manifest)).hexdigest()[:32]
        answer = Answer(f'"{tag}"', _dump({**manifest, "kind": kind}))
        model.answers[key] = answer
        return answer


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


@dataclass(frozen=True)
class _Rows:
    """What was read from the database, by what it belongs to."""

    releases: Mapping[int, list[Release]]
    variants: Mapping[int, list[Variant]]
    # By model and by the hash of the file that they make.
    patches: Mapping[tuple[int, str], list[Patch]]
    # By channel.
    rollouts: Mapping[int, Rollout]
    overrides: Mapping[int, list[Override]]
    # Milliseconds by file and class of devices.
    medians: Mapping[str, Mapping[str, float]]


def load() -> DecisionSet:
    """Read the whole set from the database in a fixed number of queries."""
    epoch = rollout_queries.epoch()
    models = {model.pk: _model_facts(model) for model in Model.objects.all()}
    rows = _read_rows()
    signings = {one.model_id: one for one in Signing.objects.all()}
    artifacts: dict[str, Artifact] = {}
    revoked_of: dict[int, set[str]] = defaultdict(set)
    for channel in Channel.objects.all():
        facts = models.get(channel.model_id)
        if facts is None:
            # Made since the models were read; the epoch has grown, so the next look finds it.
            continue
        revoked_of[channel.model_id] |= _add_channel(facts, channel, rows, artifacts)
    for pk, facts in models.items():
        # What is revoked on one channel may still be served on another; and what no channel
        # serves is named on all of them, so that a recall changes the tag of every answer.
        revoked_of[pk] -= {sha256 for *_, sha256 in facts.manifests if sha256}
        _add_revocations(facts, revoked_of[pk], signings.get(pk))
    served = {sha256 for m in models.values() for *_, sha256 in m.manifests if sha256}
    revoked = set().union(*revoked_of.values()) - served
    _add_patches(models, rows, artifacts, revoked)
    return DecisionSet(
        epoch, {m.slug: m for m in models.values()}, _keys(), artifacts, frozenset(revoked)
    )


def _add_revocations(facts: ModelFacts, revoked: set[str], signing: Signing | None) -> None:
    """Name in every manifest what is revoked, and what of it the signed policy says so far.

    Devices believe the policy alone. Whoever asks between a kill and its signature learns nothing
    that counts: so the tag changes once more when it is signed, and until then devices are asked
    to come again soon.
    """
    signed = sorted(signing.revoked) if signing else []
    is_urgent = (
        signing is not None and signing.wanted > signing.signed and not (revoked <= set(signed))
    )
    for manifest in facts.manifests.values():
        manifest["revoked"] = sorted(revoked)
        manifest["policy"] = hashlib.sha256(_dump(signed)).hexdigest()[:16]
        if is_urgent:
            soon = min(URGENT_POLL_S, settings.POLL_INTERVAL_S)
            manifest["poll"] = {**manifest["poll"], "interval_s": soon}


def _read_rows() -> _Rows:
    variants: dict[int, list[Variant]] = defaultdict(list)
    shipped = Variant.objects.filter(
        is_shipped=True,
        version__state=ModelVersion.State.PUBLISHED,
        version__releases__isnull=False,
    ).distinct()
    for variant in shipped:
        variants[variant.version_id].append(variant)
    releases: dict[int, list[Release]] = defaultdict(list)
    for release in Release.objects.select_related("version").order_by("label_number"):
        releases[release.channel_id].append(release)
    patches: dict[tuple[int, str], list[Patch]] = defaultdict(list)
    offered = Patch.objects.filter(state=Patch.State.OFFERED, announced_at__isnull=False)
    for patch in offered.select_related("from_variant", "to_variant__version").order_by("-pk"):
        target = patch.to_variant
        patches[(target.version.model_id, target.sha256)].append(patch)
    rollouts = {one.channel_id: one for one in Rollout.objects.filter(state__in=OPEN_STATES)}
    overrides: dict[int, list[Override]] = defaultdict(list)
    for override in Override.objects.all():
        overrides[override.channel_id].append(override)
    medians = benchmark_medians({one.sha256 for found in variants.values() for one in found})
    return _Rows(releases, variants, patches, rollouts, overrides, medians)


def _model_facts(model: Model) -> ModelFacts:
    policy, tolerance = DeliveryPolicy(), None
    try:
        policy = DeliveryPolicy.read(model.delivery_policy)
        if policy.prefer == "fastest":
            tolerance = training_policy(model).variant_tolerance
    except InvalidInput as error:
        # One model's policy, written past its checks, must not cost the others their updates.
        log.warning("delivery_policy_not_read", model=model.slug, error=error.detail)
    return ModelFacts(
        model.slug,
        model.is_open,
        model.retired_at is not None,
        holdout_bp=policy.holdout_bp,
        tolerance=tolerance,
    )


def _add_channel(
    facts: ModelFacts, channel: Channel, rows: _Rows, artifacts: dict[str, Artifact]
) -> set[str]:
    releases, shipped = rows.releases[channel.pk], rows.variants
    standing = rollout_queries.stand(releases)
    current = standing.offered
    serving = {v.sha256 for release in standing.listed for v in shipped[release.version_id]}
    revoked = {
        variant.sha256
        for release in releases
        if release.killed_at is not None
        for variant in shipped[release.version_id]
    } - serving
    listed = tuple(sorted(revoked))
    facts.channels[channel.name] = _channel_facts(facts, channel, standing, rows, listed)
    for release in releases:
        for variant in shipped[release.version_id]:
            file = Artifact(
                variant.sha256,
                variant.size_bytes,
                variant.media_type,
                variant.filename,
                frozenset({facts.slug}),
            )
            _add_artifact(artifacts, file)
    nothing = _common(facts.slug, channel.name, None)
    facts.manifests[(channel.name, "", "")] = nothing | {
        "reason": "every release was revoked" if standing.is_emptied else "nothing released yet",
        "mandatory": standing.is_emptied,
    }
    for release in {one.pk: one for one in (current, *_others(standing)) if one}.values():
        common = _common(facts.slug, channel.name, release)
        for variant in shipped[release.version_id]:
            place = (channel.name, release.label, variant.sha256)
            facts.manifests[place] = common | _variant_members(
                facts.slug, channel.name, release, variant
            )
    return revoked


def _others(standing: Standing) -> list[Release]:
    """Return what may be given besides the incumbent, as far as it is signed and announced."""
    every = (standing.candidate, *standing.pinned)
    return [one for one in every if one is not None and one.announced_at is not None]


def _channel_facts(
    facts: ModelFacts,
    channel: Channel,
    standing: Standing,
    rows: _Rows,
    revoked: tuple[str, ...],
) -> ChannelFacts:
    others = _others(standing)
    labels = {one.pk: one.label for one in (standing.offered, *others) if one is not None}
    rollout, candidate = rows.rollouts.get(channel.pk), standing.candidate
    is_offered = rollout is not None and candidate is not None and candidate.pk in labels
    return ChannelFacts(
        release=_release_facts(standing.offered, rows),
        revoked=revoked,
        hold=_hold(standing, channel),
        model=facts.slug,
        is_emptied=standing.is_emptied,
        rollout=_rollout_facts(rollout, candidate) if is_offered else None,  # type: ignore[arg-type]
        overrides={
            one.device: labels[one.release_id]
            for one in rows.overrides[channel.pk]
            if one.release_id in labels
        },
        golden=labels.get(channel.golden_id or 0),
        holdout_bp=facts.holdout_bp,
        tolerance=facts.tolerance,
        others={
            one.label: found for one in others if (found := _release_facts(one, rows)) is not None
        },
    )


def _rollout_facts(rollout: Rollout, candidate: Release) -> RolloutFacts:
    return RolloutFacts(
        key=rollout.key,
        nonce=rollout.nonce,
        candidate=candidate.label,
        coverage_bp=rollout.coverage_bp,
        is_paused=rollout.state == "paused",
        targeting=read_rules(rollout.targeting),
    )


def _hold(standing: Standing, channel: Channel) -> str:
    """Return what a channel that serves nothing waits for, or nothing."""
    if standing.newest is not None and standing.offered is None:
        return f"{standing.newest.label} waits to be signed"
    # Devices obey the signed policy alone, so there is nothing to tell them before it says so.
    if standing.is_emptied and channel.embedded_at is None:
        return "every release was revoked, and the policy that says so waits to be signed"
    return ""


def _add_artifact(artifacts: dict[str, Artifact], file: Artifact) -> None:
    """Add a file, or one more model to a file that is there."""
    known = artifacts.get(file.sha256)
    artifacts[file.sha256] = replace(file, models=file.models | known.models) if known else file


def _add_patches(
    models: Mapping[int, ModelFacts],
    rows: _Rows,
    artifacts: dict[str, Artifact],
    revoked: set[str],
) -> None:
    """Offer the signed patches in the manifests of what they lead to, and serve their bytes."""
    for pk, facts in models.items():
        for (*_, sha256), manifest in facts.manifests.items():
            manifest["patches"] = _patch_members(rows.patches.get((pk, sha256), ()), revoked)
    for (pk, sha256), patches in rows.patches.items():
        owner = models.get(pk)
        for patch in patches:
            if owner is not None and sha256 not in revoked:
                name = f"{patch.to_variant.filename}.{patch.algorithm}"
                file = Artifact(
                    patch.sha256,
                    patch.size_bytes or 0,
                    PATCH_MEDIA_TYPE,
                    name,
                    frozenset({owner.slug}),
                )
                _add_artifact(artifacts, file)


def _patch_members(patches: Iterable[Patch], revoked: Collection[str]) -> list[dict[str, Any]]:
    """Return the patches as the manifest names them, each pair of files once."""
    pairs = {patch.from_variant.sha256: patch for patch in patches}
    return [
        {
            "algorithm": patch.algorithm,
            "from_sha256": from_sha256,
            "sha256": patch.sha256,
            "size_bytes": patch.size_bytes,
            "path": f"/api/v1/artifacts/{patch.sha256}",
        }
        for from_sha256, patch in sorted(pairs.items())
        if from_sha256 not in revoked
    ]


def _release_facts(release: Release | None, rows: _Rows) -> ReleaseFacts | None:
    if release is None:
        return None
    by_runtime: dict[str, list[VariantFacts]] = defaultdict(list)
    for variant in rows.variants[release.version_id]:
        by_runtime[variant.runtime].append(
            VariantFacts(
                variant.precision,
                variant.sha256,
                variant.requires,
                accuracy=variant.metrics.get("accuracy"),
                latency_ms=rows.medians.get(variant.sha256, {}),
            )
        )
    return ReleaseFacts(release.label, release.version.number, release.reason, by_runtime)


def _common(slug: str, channel: str, release: Release | None) -> dict[str, Any]:
    """Return the members that every variant's manifest shares; there is no clock in them."""
    return {
        "spec_version": SPEC_VERSION,
        "model": slug,
        "channel": channel,
        "label": release.label if release else None,
        "version": release.version.number if release else None,
        "reason": release.reason if release else "every release was revoked",
        "created_at": _timestamp(release) if release else None,
        "mandatory": release.is_mandatory if release else True,
        "notes": release.notes if release else "",
        "artifact": None,
        "patches": [],
        "labels": list(release.version.labels) if release else [],
        "preprocessing": release.version.preprocessing if release else {},
        "signature": release.version.signature if release else {},
        "selftest": {},
        "requires": {},
        "metrics": {},
        "enrolment": None,
        "revoked": [],  # filled in when every channel is known, and the next with it
        "policy": "",
        "poll": {"interval_s": settings.POLL_INTERVAL_S, "jitter_pct": settings.POLL_JITTER_PCT},
        "telemetry": {"sample_bp": settings.TELEMETRY_SAMPLE_BP},
    }


def _timestamp(release: Release) -> str:
    return release.created_at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _variant_members(slug: str, channel: str, release: Release, variant: Variant) -> dict[str, Any]:
    version = release.version
    measured = figures(variant.metrics) or figures(version.metrics) or {}
    return {
        "artifact": {
            "path": f"/api/v1/artifacts/{variant.sha256}",
            "target": release_path(slug, channel, release.label, variant),
            "runtime": variant.runtime,
            "precision": variant.precision,
            "sha256": variant.sha256,
            "size_bytes": variant.size_bytes,
            "media_type": variant.media_type,
        },
        "selftest": variant.selftest,
        "requires": variant.requires,
        "metrics": {
            "accuracy": measured.get("accuracy"),
            "test_photos": measured.get("count"),
            "interval": measured.get("interval"),
            "maturity": version_maturity(version),
            # What was found where there is no accuracy, or that nothing could be.
            "measured": variant.metrics.get("measured", ""),
        },
    }


def _keys() -> dict[str, frozenset[str] | None]:
    keys: dict[str, frozenset[str] | None] = {}
    for key in ApplicationKey.objects.filter(revoked_at__isnull=True).prefetch_related("covers"):
        slugs = frozenset(model.slug for model in key.covers.all())
        keys[key.digest] = slugs or None
    return keys


class Holder:
    """The process's decision set and the thread that keeps it fresh."""

    def __init__(self) -> None:
        """Start empty: the first poll loads."""
        self._set: DecisionSet | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    @property
    def held(self) -> DecisionSet | None:
        """Return the set if it was loaded already."""
        return self._set

    def current(self) -> DecisionSet:
        """Return the set; only the very first call of a process reads the database."""
        held = self._set
        return held if held is not None else self._start()

    def refresh(self) -> DecisionSet:
        """Load again if the database is at another epoch; return what now holds."""
        held = self._set
        if held is None or held.epoch != rollout_queries.epoch():
            held = self._set = load()
        return held

    def close(self) -> None:
        """Drop the set and stop watching; the next poll starts anew, as a new process would."""
        self._set = None
        if self._thread is not None:
            self._closing.set()
            self._thread.join()
            self._thread = None

    def _start(self) -> DecisionSet:
        with self._lock:
            if self._set is None:
                self._set = load()
            if self._thread is None or not self._thread.is_alive():
                self._closing.clear()
                self._thread = threading.Thread(
                    target=self._watch, name="decision-set", daemon=True
                )
                self._thread.start()
            return self._set

    def _watch(self) -> None:
        while not self._closing.wait(settings.DECISION_REFRESH_S):
            try:
                close_old_connections()
                if self._set is not None:
                    self.refresh()
            except DatabaseError as error:
                connection.close()
                log.warning("decision_set_stale", error=str(error))
            except Exception:
                # Whatever it is, the next look may go well; a thread that ended never looks again.
                log.exception("decision_set_stale")
        connection.close()


holder = Holder()

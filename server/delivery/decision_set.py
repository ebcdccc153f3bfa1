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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import close_old_connections, connection

from server.delivery.models import ApplicationKey
from server.domain.decision import ChannelFacts, Decision, ReleaseFacts, VariantFacts
from server.registry.models import Model, ModelVersion, Variant
from server.rollouts import queries as rollout_queries
from server.rollouts.models import Channel, Release

SPEC_VERSION = 1
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
    channels: dict[str, ChannelFacts] = field(default_factory=dict)
    manifests: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    answers: dict[tuple[str, str, str], Answer] = field(default_factory=dict)


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
        if decision.release is None or decision.variant is None:
            if not decision.is_embedded_wanted:
                return None
            return self._render(model, channel, "", kind="rollback_to_embedded")
        kind = "none" if current == decision.release.label else "update"
        return self._render(model, channel, decision.variant.sha256, kind=kind)

    def _render(self, model: ModelFacts, channel: str, sha256: str, *, kind: str) -> Answer:
        key = (channel, sha256, kind)
        if (known := model.answers.get(key)) is not None:
            return known
        manifest = model.manifests[(channel, sha256)]
        # The tag covers the decision alone, so a device that just installed it gets a 304.
        tag = hashlib.sha256(_dump(manifest)).hexdigest()[:32]
        answer = Answer(f'"{tag}"', _dump({**manifest, "kind": kind}))
        model.answers[key] = answer
        return answer


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def load() -> DecisionSet:
    """Read the whole set from the database in a fixed number of queries."""
    epoch = rollout_queries.epoch()
    models = {
        model.pk: ModelFacts(model.slug, model.is_open, model.retired_at is not None)
        for model in Model.objects.all()
    }
    shipped: dict[int, list[Variant]] = defaultdict(list)
    variants = Variant.objects.filter(
        is_shipped=True,
        version__state=ModelVersion.State.PUBLISHED,
        version__releases__isnull=False,
    ).distinct()
    for variant in variants:
        shipped[variant.version_id].append(variant)
    releases: dict[int, list[Release]] = defaultdict(list)
    for release in Release.objects.select_related("version").order_by("label_number"):
        releases[release.channel_id].append(release)
    artifacts: dict[str, Artifact] = {}
    revoked: set[str] = set()
    for channel in Channel.objects.all():
        facts = models.get(channel.model_id)
        if facts is None:
            # Made since the models were read; the epoch has grown, so the next look finds it.
            continue
        revoked |= _add_channel(facts, channel, releases[channel.pk], shipped, artifacts)
    # What is revoked on one channel may still be served on another.
    served = {sha256 for m in models.values() for _, sha256 in m.manifests if sha256}
    return DecisionSet(
        epoch, {m.slug: m for m in models.values()}, _keys(), artifacts, frozenset(revoked - served)
    )


def _add_channel(
    facts: ModelFacts,
    channel: Channel,
    releases: list[Release],
    shipped: Mapping[int, list[Variant]],
    artifacts: dict[str, Artifact],
) -> set[str]:
    newest = releases[-1] if releases else None
    current = newest if newest is not None and newest.killed_at is None else None
    serving = {v.sha256 for v in shipped[current.version_id]} if current else set()
    revoked = {
        variant.sha256
        for release in releases
        if release.killed_at is not None
        for variant in shipped[release.version_id]
    } - serving
    listed = tuple(sorted(revoked))
    facts.channels[channel.name] = ChannelFacts(_release_facts(current, shipped), listed)
    for release in releases:
        for variant in shipped[release.version_id]:
            owners = frozenset({facts.slug})
            if (known := artifacts.get(variant.sha256)) is not None:
                owners |= known.models
            artifacts[variant.sha256] = Artifact(
                variant.sha256, variant.size_bytes, variant.media_type, variant.filename, owners
            )
    common = _common(facts.slug, channel.name, current, listed)
    facts.manifests[(channel.name, "")] = common
    if current is not None:
        for variant in shipped[current.version_id]:
            facts.manifests[(channel.name, variant.sha256)] = common | _variant_members(
                current.version, variant
            )
    return revoked


def _release_facts(
    release: Release | None, shipped: Mapping[int, list[Variant]]
) -> ReleaseFacts | None:
    if release is None:
        return None
    by_runtime: dict[str, list[VariantFacts]] = defaultdict(list)
    for variant in shipped[release.version_id]:
        by_runtime[variant.runtime].append(
            VariantFacts(variant.precision, variant.sha256, variant.requires)
        )
    return ReleaseFacts(release.label, release.version.number, release.reason, by_runtime)


def _common(
    slug: str, channel: str, release: Release | None, revoked: tuple[str, ...]
) -> dict[str, Any]:
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
        "selftest": {},
        "requires": {},
        "metrics": {},
        "enrolment": None,
        "revoked": list(revoked),
        "poll": {"interval_s": settings.POLL_INTERVAL_S, "jitter_pct": settings.POLL_JITTER_PCT},
    }


def _timestamp(release: Release) -> str:
    return release.created_at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _variant_members(version: ModelVersion, variant: Variant) -> dict[str, Any]:
    quality = variant.metrics.get("accuracy", version.metrics.get("accuracy"))
    return {
        "artifact": {
            "path": f"/api/v1/artifacts/{variant.sha256}",
            "runtime": variant.runtime,
            "precision": variant.precision,
            "sha256": variant.sha256,
            "size_bytes": variant.size_bytes,
            "media_type": variant.media_type,
        },
        "requires": variant.requires,
        "metrics": {"accuracy": quality, "test_photos": version.metrics.get("count")},
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

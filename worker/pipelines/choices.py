"""What was decided about tuning, kept with the version, and taken up again while it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from server.registry.models import ModelVersion
from server.rollouts import actions as rollouts
from server.rollouts import queries as rollout_queries
from server.training.models import SnapshotEntry

if TYPE_CHECKING:
    from server.domain.policy import TrainingPolicy
    from server.registry.models import Model
    from worker.ml.architectures import Architecture
    from worker.ml.weights import Weights

# With a fifth more photos than a decision was measured on, it is measured again.
MEASURED_AGAIN_AT = 1.2
_LOOKED_AT = 10


@dataclass(frozen=True)
class Choice:
    """How a network is tuned, the sentence that says why, and what it was measured on.

    ``circumstances`` and ``photo_count`` say what the measurement holds for; empty and 0 where
    nothing was measured.
    """

    strategy: Literal["linear", "lower", "fine_tune", "scratch"]
    depth: str
    sentence: str
    trials: Sequence[dict[str, Any]] = ()
    circumstances: dict[str, Any] = field(default_factory=dict)
    photo_count: int = 0
    snapshot: int = 0
    """The snapshot whose photos it was measured on, and a tuned backbone has learnt from."""
    backbone: str = ""
    """The digest of the weights that fine-tuning came to, where it was chosen before."""
    source_sha256: str = ""
    """The blob of the version that has them."""

    def also(self, sentence: str) -> Choice:
        """Return the same choice with one more reason."""
        return dataclasses.replace(self, sentence=f"{self.sentence} {sentence}")

    def to_facts(self) -> dict[str, Any]:
        """Return the JSON form that a version's lineage holds."""
        kept = {name: value for name, value in vars(self).items() if name != "source_sha256"}
        return {**kept, "trials": list(self.trials)}


def circumstances(
    policy: TrainingPolicy, architecture: Architecture, weights: Weights, labels: Sequence[str]
) -> dict[str, Any]:
    """Return what a measurement holds for; with other members it is made anew."""
    return {
        "architecture": architecture.name,
        "weights": weights.sha256,
        "labels": list(labels),
        "fit": policy.fit,
        "strategy": policy.strategy,
        "lower_min_gain": policy.lower_min_gain,
        "fine_tune_min_photos_per_label": policy.fine_tune_min_photos_per_label,
        "fine_tune_min_gain": policy.fine_tune_min_gain,
        "fine_tune_gain_per_megabyte": policy.fine_tune_gain_per_megabyte,
        "augmentation": policy.augmentation,
        "views": policy.views,
    }


def note(choice: Choice, circumstances: dict[str, Any], photo_count: int, snapshot: int) -> Choice:
    """Return the choice with what it was measured on."""
    return dataclasses.replace(
        choice, circumstances=circumstances, photo_count=photo_count, snapshot=snapshot
    )


def measured_before(model: Model, circumstances: dict[str, Any], photo_count: int) -> Choice | None:
    """Return a choice made before that still holds: a night costs only what is new.

    The incumbent's comes first, so that patches stay small; then that of the newest version, also
    where it was not released, so that no night measures again what the last one did.
    """
    release = rollout_queries.incumbent(model, rollouts.PRODUCTION)
    versions = [release.version] if release is not None else []
    trained = model.versions.filter(
        source=ModelVersion.Source.TRAINED, state=ModelVersion.State.PUBLISHED
    )
    versions += trained.order_by("-number")[:_LOOKED_AT]
    for version in versions:
        facts = version.lineage.get("choice")
        if facts and _holds(facts, circumstances, photo_count):
            return _again(facts, version.source_sha256)
    return None


def _holds(facts: dict[str, Any], circumstances: dict[str, Any], photo_count: int) -> bool:
    if facts.get("circumstances") != circumstances:
        return False
    if photo_count >= facts["photo_count"] * MEASURED_AGAIN_AT:
        return False
    # A classifier is fitted anew each night; a tuned backbone still knows what was withdrawn.
    return not facts.get("backbone") or not _is_photo_gone(facts.get("snapshot", 0))


def _is_photo_gone(snapshot: int) -> bool:
    taught = SnapshotEntry.objects.filter(snapshot=snapshot).exclude(split="test")
    return not taught.exists() or taught.exclude(photo__state="accepted").exists()


def _again(facts: dict[str, Any], source_sha256: str) -> Choice:
    sentence = facts["sentence"]
    mark = f"As measured on {facts['photo_count']} photos: "
    sentence = sentence if sentence.startswith(mark) else mark + sentence
    # Another release of the program may have written other members.
    members = {one.name for one in dataclasses.fields(Choice)}
    kept = {name: value for name, value in facts.items() if name in members}
    return Choice(**{**kept, "sentence": sentence, "source_sha256": source_sha256})

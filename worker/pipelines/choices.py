"""What was decided about tuning, kept with the version, and taken up again while it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from server.rollouts import actions as rollouts
from server.rollouts import queries as rollout_queries

if TYPE_CHECKING:
    from server.domain.policy import TrainingPolicy
    from server.registry.models import Model
    from worker.ml.architectures import Architecture
    from worker.ml.weights import Weights

# With a fifth more photos than a decision was measured on, it is measured again.
MEASURED_AGAIN_AT = 1.2


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


def note(choice: Choice, circumstances: dict[str, Any], photo_count: int) -> Choice:
    """Return the choice with what it was measured on."""
    return dataclasses.replace(choice, circumstances=circumstances, photo_count=photo_count)


def measured_before(model: Model, circumstances: dict[str, Any], photo_count: int) -> Choice | None:
    """Return the incumbent's choice where it still holds: a night costs only what is new."""
    release = rollout_queries.incumbent(model, rollouts.PRODUCTION)
    facts = release.version.lineage.get("choice") if release is not None else None
    if not facts or facts.get("circumstances") != circumstances:
        return None
    if photo_count >= facts["photo_count"] * MEASURED_AGAIN_AT:
        return None
    sentence = facts["sentence"]
    mark = f"As measured on {facts['photo_count']} photos: "
    sentence = sentence if sentence.startswith(mark) else mark + sentence
    source = release.version.source_sha256 if release is not None else ""
    # Another release of the program may have written other members.
    members = {one.name for one in dataclasses.fields(Choice)}
    kept = {name: value for name, value in facts.items() if name in members}
    return Choice(**{**kept, "sentence": sentence, "source_sha256": source})

"""The gate of a run: candidate and incumbent asked about the same photos, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from server import blobs
from server.domain.promotion import GateVerdict, judge_candidate
from server.rollouts import actions as rollouts
from server.rollouts import queries as rollout_queries
from worker.ml.errors import MLError
from worker.pipelines import incumbents

if TYPE_CHECKING:
    from server.blobs import BlobStore
    from server.domain.policy import TrainingPolicy
    from server.registry.models import Model, ModelVersion
    from worker.pipelines import photos
    from worker.pipelines.variants import Reference


@dataclass(frozen=True)
class Judgement:
    """The gate's verdict, and why a person has to release all the same; blank where none has."""

    verdict: GateVerdict
    hold: str


def judge(
    model: Model,
    labels: Sequence[str],
    reference: Reference,
    test: photos.PhotoSet,
    policy: TrainingPolicy,
    store: BlobStore,
) -> Judgement:
    """Judge the candidate that ``reference`` describes against what production serves now."""
    right = reference.probabilities.argmax(axis=1) == reference.targets
    release = rollout_queries.incumbent(model, rollouts.PRODUCTION)
    before, hold = None, ""
    if release is not None:
        before, hold = _ask_incumbent(release.version, test, labels, store)
    elif rollout_queries.waits_for_person(model, rollouts.PRODUCTION):
        hold = "Everything released before was killed, so a person has to release again."
    frequent = np.bincount(reference.targets).max() / len(reference.targets)
    verdict = judge_candidate(
        right.tolist(), before, margin=policy.margin, most_frequent_share=float(frequent)
    )
    return Judgement(verdict, hold)


def _ask_incumbent(
    incumbent: ModelVersion, test: photos.PhotoSet, labels: Sequence[str], store: BlobStore
) -> tuple[list[bool] | None, str]:
    """Return the incumbent's answers, or None and why there are none."""
    try:
        answers = incumbents.answers(incumbent, test, labels, store)
    except (MLError, blobs.BlobNotFound) as error:
        return None, f"The incumbent could not be run ({error}), so a person has to release."
    if answers is None:
        return None, "The incumbent cannot be run on this server, so a person has to release."
    return answers, ""

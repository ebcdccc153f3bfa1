"""What a run measures, and its gate: candidate and incumbent asked about the same photos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from server import blobs
from server.domain.promotion import GateVerdict, judge_candidate, shown_share
from server.rollouts import actions as rollouts
from server.rollouts import queries as rollout_queries
from worker.ml import evaluation
from worker.ml.errors import MLError
from worker.pipelines import incumbents

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from server.blobs import BlobStore
    from server.domain.policy import TrainingPolicy
    from server.registry.models import Model, ModelVersion
    from server.training.models import DatasetSnapshot
    from worker.pipelines.photos import PhotoSet
    from worker.pipelines.variants import Reference

# Fewer photos of one camera say nothing of it, and might point at a person.
MIN_CAMERA_PHOTOS = 5
OTHER_CAMERAS = "other cameras"


@dataclass(frozen=True)
class Judgement:
    """The gate's verdict, and why a person has to release all the same; blank where none has."""

    verdict: GateVerdict
    hold: str
    judged_on: str


def measure(reference: Reference, test: PhotoSet, snapshot: DatasetSnapshot) -> dict[str, Any]:
    """Return the network's figures on the test photos, the golden ones and each camera's.

    Every figure comes with its count and interval. ``photos`` counts the accepted photos of each
    label at the time, which says how far all of this carries.
    """
    targets = reference.targets.tolist()
    metrics = evaluation.measure(reference.probabilities, targets, snapshot.labels)
    right = reference.probabilities.argmax(axis=1) == reference.targets
    golden = golden_mask(test)
    if golden.any():
        metrics["golden"] = evaluation.share_of(right[golden])
    metrics["per_camera"] = _by_camera(right, test)
    accepted = snapshot.facts.get("accepted", {})
    metrics["photos"] = {label: accepted.get(label, 0) for label in snapshot.labels}
    return metrics


def describe(metrics: dict[str, Any]) -> str:
    """Return the sentence of a run's log on what was measured."""
    golden = metrics.get("golden")
    also = f" {_shown(golden, 'golden photos')}." if golden else ""
    return f"Keras: {_shown(metrics, 'test photos')}.{also}"


def _shown(figures: dict[str, Any], photos: str) -> str:
    return f"{shown_share(figures['correct'], figures['count'])} of {figures['count']} {photos}"


def golden_mask(test: PhotoSet) -> NDArray[np.bool_]:
    """Return which of the test photos are golden, bool (N,)."""
    return np.array([entry.is_golden for entry in test.entries], dtype=bool)


def _by_camera(right: NDArray[np.bool_], test: PhotoSet) -> dict[str, Any]:
    """Return the share of right answers by camera, where photos say theirs; rare ones together."""
    cameras = [entry.photo.camera if entry.photo else "" for entry in test.entries]
    counts = Counter(camera for camera in cameras if camera)
    named = np.array(
        [
            camera if counts[camera] >= MIN_CAMERA_PHOTOS else OTHER_CAMERAS if camera else ""
            for camera in cameras
        ]
    )
    return {
        str(camera): evaluation.share_of(right[named == camera])
        for camera in sorted(set(named.tolist()) - {""})
    }


def judge(
    model: Model,
    labels: Sequence[str],
    reference: Reference,
    test: PhotoSet,
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
    chosen, judged_on, shortage = _judged_photos(test, policy)
    frequent = np.bincount(reference.targets[chosen]).max() / chosen.sum()
    verdict = judge_candidate(
        right[chosen].tolist(),
        None if before is None else np.array(before)[chosen].tolist(),
        margin=policy.margin,
        most_frequent_share=float(frequent),
        photos=f"{judged_on} photos",
    )
    return Judgement(verdict, hold or shortage, judged_on)


def _judged_photos(test: PhotoSet, policy: TrainingPolicy) -> tuple[NDArray[np.bool_], str, str]:
    """Return which photos the gate judges on, what they are called, and what is amiss with them."""
    golden = golden_mask(test)
    if policy.gate_on == "golden" and golden.sum() >= policy.min_test_photos:
        return golden, "golden", ""
    shortage = ""
    if policy.gate_on == "golden":
        shortage = (
            f"The policy judges on golden photos, and there are {golden.sum()} where"
            f" {policy.min_test_photos} are asked for; so a person has to release."
        )
    return np.ones(len(test), dtype=bool), "test", shortage


def _ask_incumbent(
    incumbent: ModelVersion, test: PhotoSet, labels: Sequence[str], store: BlobStore
) -> tuple[list[bool] | None, str]:
    """Return the incumbent's answers, or None and why there are none."""
    try:
        answers = incumbents.answers(incumbent, test, labels, store)
    except (MLError, blobs.BlobNotFound) as error:
        return None, f"The incumbent could not be run ({error}), so a person has to release."
    if answers is None:
        return None, "The incumbent cannot be run on this server, so a person has to release."
    return answers, ""

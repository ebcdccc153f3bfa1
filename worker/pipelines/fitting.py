"""Fitting a network to the photos of a snapshot."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.conf import settings

from worker.ml import training as ml_training
from worker.ml.architectures import find_architecture
from worker.ml.embeddings import Embedder
from worker.ml.errors import WeightsUnavailable
from worker.ml.preprocessing import Preprocessing
from worker.ml.weights import find_weights
from worker.pipelines import photos

if TYPE_CHECKING:
    from server.blobs import BlobStore
    from server.domain.policy import TrainingPolicy
    from server.training.models import DatasetSnapshot, TrainingRun
    from worker.ml.architectures import Architecture
    from worker.ml.weights import Weights
    from worker.pipelines.reporting import Reporter

# Transfer learning first; from scratch only where no pretrained weights can be had.
PRETRAINED = ("mobilenet_v2_0.35_224", "mobilenet_v2_1.0_224")
FROM_SCRATCH = "small_cnn"


@dataclass(frozen=True)
class Trained:
    """What training gives: the network and how its photos are prepared."""

    model: Any
    preprocessing: Preprocessing
    architecture: str
    facts: dict[str, Any]


def fit(
    run: TrainingRun,
    snapshot: DatasetSnapshot,
    sets: dict[str, photos.PhotoSet],
    policy: TrainingPolicy,
    reporter: Reporter,
    store: BlobStore,
) -> Trained:
    """Return the network that the policy asks for, trained on the snapshot's photos."""
    if policy.architecture != "auto" and not find_architecture(policy.architecture).pretrained:
        return _train_from_scratch(run, snapshot, sets, policy, reporter, store)
    try:
        architecture, weights = _find_pretrained(policy.architecture)
    except WeightsUnavailable as error:
        if policy.architecture != "auto":
            raise
        reporter.say(
            "training",
            f"{str(error).rstrip('.')}. Training a small network from scratch instead: expect less"
            " accuracy than with pretrained weights.",
            level="warning",
        )
        return _train_from_scratch(run, snapshot, sets, policy, reporter, store)
    reporter.say(
        "training", f"{architecture.name}, frozen, with ImageNet weights ({weights.origin})."
    )
    return _train_head(run, snapshot, sets, policy, reporter, store, architecture, weights)


def _find_pretrained(wanted: str) -> tuple[Architecture, Weights]:
    """Return the backbone the policy names, else the best whose weights are at hand.

    What lies in the folder comes before anything that has to be downloaded.

    Raises:
        WeightsUnavailable: none of them can be had here.

    """
    names = PRETRAINED if wanted == "auto" else (wanted,)
    folder = settings.NIGHTFERRY_WEIGHTS
    for name in names if folder is not None else ():
        with contextlib.suppress(WeightsUnavailable):
            return find_architecture(name), find_weights(name, folder, allow_download=False)
    weights = find_weights(names[0], folder, allow_download=settings.ALLOW_WEIGHT_DOWNLOAD)
    return find_architecture(names[0]), weights


def _train_head(
    run: TrainingRun,
    snapshot: DatasetSnapshot,
    sets: dict[str, photos.PhotoSet],
    policy: TrainingPolicy,
    reporter: Reporter,
    store: BlobStore,
    architecture: Architecture,
    weights: Weights,
) -> Trained:
    side = architecture.input_size
    preprocessing = Preprocessing(width=side, height=side, fit=policy.fit)
    embedder = Embedder(
        architecture, weights, settings.NIGHTFERRY_DATA / "embedders", preprocessing=preprocessing
    )
    features, fresh = photos.embed_photos(
        sets, embedder=embedder, preprocessing=preprocessing, store=store, reporter=reporter
    )
    total = sum(map(len, sets.values()))
    reporter.say("embedding", f"{fresh} photos embedded now, {total - fresh} from the cache.")
    head = ml_training.train_head(
        features["train"],
        sets["train"].targets,
        validation=(features["validation"], sets["validation"].targets),
        label_count=len(snapshot.labels),
        seed=run.seed,
        progress=reporter.progress,
    )
    model = ml_training.assemble(architecture, weights, head, snapshot.labels)
    facts = {"weights": weights.origin, "weights_sha256": weights.sha256, "embedded": fresh}
    return Trained(model, preprocessing, architecture.name, facts)


def _train_from_scratch(
    run: TrainingRun,
    snapshot: DatasetSnapshot,
    sets: dict[str, photos.PhotoSet],
    policy: TrainingPolicy,
    reporter: Reporter,
    store: BlobStore,
) -> Trained:
    name = FROM_SCRATCH if policy.architecture == "auto" else policy.architecture
    architecture = find_architecture(name)
    side = architecture.input_size
    preprocessing = Preprocessing(width=side, height=side, fit=policy.fit)
    images = {
        split: photos.load_images(found, preprocessing, store)
        for split, found in sets.items()
        if split != "test"
    }
    model = ml_training.train_from_scratch(
        images["train"],
        sets["train"].targets,
        validation=(images["validation"], sets["validation"].targets),
        label_count=len(snapshot.labels),
        architecture=architecture,
        seed=run.seed,
        progress=reporter.progress,
    )
    return Trained(model, preprocessing, architecture.name, {"weights": "from scratch"})

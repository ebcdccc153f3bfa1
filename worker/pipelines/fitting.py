"""Fitting a network to the photos of a snapshot: what to train, by measure; then training it."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from django.conf import settings

from worker.ml import embeddings, evaluation, tuning
from worker.ml import training as ml_training
from worker.ml.architectures import find_architecture
from worker.ml.augmentation import NONE, find_augmentation
from worker.ml.embeddings import TOP, Embedder
from worker.ml.errors import TrainingImpossible, WeightsUnavailable
from worker.ml.finetuning import FineTuner
from worker.ml.preprocessing import Preprocessing
from worker.ml.weights import find_weights
from worker.pipelines import choices, embedding, photos

if TYPE_CHECKING:
    import uuid

    from numpy.typing import NDArray

    from server.blobs import BlobStore
    from server.domain.policy import TrainingPolicy
    from server.photos.models import Photo
    from server.training.models import DatasetSnapshot, TrainingRun
    from worker.ml.architectures import Architecture
    from worker.ml.training import Head
    from worker.ml.weights import Weights
    from worker.pipelines.reporting import Reporter

# Transfer learning first; from scratch only where no pretrained weights can be had.
PRETRAINED = ("mobilenet_v2_0.35_224", "mobilenet_v2_1.0_224")
FROM_SCRATCH = "small_cnn"
# Fewer validation photos cannot tell whether more training was worth it.
MIN_VALIDATION_PHOTOS = 20
_HALF_FLOAT_BYTES = 2


@dataclass(frozen=True)
class Trained:
    """What training gives: the network and how its photos are prepared."""

    model: Any
    preprocessing: Preprocessing
    architecture: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A run, its photos by split, its policy, and where to read, write and report."""

    run: TrainingRun
    snapshot: DatasetSnapshot
    sets: dict[str, photos.PhotoSet]
    policy: TrainingPolicy
    reporter: Reporter
    store: BlobStore

    @property
    def label_count(self) -> int:
        """Return how many labels are told apart."""
        return len(self.snapshot.labels)

    def preprocessing(self, architecture: Architecture) -> Preprocessing:
        """Return how photos become the network's input."""
        side = architecture.input_size
        return Preprocessing(width=side, height=side, fit=self.policy.fit)


def fit(
    run: TrainingRun,
    snapshot: DatasetSnapshot,
    sets: dict[str, photos.PhotoSet],
    policy: TrainingPolicy,
    reporter: Reporter,
    store: BlobStore,
) -> Trained:
    """Return the network that the policy asks for, trained on the snapshot's photos."""
    task = Task(run, snapshot, sets, policy, reporter, store)
    if policy.strategy == "scratch":
        return _fit_from_scratch(task, "The policy asks for training from scratch.")
    if policy.architecture != "auto" and not find_architecture(policy.architecture).pretrained:
        sentence = f"{policy.architecture} comes without weights, so all of it is trained."
        return _fit_from_scratch(task, sentence)
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
        return _fit_from_scratch(task, "No pretrained weights were at hand.")
    reporter.say(
        "training", f"{architecture.name}, frozen, with ImageNet weights ({weights.origin})."
    )
    return _Pretrained(task, architecture, weights).fit()


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


class _Pretrained:
    """Fitting on top of a network that has learned from ImageNet."""

    def __init__(
        self, task: Task, architecture: Architecture, weights: Weights, *, is_tuned: bool = False
    ) -> None:
        self._task = task
        self._architecture = architecture
        self._weights = weights
        self._preprocessing = task.preprocessing(architecture)
        self._augmentation = find_augmentation(task.policy.augmentation)
        self._views = task.policy.views if self._augmentation is not NONE else 0
        self._folder = settings.NIGHTFERRY_DATA / "embedders"
        self._cache = photos.FeatureCache(
            Embedder(architecture, weights, self._folder, preprocessing=self._preprocessing),
            task.store,
            self._augmentation,
        )
        self._fresh = 0
        self._is_tuned = is_tuned

    def fit(self) -> Trained:
        """Embed what is new, decide, train."""
        self._embed([TOP])
        total = sum(map(len, self._task.sets.values()))
        self._task.reporter.say(
            "embedding", f"{self._fresh} photos embedded now, {total - self._fresh} from the cache."
        )
        photos.draw_views(
            self._train_set.photos, self._augmentation, self._preprocessing, self._task.store
        )
        choice = self._choose()
        self._task.reporter.say("tuning", choice.sentence)
        if choice.strategy == "scratch":
            return _fit_from_scratch(self._task, choice.sentence, choice)
        if choice.strategy == "fine_tune" and choice.backbone:
            model = self._tuned_before(choice).refit()
        else:
            model = self._train(choice)
        if choice.strategy == "fine_tune":
            digest = ml_training.weights_digest(embeddings.below_head(model))
            choice = dataclasses.replace(choice, backbone=digest)
        facts = {
            "weights": self._weights.origin,
            "weights_sha256": self._weights.sha256,
            "embedded": self._fresh,
            "choice": choice.to_facts(),
            "augmentation": {"name": self._augmentation.name, "views": self._views},
        }
        return Trained(model, self._preprocessing, self._architecture.name, facts)

    def refit(self) -> Any:
        """Train the last layer alone, on a backbone that has seen these photos in another night.

        Validation photos are among what it has seen, and cannot choose a regularisation.
        """
        self._embed([TOP])
        features, targets = self._features(TOP)
        held, held_targets = self._held_features(TOP)
        known = [(features, targets), (held, held_targets)] if len(held) else [(features, targets)]
        head = ml_training.train_head(
            np.concatenate([rows for rows, _ in known]),
            np.concatenate([labels for _, labels in known]),
            label_count=self._task.label_count,
            progress=self._task.reporter.progress,
        )
        return ml_training.assemble(
            self._architecture, self._weights, head, self._task.snapshot.labels
        )

    def _tuned_before(self, choice: choices.Choice) -> _Pretrained:
        """Return the same with the weights that the incumbent's fine-tuning came to."""
        path = self._folder / f"{self._architecture.name}-tuned-{choice.backbone}.keras"
        if not path.is_file():
            photos.copy_blob(choice.source_sha256, path, self._task.store)
        architecture = dataclasses.replace(
            self._architecture, load=partial(embeddings.load_tuned, digest=choice.backbone)
        )
        weights = dataclasses.replace(self._weights, path=path, sha256=choice.backbone)
        return _Pretrained(self._task, architecture, weights, is_tuned=True)

    # --- Features ------------------------------------------------------------------------------

    @property
    def _train_set(self) -> photos.PhotoSet:
        return self._task.sets["train"]

    @property
    def _held(self) -> photos.PhotoSet:
        return self._task.sets["validation"]

    def _embed(self, depths: Sequence[str]) -> None:
        others = [*self._held.photos, *self._task.sets["test"].photos]
        for found, views in ((self._train_set.photos, self._views), (others, 0)):
            missing = self._cache.missing(found, depths, views)
            helpers = self._share(missing, depths, views)
            # From the end, while others come from the beginning.
            self._cache.fill(
                missing[::-1], depths=depths, views=views, progress=self._task.reporter.progress
            )
            embedding.call_back(helpers)
            self._fresh += len(missing)

    def _share(
        self, missing: Sequence[Photo], depths: Sequence[str], views: int
    ) -> list[uuid.UUID]:
        """Let other workers help where there is much to embed, with weights that they have too."""
        if len(missing) < embedding.SHARED_FROM or self._is_tuned:
            return []
        return embedding.share(
            missing,
            preprocessing=self._preprocessing,
            architecture=self._architecture.name,
            augmentation=self._augmentation.name,
            depths=depths,
            views=views,
        )

    def _features(self, depth: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the training photos' features, with those of their views, and the labels."""
        views = [
            self._cache.load(self._train_set.photos, depth, view) for view in range(self._views + 1)
        ]
        return np.concatenate(views), np.tile(self._train_set.targets, self._views + 1)

    def _held_features(self, depth: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self._cache.load(self._held.photos, depth), self._held.targets

    def _train_head(self, depth: str, *, is_refitted: bool = True) -> Head:
        features, targets = self._features(depth)
        return ml_training.train_head(
            features,
            targets,
            validation=self._held_features(depth),
            label_count=self._task.label_count,
            seed=self._task.run.seed,
            is_refitted=is_refitted,
            progress=self._task.reporter.progress,
        )

    # --- Deciding ------------------------------------------------------------------------------

    @cached_property
    def _terms(self) -> tuning.Terms:
        policy = self._task.policy
        return tuning.Terms(
            lower_min_gain=policy.lower_min_gain,
            fine_tune_min_photos_per_label=policy.fine_tune_min_photos_per_label,
            fine_tune_min_gain=policy.fine_tune_min_gain,
            fine_tune_gain_per_megabyte=policy.fine_tune_gain_per_megabyte,
        )

    def _choose(self) -> choices.Choice:
        """Return how to tune: as the policy says, as it was measured before, or measured now."""
        strategy = self._task.policy.strategy
        if strategy == "linear":
            return self._linear()
        if not self._architecture.depths:
            sentence = f"{self._architecture.name} names no layer to cut or to tune at."
            if strategy != "auto":
                raise TrainingImpossible(sentence, code="no_lower_layers")
            return choices.Choice("linear", TOP, f"{sentence} So its top features are used.")
        circumstances = choices.circumstances(
            self._task.policy, self._architecture, self._weights, self._task.snapshot.labels
        )
        count = len(self._train_set) + len(self._held)
        before = choices.measured_before(self._task.run.model, circumstances, count)
        if before is not None:
            return before
        if strategy == "fine_tune":
            sentence = "The policy asks for fine-tuning."
            choice = choices.Choice("fine_tune", self._tuned_above, sentence)
        else:
            choice = self._measure()
        return choices.note(choice, circumstances, count, self._task.snapshot.pk)

    def _linear(self) -> choices.Choice:
        depth, depths = self._task.policy.depth, (*self._architecture.depths, TOP)
        if depth not in depths:
            message = (
                f"The policy asks for {self._architecture.name} up to {depth}; it can end at"
                f" {', '.join(depths)}."
            )
            raise TrainingImpossible(message, code="unknown_layer")
        if depth == TOP:
            return choices.Choice("linear", TOP, "The policy asks for a linear classifier.")
        sentence = f"The policy asks for a linear classifier on {depth}; the network is cut there."
        return choices.Choice("lower", depth, sentence)

    def _measure(self) -> choices.Choice:
        trials = self._probe()
        if self._task.policy.strategy == "lower":
            del trials[TOP]
            chosen = max(trials.values(), key=lambda trial: trial.accuracy)
            sentence = (
                f"The policy asks for a lower layer: {chosen.depth} serves best,"
                f" {chosen.accuracy:.1%} of {len(chosen.right)} {chosen.unseen}."
            )
            return choices.Choice("lower", chosen.depth, sentence, _facts(trials.values()))
        chosen, gain = tuning.choose_depth(trials, self._terms)
        sentence = tuning.describe_choice(chosen, gain, trials)
        choice = choices.Choice(chosen.strategy, chosen.depth, sentence, _facts(trials.values()))
        if not tuning.is_large(self._train_set.targets, self._task.label_count, self._terms):
            return choice
        if len(self._held) < MIN_VALIDATION_PHOTOS:
            return choice.also(f"{len(self._held)} validation photos are too few to tell more.")
        return self._try_more(choice)

    def _probe(self) -> dict[str, tuning.Trial]:
        """Judge every depth on a sample of the photos that may be trained on."""
        both = [*self._train_set.photos, *self._held.photos]
        groups = [*self._train_set.groups, *self._held.groups]
        rows = tuning.sample(groups)
        sampled = [both[row] for row in rows]
        depths = (*self._architecture.depths, TOP)
        self._cache.fill(sampled, depths=depths, views=0, progress=self._task.reporter.progress)
        return tuning.probe(
            {depth: self._cache.load(sampled, depth) for depth in depths},
            np.concatenate([self._train_set.targets, self._held.targets])[rows],
            [groups[row] for row in rows],
            label_count=self._task.label_count,
            progress=self._task.reporter.progress,
        )

    def _try_more(self, choice: choices.Choice) -> choices.Choice:
        """Try what the table names for many photos, against the linear classifier chosen."""
        depths = (*self._architecture.depths, TOP)
        self._embed([choice.depth])
        head = self._train_head(choice.depth, is_refitted=False)
        features, targets = self._held_features(choice.depth)
        right = head.logits(features).argmax(axis=1) == targets
        present = tuning.Trial("linear", choice.depth, right)
        if tuning.is_similar(choice.depth, depths):
            tried, patch_bytes = self._try_fine_tuning(head if choice.depth == TOP else None)
        else:
            tried, patch_bytes = self._try_from_scratch()
        terms = self._terms
        needed = terms.fine_tune_min_gain + terms.fine_tune_gain_per_megabyte * patch_bytes / 1e6
        gain = tuning.measure_gain(tried, present, needed)
        sentence = tuning.describe_trial(tried, present, gain, patch_bytes)
        measured = _facts([*self._known(choice), present, tried])
        if gain.is_enough:
            return choices.Choice(tried.strategy, tried.depth, sentence, measured)
        return choices.Choice(choice.strategy, choice.depth, sentence, measured)

    def _known(self, choice: choices.Choice) -> list[Any]:
        return list(choice.trials)

    @property
    def _tuned_above(self) -> str:
        return self._architecture.depths[len(self._architecture.depths) // 4]

    def _try_fine_tuning(self, head: Head | None) -> tuple[tuning.Trial, int]:
        above = self._tuned_above
        model = self._fine_tune([self._train_set], head)
        images = photos.load_images(self._held, self._preprocessing, self._task.store)
        answers = evaluation.predict_keras(model, images, self._preprocessing).argmax(axis=1)
        tuner = FineTuner(self._architecture, self._weights, self._folder, above=above)
        patch_bytes = tuner.trained_parameters(self._task.label_count) * _HALF_FLOAT_BYTES
        return tuning.Trial("fine_tune", above, answers == self._held.targets), patch_bytes

    def _try_from_scratch(self) -> tuple[tuning.Trial, int]:
        trained = _train_from_scratch(self._task, is_validated=False)
        images = photos.load_images(self._held, trained.preprocessing, self._task.store)
        answers = evaluation.predict_keras(trained.model, images, trained.preprocessing)
        right = answers.argmax(axis=1) == self._held.targets
        patch_bytes = trained.model.count_params() * _HALF_FLOAT_BYTES
        return tuning.Trial("scratch", trained.architecture, right), patch_bytes

    # --- Training ------------------------------------------------------------------------------

    def _train(self, choice: choices.Choice) -> Any:
        labels = self._task.snapshot.labels
        if choice.strategy == "fine_tune":
            return self._fine_tune([self._train_set, self._held], None)
        self._embed([choice.depth])
        head = self._train_head(choice.depth)
        return ml_training.assemble(
            self._architecture, self._weights, head, labels, depth=choice.depth
        )

    def _fine_tune(self, sets: Sequence[photos.PhotoSet], head: Head | None) -> Any:
        """Train the last blocks on these sets' photos, from a head that knows the first set."""
        head = head or self._train_head(TOP, is_refitted=len(sets) > 1)
        tuner = FineTuner(self._architecture, self._weights, self._folder, above=self._tuned_above)
        together = [photo for found in sets for photo in found.photos]
        with tempfile.TemporaryDirectory(prefix="nightferry-") as folder:
            images = photos.map_images(
                together,
                self._preprocessing,
                self._task.store,
                Path(folder),
                progress=self._task.reporter.progress,
            )
            return tuner.fit(
                images,
                np.concatenate([found.targets for found in sets]),
                head,
                augmentation=self._augmentation,
                seed=self._task.run.seed,
                progress=self._task.reporter.progress,
            )


def _facts(trials: Any) -> tuple[dict[str, Any], ...]:
    return tuple(trial if isinstance(trial, dict) else trial.to_facts() for trial in trials)


def _fit_from_scratch(task: Task, sentence: str, choice: choices.Choice | None = None) -> Trained:
    trained = _train_from_scratch(task, is_validated=True)
    choice = choice or choices.Choice("scratch", trained.architecture, sentence)
    facts = {"weights": "from scratch", "choice": choice.to_facts()}
    return Trained(trained.model, trained.preprocessing, trained.architecture, facts)


def _train_from_scratch(task: Task, *, is_validated: bool) -> Trained:
    """Train the small network, or the one that the policy names; validation photos may stop it."""
    wanted = task.policy.architecture
    is_named = wanted != "auto" and not find_architecture(wanted).pretrained
    architecture = find_architecture(wanted if is_named else FROM_SCRATCH)
    preprocessing = task.preprocessing(architecture)
    held = None
    if is_validated:
        images = photos.load_images(task.sets["validation"], preprocessing, task.store)
        held = (images, task.sets["validation"].targets)
    model = ml_training.train_from_scratch(
        photos.load_images(task.sets["train"], preprocessing, task.store),
        task.sets["train"].targets,
        validation=held,
        label_count=task.label_count,
        architecture=architecture,
        seed=task.run.seed,
        progress=task.reporter.progress,
    )
    return Trained(model, preprocessing, architecture.name, {})

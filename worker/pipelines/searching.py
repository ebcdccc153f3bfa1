"""A budget search: candidates narrowed on cached features, finalists trained and compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from django.conf import settings

from server import blobs
from server.domain import budgets
from server.domain.architectures import ARCHITECTURES
from server.domain.budgets import Budget, Candidate
from server.domain.errors import Conflict, Unprocessable
from server.registry.queries import training_policy
from server.training import actions as training
from server.training import searches
from worker.ml import determinism, search, tuning
from worker.ml import training as ml_training
from worker.ml.architectures import find_architecture
from worker.ml.embeddings import Embedder
from worker.ml.errors import WeightsUnavailable
from worker.ml.preprocessing import Preprocessing
from worker.ml.weights import find_weights
from worker.pipelines import photos
from worker.pipelines.failures import as_sentences
from worker.pipelines.reporting import Reporter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.blobs import BlobStore
    from server.domain.policy import TrainingPolicy
    from server.training.models import DatasetSnapshot, TrainingRun
    from worker.context import JobContext

# Each round judges on twice the photos of the one before, the last on all or on so many.
ROUNDS = 3
MOST_PHOTOS = 2000
_LEAST_PHOTOS = 40


def run(context: JobContext) -> Mapping[str, Any] | None:
    """Perform the run that the job names; every failure becomes a sentence on the run."""
    try:
        started = training.start_run(run_id=context.args["run_id"])
    except Conflict:
        return None
    with as_sentences():
        return _Search(started, context, blobs.store()).perform()


class _Search:
    """One search; what was embedded for it is found again by the next."""

    def __init__(self, run: TrainingRun, context: JobContext, store: BlobStore) -> None:
        self._run, self._context, self._store = run, context, store
        self._reporter = Reporter(run, context)
        self._search = searches.get_search(run)
        self._budget = Budget.read(self._search.budget)
        self._policy: TrainingPolicy = training_policy(run.model)
        self._dropped: list[Candidate] = []
        self._networks: dict[str, _Network] = {}

    def perform(self) -> dict[str, Any]:
        """Search, measure, choose; the result is written as it grows."""
        self._run.pins = determinism.pin(self._run.seed)
        self._run.save(update_fields=["pins"])
        self._reporter.progress("snapshot", 0, 1, {})
        snapshot = training.freeze_snapshot(run=self._run)
        sets = photos.split_sets(snapshot)
        left = self._enter(snapshot, sets)
        for number in range(1, ROUNDS + 1):
            left = self._round(number, left, snapshot, sets)
        files = self._measure(left, snapshot, sets)
        chosen = budgets.choose(files, self._budget)
        sentence = budgets.explain(chosen, files, self._budget)
        outcome = f"{sentence} {_tested(chosen)}"
        with self._context.holding():
            self._record(files, chosen=chosen, sentence=sentence)
            training.succeed_run(run=self._run, outcome=outcome)
            self._context.complete({"outcome": outcome})
        return {"outcome": outcome}

    def _enter(
        self, snapshot: DatasetSnapshot, sets: dict[str, photos.PhotoSet]
    ) -> list[Candidate]:
        """Return every network at hand at every depth, less what is too large by arithmetic."""
        found: list[Candidate] = []
        names = self._at_hand()
        for step, name in enumerate(names):
            self._reporter.progress("candidates", step, len(names), {})
            network = _Network(name, self._policy, self._store)
            self._networks[name] = network
            found += [
                Candidate(
                    network=name,
                    depth=part.depth,
                    parameters=part.parameters,
                    multiply_adds=part.multiply_adds,
                    size_bytes=part.parameters,
                )
                for part in search.measure_cuts(network.architecture, len(snapshot.labels))
            ]
        sizes = {split: len(photos_of) for split, photos_of in sets.items()}
        self._reporter.say(
            "candidates",
            f"{len(found)} candidates: {len(names)} networks, each whole and cut lower."
            f" {sizes['train'] + sizes['validation']} photos choose, {sizes['test']} test the"
            f" finalists. Budget: {self._budget.describe()}.",
        )
        return self._keep(found, len(found))

    def _at_hand(self) -> list[str]:
        names = []
        for name in self._budget.networks or ARCHITECTURES:
            architecture = find_architecture(name)
            if not architecture.pretrained or not architecture.depths:
                continue
            with contextlib.suppress(WeightsUnavailable):
                find_weights(name, settings.NIGHTFERRY_WEIGHTS, allow_download=False)
                names.append(name)
        if not names:
            message = (
                "No network can be tried: pretrained weights of none of them are at hand. Put some"
                " into the folder that NIGHTFERRY_WEIGHTS names."
            )
            raise Unprocessable(message, code="no_candidates")
        return names

    def _round(
        self,
        number: int,
        left: list[Candidate],
        snapshot: DatasetSnapshot,
        sets: dict[str, photos.PhotoSet],
    ) -> list[Candidate]:
        """Judge who is left on this round's photos; return the better half."""
        both = [*sets["train"].photos, *sets["validation"].photos]
        groups = [*sets["train"].groups, *sets["validation"].groups]
        targets = np.concatenate([sets["train"].targets, sets["validation"].targets])
        most = max(
            min(len(both), MOST_PHOTOS) // 2 ** (ROUNDS - number), min(len(both), _LEAST_PHOTOS)
        )
        rows = tuning.sample(groups, most)
        judged: list[Candidate] = []
        for name in sorted({one.network for one in left}):
            network = self._networks[name]
            ours = [one for one in left if one.network == name]
            self._reporter.progress(f"round {number}", len(judged), len(left), {})
            trials = network.probe(
                ours,
                [both[row] for row in rows],
                targets[rows],
                [groups[row] for row in rows],
                label_count=len(snapshot.labels),
                reporter=self._reporter,
            )
            whole_ms = network.latency_ms
            judged += [
                replace(
                    one,
                    correct=int(trials[one.depth].right.sum()),
                    count=len(rows),
                    latency_ms=whole_ms * one.multiply_adds / network.multiply_adds,
                    round=number,
                )
                for one in ours
            ]
        keep = self._budget.finalists if number == ROUNDS else max(
            self._budget.finalists, (len(judged) + 1) // 2
        )  # fmt: skip
        kept = self._keep(judged, keep)
        best = kept[0]
        self._reporter.say(
            f"round {number}",
            f"Round {number} on {len(rows)} photos: {len(kept)} of {len(judged)} go on, first"
            f" {best.name} with {best.accuracy:.1%}.",
        )
        self._record([])
        return kept

    def _keep(self, candidates: list[Candidate], keep: int) -> list[Candidate]:
        kept, dropped = budgets.halve(candidates, self._budget, keep)
        self._dropped += dropped
        if not kept:
            nearest = min(dropped, key=lambda one: one.size_bytes)
            self._record([])
            message = (
                f"No network keeps to the budget of {self._budget.describe()}. The nearest is"
                f" {nearest.name}: {nearest.dropped}."
            )
            raise Unprocessable(message, code="budget_not_met")
        return kept

    def _measure(
        self,
        finalists: list[Candidate],
        snapshot: DatasetSnapshot,
        sets: dict[str, photos.PhotoSet],
    ) -> list[Candidate]:
        """Train and compile the finalists; return each of their files, measured."""
        files: list[Candidate] = []
        for step, one in enumerate(finalists):
            self._reporter.progress("finalists", step, len(finalists), {})
            measured = self._networks[one.network].build(
                one.depth, snapshot, sets, self._policy, self._reporter
            )
            exact = next(each for each in measured if each.precision == "float32")
            files += [
                replace(
                    one,
                    precision=made.precision,
                    size_bytes=made.size_bytes,
                    latency_ms=made.latency_ms,
                    loss=_loss(exact.right["validation"], made.right["validation"]),
                    test_correct=int(made.right["test"].sum()),
                    test_count=len(made.right["test"]),
                )
                for made in measured
            ]
            self._record(files)
        return [
            replace(one, dropped=f"breaks the budget: {why}")
            if (why := budgets.misses(one, self._budget))
            else one
            for one in files
        ]

    def _record(
        self, files: Sequence[Candidate], *, chosen: Candidate | None = None, sentence: str = ""
    ) -> None:
        """Write what is known so far, best first."""
        searches.record_result(
            search=self._search,
            candidates=[one.to_json() for one in [*files, *reversed(self._dropped)]],
            chosen=None if chosen is None else list(files).index(chosen),
            sentence=sentence,
        )


class _Network:
    """One network at hand: its features, and files made from it."""

    def __init__(self, name: str, policy: TrainingPolicy, store: BlobStore) -> None:
        self.architecture = find_architecture(name)
        self._weights = find_weights(name, settings.NIGHTFERRY_WEIGHTS, allow_download=False)
        side = self.architecture.input_size
        self._preprocessing = Preprocessing(width=side, height=side, fit=policy.fit)
        self._embedder = Embedder(
            self.architecture,
            self._weights,
            settings.NIGHTFERRY_DATA / "embedders",
            preprocessing=self._preprocessing,
        )
        self._store = store
        self._cache = photos.FeatureCache(self._embedder, store)
        self._latency_ms = 0.0
        self.multiply_adds = max(
            part.multiply_adds for part in search.measure_cuts(self.architecture, 1)
        )

    @property
    def latency_ms(self) -> float:
        """Return about how long the whole network takes for a photo here, in float32."""
        self._latency_ms = self._latency_ms or search.time_network(self._embedder)
        return self._latency_ms

    def probe(
        self,
        candidates: Sequence[Candidate],
        found: Sequence[Any],
        targets: Any,
        groups: Sequence[str],
        *,
        label_count: int,
        reporter: Reporter,
    ) -> dict[str, tuning.Trial]:
        """Return what a linear classifier makes of each depth, on people it did not see."""
        # All depths at once: one pass over a photo gives them all.
        depths = self._embedder.depths
        self._cache.fill(found, depths=depths, views=0, progress=reporter.progress)
        return tuning.probe(
            {one.depth: self._cache.load(found, one.depth) for one in candidates},
            targets,
            groups,
            label_count=label_count,
            progress=reporter.progress,
        )

    def build(
        self,
        depth: str,
        snapshot: DatasetSnapshot,
        sets: dict[str, photos.PhotoSet],
        policy: TrainingPolicy,
        reporter: Reporter,
    ) -> list[search.Measured]:
        """Train the last layer on the training photos, and compile it in every precision."""
        both = [*sets["train"].photos, *sets["validation"].photos]
        self._cache.fill(both, depths=[depth], views=0, progress=reporter.progress)
        head = ml_training.train_head(
            self._cache.load(sets["train"].photos, depth),
            sets["train"].targets,
            validation=(
                self._cache.load(sets["validation"].photos, depth),
                sets["validation"].targets,
            ),
            label_count=len(snapshot.labels),
            is_refitted=False,
            progress=reporter.progress,
        )
        calibration = photos.calibration_photos(sets["train"], policy.calibration_photos)
        return search.build_files(
            self.architecture,
            self._weights,
            head,
            snapshot.labels,
            depth=depth,
            preprocessing=self._preprocessing,
            calibration=photos.load_images(calibration, self._preprocessing, self._store),
            photos={
                split: (
                    photos.load_images(sets[split], self._preprocessing, self._store),
                    sets[split].targets,
                )
                for split in ("validation", "test")
            },
        )


def _loss(exact: Any, right: Any) -> float:
    """Return which share of photos compiling cost, nought where chance may have done it.

    That is where it is within the standard error of the paired difference: one photo is not.
    """
    if not len(right):
        return 0.0
    difference = exact.astype(np.float64) - right
    points, noise = difference.mean(), difference.std() / np.sqrt(len(difference))
    return float(points) if points > noise else 0.0


def _tested(chosen: Candidate) -> str:
    if not chosen.test_count:
        return "There are no test photos to say how it does."
    facts: dict[str, Any] = chosen.to_json()
    low, high = facts["test_interval"]
    return (
        f"On the {chosen.test_count} test photos it is right on {facts['test_accuracy']:.1%}"
        f" (95 %: {low:.1%} to {high:.1%}); they chose nothing."
    )

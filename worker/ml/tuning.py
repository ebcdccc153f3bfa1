"""How far to tune a network: measured on the photos at hand, told in one sentence.

The practitioners' table asks whether there are many photos, and whether they are like those that
the network was trained on. The first is counted. The second is measured: a linear classifier is
fitted to the features of several depths, each judged on people it has not seen. Where the upper
half of the network serves best, the photos are similar; where the lower half does, different.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from worker.ml.determinism import one_thread
from worker.ml.embeddings import TOP, Features
from worker.ml.training import Indexes, Progress, Regularisation, fit_linear

Strategy = Literal["linear", "lower", "fine_tune", "scratch"]

FOLDS: Final = 4
PROBE_PHOTOS: Final = 800
"""More would cost the night more than they would tell about the depth."""

# Fewer than for the final fit: depths are compared here, not numbers.
_PROBE_REGULARISATIONS: Final = tuple(
    Regularisation(l2, per_feature) for per_feature in (False, True) for l2 in (0.1, 0.01, 0.001)
)
_PROBE_STEPS: Final = 100


@dataclass(frozen=True)
class Terms:
    """When a gain is enough: fractions of accuracy, photos, and gain per megabyte of patch."""

    lower_min_gain: float = 0.01
    fine_tune_min_photos_per_label: int = 50
    fine_tune_min_gain: float = 0.01
    fine_tune_gain_per_megabyte: float = 0.01


@dataclass(frozen=True)
class Trial:
    """One way of tuning, and on which of the photos it did not see it was right."""

    strategy: Strategy
    depth: str
    right: npt.NDArray[np.bool_]
    """(photos,), in the same order for all trials that are compared."""
    is_by_person: bool = True
    """Whether nobody's photos were both learnt from and judged on."""

    @property
    def unseen(self) -> str:
        """Return what the photos are that it was judged on."""
        return "photos of people it did not see" if self.is_by_person else "photos it did not see"

    @property
    def accuracy(self) -> float:
        """Return the share of photos that were told rightly."""
        return float(self.right.mean())

    def to_facts(self) -> dict[str, object]:
        """Return what a model card says of it."""
        return {
            "strategy": self.strategy,
            "depth": self.depth,
            "right": int(self.right.sum()),
            "count": len(self.right),
            "accuracy": round(self.accuracy, 4),
        }


@dataclass(frozen=True)
class Gain:
    """What a challenger wins over what is there, and what it would have to win."""

    points: float
    noise: float
    """The standard error of ``points``, from the photos on which the two differ."""
    needed: float

    @property
    def is_enough(self) -> bool:
        """Return whether it is more than asked for, and more than chance gives."""
        return self.points >= max(self.needed, 1e-9) and self.points > self.noise


def measure_gain(challenger: Trial, present: Trial, needed: float) -> Gain:
    """Compare two trials photo by photo (the standard error of a difference of paired shares)."""
    difference = challenger.right.astype(np.float64) - present.right
    return Gain(
        points=float(difference.mean()),
        noise=float(difference.std() / np.sqrt(len(difference))),
        needed=needed,
    )


def fold_by_group(groups: Sequence[str], fold_count: int = FOLDS) -> list[npt.NDArray[np.int64]]:
    """Return the photos of each fold as indexes; a group, such as a person, is in one fold only.

    Folds are filled evenly, the largest groups first, and do not depend on the photos' order.
    """
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    filled = [0] * fold_count
    fold_of: dict[str, int] = {}
    for group in sorted(sizes, key=lambda name: (-sizes[name], _shuffled(name))):
        fold = filled.index(min(filled))
        fold_of[group] = fold
        filled[fold] += sizes[group]
    folds = np.array([fold_of[group] for group in groups], dtype=np.int64)
    return [np.flatnonzero(folds == fold) for fold in range(fold_count) if filled[fold]]


def fold_for_probes(
    groups: Sequence[str], labels: Indexes
) -> tuple[list[npt.NDArray[np.int64]], bool]:
    """Return folds by group, and True; by photo, and False, where groups cannot be kept apart.

    They cannot where there is one, or where all photos of a label are in one fold: then nothing
    is left to learn that label from. Nobody is kept apart either where nobody sent two photos.
    """
    folds = fold_by_group(groups)
    everywhere = all(set(labels[held]) <= set(np.delete(labels, held)) for held in folds)
    if len(folds) > 1 and everywhere:
        return folds, len(set(groups)) < len(groups)
    fold_of = np.empty(len(labels), dtype=np.int64)
    fold_of[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % FOLDS
    return [np.flatnonzero(fold_of == fold) for fold in range(min(FOLDS, len(labels)))], False


def probe(
    features: Mapping[str, Features],
    labels: Indexes,
    groups: Sequence[str],
    *,
    label_count: int,
    progress: Progress,
) -> dict[str, Trial]:
    """Return what a linear classifier makes of each depth, on photos of people it did not see.

    Of each depth the regularisation that served it best counts. Where people are too few to be
    kept apart it is judged on photos that it did not see, and each trial says so.
    """
    folds, is_by_person = fold_for_probes(groups, labels)
    found: dict[str, Trial] = {}
    with one_thread():
        for step, (depth, rows) in enumerate(features.items(), start=1):
            trials = [
                Trial(
                    strategy="linear" if depth == TOP else "lower",
                    depth=depth,
                    right=_judge(rows, labels, folds, label_count, regularisation),
                    is_by_person=is_by_person,
                )
                for regularisation in _PROBE_REGULARISATIONS
            ]
            found[depth] = max(trials, key=lambda trial: trial.accuracy)
            progress("probing", step, len(features), {"accuracy": found[depth].accuracy})
    return found


def choose_depth(trials: Mapping[str, Trial], terms: Terms) -> tuple[Trial, Gain | None]:
    """Return the trial to build on, and what it wins over the top where it is another.

    A lower depth has to win by ``lower_min_gain`` and by more than its noise.
    """
    top = trials[TOP]
    best = max(trials.values(), key=lambda trial: trial.accuracy)
    gain = measure_gain(best, top, terms.lower_min_gain)
    return (best, gain) if best is not top and gain.is_enough else (top, None)


def is_similar(chosen: str, depths: Sequence[str]) -> bool:
    """Return whether what serves best lies in the upper half of the network.

    ``depths`` go from low to high, the top last.
    """
    return list(depths).index(chosen) >= len(depths) // 2


def is_large(labels: Indexes, label_count: int, terms: Terms) -> bool:
    """Return whether the label with the fewest photos has enough to train more than a layer."""
    counts = np.bincount(labels, minlength=label_count)
    return bool(counts.min() >= terms.fine_tune_min_photos_per_label)


def sample(groups: Sequence[str], most: int = PROBE_PHOTOS) -> npt.NDArray[np.int64]:
    """Return which photos to probe with: always the same, ``most`` at the most, of all groups.

    Each group gives one photo after the other until there are enough, so that nobody who sent
    very many is left alone in the sample.
    """
    turn: dict[str, int] = {}
    turns = []
    for group in groups:
        turns.append(turn.get(group, 0))
        turn[group] = turns[-1] + 1
    order = sorted(
        range(len(groups)), key=lambda index: (turns[index], _shuffled(groups[index]), index)
    )
    return np.sort(np.array(order[:most], dtype=np.int64))


def describe_choice(chosen: Trial, gain: Gain | None, trials: Mapping[str, Trial]) -> str:
    """Say which linear classifier was chosen, and by how much it won."""
    count = len(chosen.right)
    if gain is not None:
        return (
            f"A linear classifier on {chosen.depth}, a lower layer, is right on"
            f" {chosen.accuracy:.1%} of {count} {chosen.unseen}, {_points(gain)}"
            f" more than on the top features; the network is cut there."
        )
    others = [trial for trial in trials.values() if trial is not chosen]
    if not others:
        return f"A linear classifier on the top features: {chosen.accuracy:.1%} of {count} photos."
    next_best = max(others, key=lambda trial: trial.accuracy)
    lead = (chosen.accuracy - next_best.accuracy) * 100
    against = (
        f"{lead:.1f} points more than on the best lower layer, {next_best.depth}"
        if lead >= 0
        else f"and {next_best.depth}, the best lower layer, on {-lead:.1f} points more, too few"
        " to cut the network there"
    )
    return (
        f"A linear classifier on the top features is right on {chosen.accuracy:.1%} of {count}"
        f" {chosen.unseen}, {against}."
    )


def describe_trial(tried: Trial, present: Trial, gain: Gain, patch_bytes: int) -> str:
    """Say what fine-tuning, or training from scratch, won over what was there, and if it stays."""
    name = {
        "fine_tune": f"Fine-tuning what lies above {tried.depth}",
        "scratch": "Training a network from scratch",
    }[tried.strategy]
    before = (
        "the top features" if present.depth == TOP else f"{present.depth}, where the network is cut"
    )
    change = f"{_points(gain)} {'more' if gain.points >= 0 else 'fewer'}"
    kept = "kept" if gain.is_enough else "not kept"
    noise = "" if gain.points > gain.noise else ", and more than chance gives"
    return (
        f"{name} is right on {tried.accuracy:.1%} of {len(tried.right)} validation photos, {change}"
        f" than a linear classifier on {before} ({present.accuracy:.1%}); a patch of about"
        f" {patch_bytes / 1e6:.1f} MB more asks for {gain.needed * 100:.1f}{noise}, so it is"
        f" {kept}."
    )


def _points(gain: Gain) -> str:
    return f"{abs(gain.points) * 100:.1f} points"


def _judge(
    rows: Features,
    labels: Indexes,
    folds: Sequence[npt.NDArray[np.int64]],
    label_count: int,
    regularisation: Regularisation,
) -> npt.NDArray[np.bool_]:
    right = np.zeros(len(labels), dtype=np.bool_)
    for held in folds:
        kept = np.setdiff1d(np.arange(len(labels)), held)
        head = fit_linear(
            rows[kept], labels[kept], label_count, regularisation, max_steps=_PROBE_STEPS
        )
        right[held] = head.logits(rows[held]).argmax(axis=1) == labels[held]
    return right


def _shuffled(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()

"""Fitting: a linear head on cached features, or a small network from nothing."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.determinism import one_thread, pin_tensorflow
from worker.ml.embeddings import TOP, cut, load_backbone
from worker.ml.errors import TrainingImpossible

if TYPE_CHECKING:
    import keras

    from worker.ml.architectures import Architecture
    from worker.ml.preprocessing import Pixels
    from worker.ml.weights import Weights

Progress = Callable[[str, int, int, dict[str, float]], None]
"""``(stage, step, steps in all, metrics)``; it may raise, which ends the training."""

Features = npt.NDArray[np.float32]
Indexes = npt.NDArray[np.integer[Any]]

OUTPUT_NAME: Final = "probabilities"


@dataclass(frozen=True)
class Regularisation:
    """How strongly a head is held back: ``l2 / 2`` times its squared weights on scaled features.

    Features are centred, and scaled all by one number, or ``per_feature`` to the same spread.
    """

    l2: float
    per_feature: bool


# Which scaling is better depends on the photos (benchmarks/compiled_accuracy.py shows both
# kinds): on recyclables one per feature, on hand signs one for all. The validation photos say.
REGULARISATIONS: Final = tuple(
    Regularisation(l2, per_feature)
    for per_feature in (False, True)
    for l2 in (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
)
REGULARISATION_DEFAULT: Final = Regularisation(l2=0.01, per_feature=False)
_SCREENED_ON: Final = 2000
"""Photos that a sample of many holds, or up to twice as many."""
_MAX_ITERATIONS: Final = 300
_GRADIENT_TOLERANCE: Final = 1e-5


@dataclass(frozen=True)
class Head:
    """A linear layer on raw features: ``softmax(features @ kernel + bias)``."""

    kernel: npt.NDArray[np.float32]
    """(features, labels)"""
    bias: npt.NDArray[np.float32]
    """(labels,)"""
    history: list[dict[str, float]] = field(default_factory=list)

    def logits(self, features: Features) -> npt.NDArray[np.float64]:
        """Return (photos, labels) before the softmax."""
        found: npt.NDArray[np.float64] = features.astype(np.float64) @ self.kernel + self.bias
        return found

    def probabilities(self, features: Features) -> npt.NDArray[np.float32]:
        """Return (photos, labels)."""
        return _softmax(self.logits(features)).astype(np.float32)


def train_head(
    features: Features,
    labels: Indexes,
    *,
    validation: tuple[Features, Indexes] | None = None,
    label_count: int,
    seed: int = 0,
    is_refitted: bool = True,
    progress: Progress,
) -> Head:
    """Fit multinomial logistic regression, regularised as the validation photos like it best.

    ``features`` (photos, features), ``labels`` (photos,) as indexes. Labels weigh the same
    however many photos they have. Scaling of features is folded into the result. The
    regularisation is the one with the least log loss on the validation photos, on which, with
    the others, the final fit then stands, unless ``is_refitted`` is off, for whoever wants to
    measure on them; without validation photos it is ``REGULARISATION_DEFAULT``. The problem is
    convex: ``seed`` changes nothing.

    Raises :class:`TrainingImpossible` where a label has no photo or a feature is not finite.
    """
    del seed
    _check_trainable(features, labels, label_count)
    history: list[dict[str, float]] = []
    chosen = REGULARISATION_DEFAULT
    if validation is not None and len(validation[1]):
        with one_thread():
            chosen, history = _choose_regularisation(
                features, labels, validation, label_count, progress
            )
        if is_refitted:
            features = np.concatenate([features, validation[0]])
            labels = np.concatenate([labels, validation[1]])

    def report(step: int, loss: float, accuracy: float) -> None:
        metrics = {"loss": loss, "accuracy": accuracy, "l2": chosen.l2}
        history.append({"step": float(step), **metrics})
        progress("head", step, _MAX_ITERATIONS, metrics)

    with one_thread():
        problem = _Problem(features, labels, label_count, per_feature=chosen.per_feature)
        kernel, bias = problem.solve(chosen.l2, report=report)
    progress("head", _MAX_ITERATIONS, _MAX_ITERATIONS, history[-1] if history else {})
    return Head(kernel.astype(np.float32), bias.astype(np.float32), history)


def fit_linear(
    features: Features,
    labels: Indexes,
    label_count: int,
    regularisation: Regularisation,
    *,
    max_steps: int,
) -> Head:
    """Fit multinomial logistic regression once; labels without a photo are never answered.

    Raises :class:`TrainingImpossible` where the loss is not finite.
    """
    problem = _Problem(features, labels, label_count, per_feature=regularisation.per_feature)
    kernel, bias = problem.solve(regularisation.l2, max_steps=max_steps)
    return Head(kernel.astype(np.float32), bias.astype(np.float32))


def _choose_regularisation(
    features: Features,
    labels: Indexes,
    validation: tuple[Features, Indexes],
    label_count: int,
    progress: Progress,
) -> tuple[Regularisation, list[dict[str, float]]]:
    """Return the best on the validation photos, and what each that was tried came to.

    Of many photos a sample screens the candidates: the best of it, and the next weaker one, which
    more photos rather call for, are then tried on all.
    """
    candidates: Sequence[Regularisation] = REGULARISATIONS
    stride = len(labels) // _SCREENED_ON
    if stride > 1:
        losses = [
            tried["validation_loss"]
            for tried in _try_each(
                candidates, features[::stride], labels[::stride], validation, label_count, progress
            )
        ]
        best = losses.index(min(losses))
        scaling = candidates[best].per_feature
        candidates = [one for one in candidates[best : best + 2] if one.per_feature == scaling]
    history = list(_try_each(candidates, features, labels, validation, label_count, progress))
    losses = [tried["validation_loss"] for tried in history]
    return candidates[losses.index(min(losses))], history


def _try_each(
    candidates: Sequence[Regularisation],
    features: Features,
    labels: Indexes,
    validation: tuple[Features, Indexes],
    label_count: int,
    progress: Progress,
) -> Iterator[dict[str, float]]:
    problem: _Problem | None = None
    for step, candidate in enumerate(candidates, start=1):
        # One at a time: each holds all features again, as doubles.
        if problem is None or problem.per_feature != candidate.per_feature:
            problem = None
            problem = _Problem(features, labels, label_count, per_feature=candidate.per_feature)
        kernel, bias = problem.solve(candidate.l2)
        logits = validation[0].astype(np.float64) @ kernel + bias
        metrics = {
            "l2": candidate.l2,
            "per_feature": float(candidate.per_feature),
            "validation_loss": _log_loss(logits, validation[1]),
            "validation_accuracy": float((logits.argmax(axis=1) == validation[1]).mean()),
        }
        progress("regularisation", step, len(candidates), metrics)
        yield metrics


class _Problem:
    """Multinomial logistic regression on scaled features, solved by L-BFGS from nought.

    Every fit starts from nought, so that its result does not depend on what was fitted before.
    """

    def __init__(
        self, features: Features, labels: Indexes, label_count: int, *, per_feature: bool
    ) -> None:
        self.per_feature = per_feature
        self._mean = features.mean(axis=0, dtype=np.float64)
        self._scale = _scale(features.std(axis=0, dtype=np.float64), per_feature=per_feature)
        standard = (features - self._mean) * self._scale
        # The penalty does not change under rotation: fewer photos than features leave as many
        # directions as there are photos, and the same solution at a fraction of the work.
        self._basis = _directions(standard) if len(features) < features.shape[1] else None
        self._x = standard if self._basis is None else standard @ self._basis
        self._labels = labels
        self._targets = np.eye(label_count)[labels]
        counts = np.maximum(np.bincount(labels, minlength=label_count), 1)
        self._sample_weights = (1.0 / (label_count * counts))[labels][:, None]
        self._accuracy = 0.0

    def solve(
        self,
        penalty: float,
        *,
        report: Callable[[int, float, float], None] | None = None,
        max_steps: int = _MAX_ITERATIONS,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return kernel and bias for features as they came, not standardised."""
        from scipy.optimize import OptimizeResult, minimize

        size, label_count = self._x.shape[1], self._targets.shape[1]
        initial = np.zeros((size + 1) * label_count)
        step = 0

        def after_step(intermediate_result: OptimizeResult) -> None:
            nonlocal step
            step += 1
            if report is not None:
                report(step, float(intermediate_result.fun), self._accuracy)

        solution = minimize(
            self._loss_and_gradient,
            initial,
            args=(penalty,),
            jac=True,
            method="L-BFGS-B",
            callback=after_step,
            options={"maxiter": max_steps, "gtol": _GRADIENT_TOLERANCE},
        )
        if not np.isfinite(solution.fun):
            message = "training the head did not come to a finite loss"
            raise TrainingImpossible(message)
        weights = solution.x.reshape(size + 1, label_count)
        rotated = weights[:-1] if self._basis is None else self._basis @ weights[:-1]
        kernel = rotated * self._scale[:, None]
        return kernel, weights[-1] - self._mean @ kernel

    def _loss_and_gradient(
        self, flat: npt.NDArray[np.float64], penalty: float
    ) -> tuple[float, npt.NDArray[np.float64]]:
        weights = flat.reshape(-1, self._targets.shape[1])
        kernel = weights[:-1]
        probabilities = _softmax(self._x @ kernel + weights[-1])
        self._accuracy = float((probabilities.argmax(axis=1) == self._labels).mean())
        of_label = probabilities[np.arange(len(self._labels)), self._labels]
        losses = -np.log(np.maximum(of_label, 1e-300))[:, None] * self._sample_weights
        error = (probabilities - self._targets) * self._sample_weights
        gradient = np.empty_like(weights)
        gradient[:-1] = self._x.T @ error + penalty * kernel
        gradient[-1] = error.sum(axis=0)
        return float(losses.sum() + penalty / 2 * (kernel**2).sum()), gradient.ravel()


def assemble(
    architecture: Architecture,
    weights: Weights,
    head: Head,
    labels: Sequence[str],
    *,
    depth: str = TOP,
) -> keras.Model:
    """Return the whole network: float32 RGB photos 0..255 in, a probability per label out.

    With a lower ``depth``, nothing of what lies above that layer is in it.
    """
    import keras

    backbone = cut(load_backbone(architecture, weights), [depth])
    feature_size = int(backbone.output.shape[-1])
    if head.kernel.shape != (feature_size, len(labels)):
        message = (
            f"the head is for {head.kernel.shape[1]} labels on {head.kernel.shape[0]} features, "
            f"not for {len(labels)} on {feature_size}"
        )
        raise TrainingImpossible(message)
    layer = keras.layers.Dense(len(labels), activation="softmax", name=OUTPUT_NAME)
    model = keras.Model(backbone.input, layer(backbone.output), name=backbone.name)
    layer.set_weights([head.kernel, head.bias])
    return model


def train_from_scratch(
    images: Sequence[Pixels],
    labels: Indexes,
    *,
    validation: tuple[Sequence[Pixels], Indexes] | None = None,
    label_count: int,
    architecture: Architecture,
    seed: int,
    progress: Progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> keras.Model:
    """Train every weight of ``architecture`` on these photos alone.

    ``images`` are uint8 (size, size, 3). Photos are shifted a little at random, never mirrored
    (digits and lettering would not survive it). The weights of the epoch with the least
    validation loss are kept. ``should_stop``, asked after every epoch, ends the training early
    with what there is; a ``progress`` that raises ends it with nothing.

    Raises :class:`TrainingImpossible` as :func:`train_head` does.
    """
    pixels = np.stack(list(images)).astype(np.float32)
    _check_trainable(pixels.reshape(len(pixels), -1), labels, label_count)
    pin_tensorflow(seed)
    model = _scratch_model(architecture, label_count)
    counts = np.bincount(labels, minlength=label_count)
    weights = (len(labels) / (label_count * counts))[labels].astype(np.float32)
    held = validation if validation is not None and len(validation[1]) else None
    held_out = None if held is None else (np.stack(list(held[0])).astype(np.float32), held[1])
    generator = np.random.default_rng(seed)
    best = _Best()
    epochs = min(_MOST_EPOCHS, max(_LEAST_EPOCHS, _PHOTO_VISITS // len(pixels)))
    for epoch in range(epochs):
        order = generator.permutation(len(pixels))
        fitted = model.fit(
            _shifted(pixels[order], generator),
            labels[order],
            sample_weight=weights[order],
            batch_size=_BATCH,
            shuffle=False,
            validation_data=held_out,
            verbose=0,
        )
        metrics = {_METRICS.get(key, key): value[-1] for key, value in fitted.history.items()}
        progress("scratch", epoch + 1, epochs, metrics)
        best.offer(epoch, metrics.get("validation_loss", metrics["loss"]), model)
        if should_stop() or epoch - best.epoch >= epochs // 4:
            break
    if best.weights is None:
        message = "training from scratch did not come to a finite loss"
        raise TrainingImpossible(message)
    model.set_weights(best.weights)
    return model


# Few photos are shown more often; the whole takes about a minute on two slow cores.
_PHOTO_VISITS: Final = 36_000
_LEAST_EPOCHS: Final = 12
_MOST_EPOCHS: Final = 60
_BATCH: Final = 32
_SHIFT: Final = 0.08
_LEARNING_RATE: Final = 4e-3


def _scratch_model(architecture: Architecture, label_count: int) -> keras.Model:
    import keras

    features = architecture.build(architecture.input_size)
    dropped = keras.layers.Dropout(0.2, name="dropout")(features.output)
    outputs = keras.layers.Dense(label_count, activation="softmax", name=OUTPUT_NAME)(dropped)
    model = keras.Model(features.input, outputs, name=features.name)
    model.compile(
        optimizer=keras.optimizers.Adam(_LEARNING_RATE),
        loss="sparse_categorical_crossentropy",
        weighted_metrics=["accuracy"],
    )
    return model


class _Best:
    """The weights of the epoch with the least loss."""

    def __init__(self) -> None:
        self.epoch = 0
        self.loss = math.inf
        self.weights: list[npt.NDArray[np.float32]] | None = None

    def offer(self, epoch: int, loss: float, model: keras.Model) -> None:
        if loss < self.loss:
            self.epoch, self.loss, self.weights = epoch, loss, model.get_weights()


def _shifted(
    photos: npt.NDArray[np.float32], generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Move each photo by up to ``_SHIFT`` of its side; the edge fills what comes free."""
    side = photos.shape[1]
    reach = max(1, round(side * _SHIFT))
    moves = generator.integers(-reach, reach + 1, size=(2, len(photos)))
    rows, columns = (np.arange(side) + moves[..., None]).clip(0, side - 1)
    every = np.arange(len(photos))[:, None, None]
    moved: npt.NDArray[np.float32] = photos[every, rows[:, :, None], columns[:, None, :]]
    return moved


_METRICS: Final = {"val_loss": "validation_loss", "val_accuracy": "validation_accuracy"}


def weights_digest(model: keras.Model) -> str:
    """Return a SHA-256 over the weights: equal for equal networks, as ``.keras`` files are not."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save_keras(model: keras.Model) -> bytes:
    """Return the model as a ``.keras`` file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        return path.read_bytes()


def load_keras(source: bytes | Path) -> keras.Model:
    """Return the model of a ``.keras`` file; code inside the file is never run."""
    import keras

    pin_tensorflow(0)
    with tempfile.TemporaryDirectory() as folder:
        path = source if isinstance(source, Path) else Path(folder, "model.keras")
        if isinstance(source, bytes):
            path.write_bytes(source)
        return keras.models.load_model(path, compile=False, safe_mode=True)


def _check_trainable(features: npt.NDArray[Any], labels: Indexes, label_count: int) -> None:
    if label_count < 2:  # noqa: PLR2004
        message = f"a classifier needs at least 2 labels, there is {label_count}"
        raise TrainingImpossible(message, code="too_few_labels")
    if len(features) != len(labels):
        message = f"there are {len(features)} photos but {len(labels)} labels for them"
        raise TrainingImpossible(message)
    counts = np.bincount(labels, minlength=label_count)
    if len(counts) > label_count or not counts.all():
        empty = ", ".join(str(index) for index in np.flatnonzero(counts == 0))
        message = f"every label needs training photos; without any: number {empty or '?'}"
        raise TrainingImpossible(message, code="label_without_photos")
    if not np.isfinite(features).all():
        message = "some features are not finite numbers"
        raise TrainingImpossible(message)


def _scale(spread: npt.NDArray[np.float64], *, per_feature: bool) -> npt.NDArray[np.float64]:
    """Return the factor of each feature; ``spread`` is their standard deviations."""
    typical = max(float(np.sqrt((spread**2).mean())), 1e-12)
    if not per_feature:
        return np.full_like(spread, 1.0 / typical)
    # A feature that hardly moves would be blown up into noise.
    return np.asarray(1.0 / np.maximum(spread, typical * 1e-3))


def _directions(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return an orthonormal basis (columns) of the space that the rows span."""
    values, vectors = np.linalg.eigh(rows @ rows.T)
    kept = values > values[-1] * 1e-12
    basis: npt.NDArray[np.float64] = rows.T @ (vectors[:, kept] / np.sqrt(values[kept]))
    return basis


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def _log_loss(logits: npt.NDArray[np.float64], labels: Indexes) -> float:
    of_label = _softmax(logits)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_label, 1e-15)).mean())

"""Photos made to fall into a cell of the practitioners' table, and a run that fits to them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from server import blobs
from server.photos import actions as photos
from server.photos import intake
from server.registry.models import Label, Model
from server.registry.queries import training_policy
from server.training import actions as training
from server.training.models import TrainingRun
from tests.support.data import data_folder
from worker.pipelines import fitting
from worker.pipelines.photos import split_sets
from worker.pipelines.reporting import Reporter

SIDE_PX = 224
_BLOCKS = 12


def like_imagenet(label: str, count: int) -> list[bytes]:
    """Return photos of things: what the network was trained on."""
    paths = sorted((data_folder("recyclables") / label).glob("*.jpg"))[:count]
    return [path.read_bytes() for path in paths]


def unlike_imagenet(label: str, count: int) -> list[bytes]:
    """Return mosaics whose label is which colour has more tiles: nothing that has a shape."""
    generator = np.random.default_rng(3 if label == "warm" else 4)
    share = 0.58 if label == "warm" else 0.42
    shape = (_BLOCKS, _BLOCKS, 3)
    made = []
    for _ in range(count):
        is_warm = generator.random((_BLOCKS, _BLOCKS, 1)) < share
        warm = generator.integers(120, 256, shape) * np.array([1.0, 0.6, 0.5])
        cold = generator.integers(120, 256, shape) * np.array([0.5, 0.6, 1.0])
        tiles = Image.fromarray(np.where(is_warm, warm, cold).astype(np.uint8))
        file = io.BytesIO()
        tiles.resize((SIDE_PX, SIDE_PX), Image.Resampling.NEAREST).save(file, "PNG")
        made.append(file.getvalue())
    return made


def bring(
    model: Model, make: Callable[[str, int], Sequence[bytes]], count: int, *, people: int = 10
) -> None:
    """Import ``count`` photos of each label; the people took turns."""
    for label in model.labels.all():
        for number, content in enumerate(make(label.name, count)):
            found = intake.examine(io.BytesIO(content), limits=photos.limits_of(model))
            photos.import_photo(
                model=model,
                label=Label.objects.get(pk=label.pk),
                found=found,
                contributor=f"person{number % people}",
                is_accepted=True,
            )


def fit(model: Model) -> tuple[fitting.Trained, list[str]]:
    """Fit to the model's photos as a run does; return the network and what the run said."""
    run = training.start_run(run_id=training.request_run(model=model).pk)
    try:
        return fit_run(run), list(run.lines.exclude(message="").values_list("message", flat=True))
    finally:
        training.fail_run(run_id=run.pk, reason="only the network was wanted")


def fit_run(run: TrainingRun) -> fitting.Trained:
    """Fit to the photos of a run."""
    snapshot = training.freeze_snapshot(run=run)
    context: Any = SimpleNamespace(check_alive=lambda: None)
    return fitting.fit(
        run,
        snapshot,
        split_sets(snapshot),
        training_policy(run.model),
        Reporter(run, context),
        blobs.store(),
    )

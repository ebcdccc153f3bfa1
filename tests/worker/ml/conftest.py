"""Real photos, real weights, and one small network trained on them for all tests here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.data import data_folder
from worker.ml import compilers
from worker.ml.architectures import find_architecture
from worker.ml.preprocessing import Pixels, default_preprocessing, load_image

if TYPE_CHECKING:
    import keras

LABELS = ["cardboard", "glass", "metal", "paper", "plastic", "trash"]
BACKBONE = "mobilenet_v2_0.35_224"
SMALL_SIDE = 32


@dataclass(frozen=True)
class Photos:
    """Photos of every label in turn, as pixels."""

    paths: list[Path]
    images: list[Pixels]
    indexes: npt.NDArray[np.int64]


@pytest.fixture(scope="session")
def weights_folder() -> Path:
    return data_folder("weights")


@pytest.fixture(scope="session")
def load_photos() -> Callable[[int, int], Photos]:
    def load(per_label: int, side: int) -> Photos:
        folder = data_folder("recyclables")
        columns = [sorted((folder / label).glob("*.jpg"))[:per_label] for label in LABELS]
        paths = [path for row in zip(*columns, strict=True) for path in row]
        images = [load_image(path, default_preprocessing(side)) for path in paths]
        return Photos(paths, images, np.arange(len(paths)) % len(LABELS))

    return load


@pytest.fixture(scope="session")
def small_model() -> keras.Model:
    """A small network with batch normalisation that has seen something, for six labels."""
    from worker.ml.training import train_from_scratch

    generator = np.random.default_rng(3)
    images = list(generator.integers(0, 256, (24, SMALL_SIDE, SMALL_SIDE, 3), dtype=np.uint8))

    def count(stage: str, step: int, total: int, metrics: dict[str, float]) -> None:
        del stage, total, metrics
        seen.append(step)

    seen: list[int] = []
    return train_from_scratch(
        images,
        np.arange(24) % len(LABELS),
        label_count=len(LABELS),
        architecture=find_architecture("small_cnn").at(SMALL_SIDE),
        seed=1,
        progress=count,
        should_stop=lambda: len(seen) >= 2,
    )


@pytest.fixture(scope="session")
def small_photos(load_photos: Callable[[int, int], Photos]) -> Photos:
    return load_photos(5, SMALL_SIDE)


@pytest.fixture(scope="session")
def made(
    small_model: keras.Model, small_photos: Photos
) -> dict[tuple[str, str], compilers.CompiledFile]:
    """All variants of one small network."""
    return {
        (runtime, precision): compilers.compile_variant(
            small_model,
            runtime,
            precision,
            labels=LABELS,
            preprocessing=default_preprocessing(SMALL_SIDE),
            calibration_images=small_photos.images,
            name="recyclables",
            version="3",
            author="A volunteer group",
            license="CC0-1.0",
        )
        for runtime, precision in compilers.VARIANTS
    }


@pytest.fixture
def silent() -> Callable[..., Any]:
    return lambda *_: None

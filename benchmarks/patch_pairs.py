"""Real pairs of compiled files, as a night of training leaves them, for ``benchmarks.patches``.

    python -m benchmarks.patch_pairs FOLDER [--backbone NAME] [--data FOLDER]

Trains on the photos of recyclables and compiles with the worker's own compilers: a base; its head
retrained on a third more photos; its top 20 layers and all its layers fine-tuned; and the step
from four labels to six. Files that are there already are kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.ml.determinism import pin

REPOSITORY = Path(__file__).resolve().parents[1]
CALIBRATION_PHOTOS = 100
VARIANTS = (("tflite", "float32"), ("tflite", "float16"), ("tflite", "int8"), ("coreml", "float16"))
PAIRS = {
    "head retrained": ("base", "head"),
    "top 20 layers": ("base", "top20"),
    "top 20, ten times the rate": ("base", "top20fast"),
    "all layers": ("base", "all"),
    "two labels added": ("four", "base"),
}
DEFAULT_BACKBONE = "mobilenet_v2_1.0_224"
_BATCH = 16
_TOP_LAYERS = 20
_TOP_EPOCHS = 2
_FEW_STEPS = 10
_LEARNING_RATES = {"top20": 1e-4, "top20fast": 1e-3, "all": 1e-5}


@dataclass(frozen=True)
class Photos:
    """Pixels and labels in a fixed random order; the last quarter comes in the second night."""

    images: list[Any]
    indexes: Any
    labels: list[str]

    @property
    def first_night(self) -> int:
        return len(self.images) * 3 // 4


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    add_options(arguments)
    options = arguments.parse_args()
    build(options.folder, options.backbone, options.data)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides how pairs are built."""
    data = os.environ.get("NIGHTFERRY_TEST_DATA") or REPOSITORY.parent / "shared" / "data"
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--data", type=Path, default=Path(data))


def path_of(folder: Path, network: str, runtime: str, precision: str) -> Path:
    """Return where a compiled file of a pair lies."""
    return folder / f"{network}.{runtime}-{precision}"


def build(folder: Path, backbone: str, data: Path) -> None:
    """Make every file that ``folder`` lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = sorted({network for pair in PAIRS.values() for network in pair})
    wanted = [n for n in networks if any(not path_of(folder, n, *v).exists() for v in VARIANTS)]
    if not wanted:
        return
    pin(0)
    photos, features = _load(backbone, data)
    for network in wanted:
        model, labels = _train(network, backbone, data, photos, features)
        for runtime, precision in VARIANTS:
            path = path_of(folder, network, runtime, precision)
            if not path.exists():
                path.write_bytes(_compile(model, labels, photos, runtime, precision))
                print(f"{path.name}: {path.stat().st_size} bytes", file=sys.stderr, flush=True)


def _load(backbone: str, data: Path) -> tuple[Photos, Any]:
    import numpy as np

    from worker.ml.architectures import find_architecture
    from worker.ml.embeddings import Embedder
    from worker.ml.preprocessing import Preprocessing, load_image
    from worker.ml.weights import find_weights

    architecture = find_architecture(backbone)
    preprocessing = Preprocessing(architecture.input_size, architecture.input_size)
    paths = sorted((data / "recyclables").glob("*/*.jpg"))
    order = np.random.default_rng(0).permutation(len(paths))
    paths = [paths[index] for index in order]
    labels = sorted({path.parent.name for path in paths})
    images = [load_image(path, preprocessing) for path in paths]
    with tempfile.TemporaryDirectory() as cache:
        weights = find_weights(backbone, data / "weights", allow_download=False)
        embedder = Embedder(architecture, weights, Path(cache), preprocessing=preprocessing)
        features = embedder.embed(images)
    return Photos(images, np.array([labels.index(p.parent.name) for p in paths]), labels), features


def _train(
    network: str, backbone: str, data: Path, photos: Photos, features: Any
) -> tuple[Any, list[str]]:
    from worker.ml import training
    from worker.ml.architectures import find_architecture
    from worker.ml.weights import find_weights

    count = len(photos.images) if network == "head" else photos.first_night
    labels = photos.labels[:4] if network == "four" else photos.labels
    chosen = [index for index in range(count) if photos.indexes[index] < len(labels)]
    head = training.train_head(
        features[chosen],
        photos.indexes[chosen],
        label_count=len(labels),
        seed=0,
        progress=lambda *_: None,
    )
    weights = find_weights(backbone, data / "weights", allow_download=False)
    model = training.assemble(find_architecture(backbone), weights, head, labels)
    if network in _LEARNING_RATES:
        _fine_tune(model, photos, network)
    return model, labels


def _fine_tune(model: Any, photos: Photos, network: str) -> None:
    """Train further from the base, with batch normalisation left as it is, as is usual."""
    import numpy as np

    from worker.ml.determinism import pin_tensorflow

    tf = pin_tensorflow(1)
    layers = model.layers[-_TOP_LAYERS:] if network.startswith("top20") else model.layers
    for layer in model.layers:
        layer.trainable = layer in layers and "BatchNormalization" not in type(layer).__name__
    model.compile(
        optimizer=tf.keras.optimizers.Adam(_LEARNING_RATES[network]),
        loss="sparse_categorical_crossentropy",
    )
    steps = _FEW_STEPS if network == "all" else photos.first_night * _TOP_EPOCHS // _BATCH
    generator = np.random.default_rng(1)
    queue = [i for _ in range(_TOP_EPOCHS) for i in generator.permutation(photos.first_night)]
    for step in range(steps):
        batch = queue[step * _BATCH : (step + 1) * _BATCH]
        pixels = np.stack([photos.images[index] for index in batch]).astype(np.float32)
        loss = model.train_on_batch(pixels, photos.indexes[batch])
        if step % 10 == 0:
            print(
                f"{network}: step {step} of {steps}, loss {loss:.3f}", file=sys.stderr, flush=True
            )


def _compile(model: Any, labels: list[str], photos: Photos, runtime: str, precision: str) -> bytes:
    from worker.ml.compilers import compile_variant
    from worker.ml.preprocessing import Preprocessing
    from worker.ml.training import weights_digest

    side = photos.images[0].shape[0]
    return compile_variant(
        model,
        runtime,
        precision,
        labels=labels,
        preprocessing=Preprocessing(side, side),
        # The same photos in every night, as the pipeline pins them.
        calibration_images=photos.images[:CALIBRATION_PHOTOS],
        name="benchmark",
        version=weights_digest(model)[:12],
    ).data


if __name__ == "__main__":
    main()

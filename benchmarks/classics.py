"""The classic networks on the sets they are known for, by the worker's own training.

    python -m benchmarks.classics FOLDER [NAME ...] [--train COUNT] [--test COUNT]

FOLDER holds MNIST's idx files or CIFAR's batches, as ``manage.py import_photos`` takes them. Where
both halves are there, the published test half is the test (files named t10k or test), else a
fifth drawn at random; an eighth of the rest tells when to stop. One thread. The talks that this
project grew from name about .94 for the perceptron, .97 for convolutions on MNIST and .70 on
CIFAR-10, with the whole set.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

NETWORKS = {28: ("mnist_mlp", "mnist_cnn"), 32: ("cifar_cnn",)}
TEST_FILES = ("t10k", "test")


def main() -> int:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--train", type=int, help="photos to train on, all unless given")
    parser.add_argument("--test", type=int, help="photos to test on, all unless given")
    arguments = parser.parse_args()

    from worker.ml.determinism import pin

    print(pin(0))
    from server.photos.datasets import read_dataset

    dataset = read_dataset(arguments.folder)
    if dataset is None:
        print(f"{arguments.folder} holds neither MNIST's nor CIFAR's files")
        return 1
    train, test = _split(dataset, arguments)
    print(f"{dataset.kind}: {len(train[1])} to train, {len(test[1])} to test")
    print("| network | right | epochs | CPU s |\n|---|---|---|---|", flush=True)
    for name in arguments.names or NETWORKS[dataset.side_px]:
        print(_row(name, train, test, len(dataset.labels)), flush=True)
    return 0


def _split(dataset: Any, arguments: argparse.Namespace) -> tuple[Any, Any]:
    import numpy as np

    tiles = dataset.tiles
    images = [
        np.frombuffer(tile.rows, np.uint8)
        .reshape(tile.height, tile.width, tile.channels)
        .repeat(3 // tile.channels, axis=2)
        for tile in tiles
    ]
    truth = np.array([dataset.labels.index(tile.label) for tile in tiles])
    order = np.random.default_rng(0).permutation(len(tiles))
    is_test = np.array([tiles[index].name.startswith(TEST_FILES) for index in order])
    if is_test.all() or not is_test.any():
        is_test = np.arange(len(tiles)) >= len(tiles) * 4 // 5
    parts = (order[~is_test][: arguments.train], order[is_test][: arguments.test])
    return tuple(([images[index] for index in part], truth[part]) for part in parts)  # type: ignore[return-value]


def _row(name: str, train: Any, test: Any, label_count: int) -> str:
    from worker.ml import evaluation, training
    from worker.ml.architectures import find_architecture

    images, truth = train
    kept = len(images) - len(images) // 8
    epochs: list[Any] = []
    begun = time.process_time()
    model = training.train_from_scratch(
        images[:kept],
        truth[:kept],
        validation=(images[kept:], truth[kept:]),
        label_count=label_count,
        architecture=find_architecture(name),
        seed=1,
        progress=lambda *_: epochs.append(None),
    )
    answers = evaluation.predict_keras(model, test[0]).argmax(axis=1)
    spent = time.process_time() - begun
    return f"| {name} | {(answers == test[1]).mean():.4f} | {len(epochs)} | {spent:.0f} |"


if __name__ == "__main__":
    sys.exit(main())

"""Accuracy of what ships: Keras and every compiled TFLite file, on photos nobody trained on.

    python -m benchmarks.compiled_accuracy [--seeds 5] [--backbone NAME] [--fit FIT] [--data FOLDER]

Recyclables: stratified 75/25, seeds 0-4 (a random split of photos that show the same objects
several times: it flatters everyone alike, the reference too). Sign digits: a quarter of the
people is kept for the test. Validation photos are taken from the training part. The reference is
scikit-learn's logistic regression on the same features and split, with its defaults.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.ml.determinism import pin

REPOSITORY = Path(__file__).resolve().parents[1]
SEEDS = 5
CALIBRATION_PHOTOS = 100
TARGETS = {"recyclables": 0.78, "sign_digits": 0.90}


@dataclass(frozen=True)
class Dataset:
    """Photos as pixels, their features, labels, and the people behind them where known."""

    name: str
    labels: list[str]
    images: list[Any]
    features: Any
    indexes: Any
    people: Any | None


@dataclass(frozen=True)
class Results:
    """Rows of a table; one value for each seed."""

    table: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    sizes: dict[str, int] = field(default_factory=dict)
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def main() -> int:
    """Print the tables; return 1 where a mean stays below its target."""
    arguments = _arguments()
    pins = pin(0)
    sys.stdout.write(f"{pins}\n")
    with tempfile.TemporaryDirectory() as cache:
        results = [
            _measure(_load(name, arguments, Path(cache)), arguments) for name in arguments.datasets
        ]
    return 0 if all(results) else 1


def _arguments() -> argparse.Namespace:
    data = os.environ.get("NIGHTFERRY_TEST_DATA") or REPOSITORY.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--backbone", default="mobilenet_v2_0.35_224")
    parser.add_argument("--fit", default="stretch", choices=["stretch", "center_crop"])
    parser.add_argument("--datasets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    return parser.parse_args()


def _load(name: str, arguments: argparse.Namespace, cache: Path) -> Dataset:
    import numpy as np

    from worker.ml.architectures import find_architecture
    from worker.ml.embeddings import Embedder
    from worker.ml.preprocessing import Preprocessing, load_image
    from worker.ml.weights import find_weights

    architecture = find_architecture(arguments.backbone)
    side = architecture.input_size
    weights = find_weights(arguments.backbone, arguments.data / "weights", allow_download=False)
    preprocessing = Preprocessing(side, side, fit=arguments.fit)
    embedder = Embedder(architecture, weights, cache, preprocessing=preprocessing)
    paths = sorted((arguments.data / name).glob("*/*.jpg"))
    labels = sorted({path.parent.name for path in paths})
    images = [load_image(path, preprocessing) for path in paths]
    embedder.embed(images[:1])
    begun = time.process_time()
    features = embedder.embed(images)
    per_photo = (time.process_time() - begun) / len(images) * 1000
    sys.stdout.write(f"\n{name}: {len(images)} photos, {per_photo:.1f} CPU ms to embed one\n")
    return Dataset(
        name=name,
        labels=labels,
        images=images,
        features=features,
        indexes=np.array([labels.index(path.parent.name) for path in paths]),
        people=_people(arguments.data / name, paths),
    )


def _people(folder: Path, paths: list[Path]) -> Any | None:
    import numpy as np

    with (folder / "files.csv").open() as file:
        rows = {row["file"]: row.get("contributor") for row in csv.DictReader(file)}
    named = [rows[path.relative_to(folder).as_posix()] for path in paths]
    return np.array(named) if all(named) else None


def _split(dataset: Dataset, seed: int) -> tuple[Any, Any, Any]:
    """Return indexes of training, validation and test photos."""
    import numpy as np
    from sklearn.model_selection import train_test_split

    every = np.arange(len(dataset.images))
    if dataset.people is None:
        truth = dataset.indexes
        rest, test = train_test_split(every, test_size=0.25, stratify=truth, random_state=seed)
        train, held = train_test_split(rest, test_size=0.2, stratify=truth[rest], random_state=seed)
        return train, held, test
    people = np.unique(dataset.people)
    np.random.default_rng(seed).shuffle(people)
    quarter, fifth = len(people) // 4, len(people) * 3 // 20
    chosen = (people[quarter + fifth :], people[quarter : quarter + fifth], people[:quarter])
    train, held, test = (every[np.isin(dataset.people, group)] for group in chosen)
    return train, held, test


def _measure(dataset: Dataset, arguments: argparse.Namespace) -> bool:
    import numpy as np

    results = Results()
    for seed in range(arguments.seeds):
        _measure_seed(dataset, seed, arguments, results)
    _print(dataset, results)
    return bool(np.mean(results.table["keras"]) >= TARGETS[dataset.name])


def _measure_seed(
    dataset: Dataset, seed: int, arguments: argparse.Namespace, results: Results
) -> None:
    from sklearn.linear_model import LogisticRegression

    from worker.ml import compilers, evaluation, training
    from worker.ml.architectures import find_architecture
    from worker.ml.weights import find_weights

    table = results.table
    train, held, test = _split(dataset, seed)
    rest = [*train, *held]
    features, truth = dataset.features, dataset.indexes
    reference = LogisticRegression(max_iter=2000).fit(features[rest], truth[rest])
    table["reference"].append(float((reference.predict(features[test]) == truth[test]).mean()))
    begun = time.process_time()
    head = training.train_head(
        features[train],
        truth[train],
        validation=(features[held], truth[held]),
        label_count=len(dataset.labels),
        seed=seed,
        progress=lambda *_: None,
    )
    table["head, CPU s"].append(time.process_time() - begun)
    weights = find_weights(arguments.backbone, arguments.data / "weights", allow_download=False)
    model = training.assemble(find_architecture(arguments.backbone), weights, head, dataset.labels)
    photos = [dataset.images[index] for index in test]

    def accuracy(probabilities: Any) -> float:
        measured = evaluation.measure(probabilities, truth[test].tolist(), dataset.labels)
        return float(measured["accuracy"])

    exact = evaluation.predict_keras(model, photos)
    table["keras"].append(accuracy(exact))
    calibration = [dataset.images[index] for index in train[:CALIBRATION_PHOTOS]]
    for runtime, precision in compilers.USUAL:
        row = f"{runtime} {precision}"
        file = _compile(model, row, dataset.labels, arguments, calibration, results)
        if runtime == "tflite":
            answers, latency = evaluation.predict_tflite(file, photos)
            table[row].append(accuracy(answers))
            table[f"{row}, agreement"].append(evaluation.agreement(answers, exact)["top1"])
            results.latencies[row].append(latency["p50"])


def _compile(
    model: Any,
    row: str,
    labels: list[str],
    arguments: argparse.Namespace,
    calibration: list[Any],
    results: Results,
) -> bytes:
    from worker.ml import compilers
    from worker.ml.preprocessing import Preprocessing

    runtime, precision = row.split()
    side = calibration[0].shape[0]
    begun = time.process_time()
    file = compilers.compile_variant(
        model,
        runtime,
        precision,
        labels=labels,
        preprocessing=Preprocessing(side, side, fit=arguments.fit),
        calibration_images=calibration,
        name="benchmark",
        version="0",
    )
    results.table[f"{row}, CPU s"].append(time.process_time() - begun)
    results.table[f"{row}, checks failed"].append(len(file.failures))
    results.sizes[row] = len(file.data)
    return file.data


def _print(dataset: Dataset, results: Results) -> None:
    import numpy as np

    from worker.ml import compilers

    sys.stdout.write(
        f"{'what':18} {'accuracy':>8} {'lowest':>7} {'highest':>7} {'agrees':>7} "
        f"{'bytes':>9} {'p50 ms':>7} {'CPU s':>6}  checks\n"
    )
    table, sizes, latencies = results.table, results.sizes, results.latencies
    rows = ["reference", "keras", *(" ".join(variant) for variant in compilers.USUAL)]
    for row in rows:
        accuracy, agrees = table.get(row), table.get(f"{row}, agreement")
        seconds = table.get("head, CPU s" if row == "keras" else f"{row}, CPU s")
        failed = table.get(f"{row}, checks failed")
        three = [np.mean(accuracy), min(accuracy), max(accuracy)] if accuracy else [None] * 3
        cells = [
            *(f"{value:.3f}" if value is not None else "-" for value in three),
            f"{np.mean(agrees):.3f}" if agrees else "-",
            str(sizes.get(row, "-")),
            f"{np.median(latencies[row]):.2f}" if row in latencies else "-",
            f"{np.mean(seconds):.1f}" if seconds else "-",
        ]
        widths = (8, 7, 7, 7, 9, 7, 6)
        line = " ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        checks = "" if failed is None else ("all passed" if not sum(failed) else "FAILED")
        sys.stdout.write(f"{row:18} {line}  {checks}\n")
    mean = float(np.mean(table["keras"]))
    verdict = "reached" if mean >= TARGETS[dataset.name] else "MISSED"
    sys.stdout.write(f"target {TARGETS[dataset.name]:.2f}: {verdict} with {mean:.3f}\n")


if __name__ == "__main__":
    sys.exit(main())

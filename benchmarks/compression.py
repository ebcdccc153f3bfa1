"""What every kind of compiled file weighs, loses and costs, on recyclables.

    python -m benchmarks.compression [--backbone NAME] [--epochs 3] [--per-label 120]
        [--kinds KIND …] [--seed 0] [--data FOLDER]

One head is trained on frozen features and every kind is compiled from it, each in a process of
its own: CPU seconds and peak memory are of compiling alone (with TensorFlow's own, which the
first line shows), the training steps' CPU seconds stand beside it. Accuracy is on a quarter of
the photos (stratified; photos show the same objects several times, which flatters every row
alike). TFLite files are run by LiteRT, with its latency on this machine in 2 threads; Core ML
files by the evaluator of worker/ml/coreml, whose latency says nothing about a phone and is left
out. "zipped" is the size after deflate, as in an app's archive.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
CALIBRATION_PHOTOS = 100
COREML_PHOTOS = 90
COLUMNS = (
    f"{'kind':24} {'bytes':>9} {'zipped':>9} {'accuracy':>8} {'interval':>13} {'agrees':>6}"
    f" {'p50 ms':>7} {'CPU s':>6} {'trained':>7} {'peak MiB':>8}  verdict\n"
)


def main() -> int:
    """Print the table."""
    arguments = _arguments()
    if arguments.child:
        _measure_one(arguments)
        return 0
    from server.domain.variants import MENU

    with tempfile.TemporaryDirectory() as folder:
        exact = _prepare(arguments, Path(folder))
        sys.stdout.write(f"{arguments.backbone}: {exact}\n{COLUMNS}")
        sys.stdout.flush()
        for kind in ["nothing", *(arguments.kinds or MENU)]:
            _print(kind, _in_own_process(kind, arguments, folder))
    return 0


def _arguments() -> argparse.Namespace:
    data = os.environ.get("NIGHTFERRY_TEST_DATA") or REPOSITORY.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument("--backbone", default="mobilenet_v2_0.35_224")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--per-label", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=[])
    parser.add_argument("--costs-only", action="store_true", help="compile, and measure no file")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _prepare(arguments: argparse.Namespace, folder: Path) -> str:
    """Train a head; leave the network and the photos for the processes that compile."""
    from worker.ml.determinism import pin

    pin(arguments.seed)
    import numpy as np
    from sklearn.model_selection import train_test_split

    from worker.ml import evaluation, training
    from worker.ml.architectures import find_architecture
    from worker.ml.embeddings import Embedder
    from worker.ml.preprocessing import default_preprocessing, load_image
    from worker.ml.weights import find_weights

    architecture = find_architecture(arguments.backbone)
    weights = find_weights(arguments.backbone, arguments.data / "weights", allow_download=False)
    preprocessing = default_preprocessing(architecture.input_size)
    photos = arguments.data / "recyclables"
    labels = sorted(path.name for path in photos.iterdir() if path.is_dir())
    paths = [
        p for one in labels for p in sorted((photos / one).glob("*.jpg"))[: arguments.per_label]
    ]
    truth = np.array([labels.index(path.parent.name) for path in paths])
    images = np.stack([load_image(path, preprocessing) for path in paths])
    features = Embedder(architecture, weights, folder, preprocessing=preprocessing).embed(images)
    train, test = train_test_split(
        np.arange(len(paths)), test_size=0.25, stratify=truth, random_state=arguments.seed
    )
    head = training.train_head(
        features[train], truth[train], label_count=len(labels), progress=lambda *_: None
    )
    model = training.assemble(architecture, weights, head, labels)
    (folder / "model.keras").write_bytes(training.save_keras(model))
    exact = evaluation.predict_keras(model, images[test])
    np.savez(
        folder / "photos.npz", train=images[train], train_truth=truth[train], test=images[test],
        truth=truth[test], exact=exact, labels=labels,
    )  # fmt: skip
    measured = evaluation.measure(exact, truth[test].tolist(), labels)
    low, high = measured["interval"]
    return (
        f"Keras {measured['accuracy']:.3f} ({low:.3f} to {high:.3f}) on {len(test)} test photos,"
        f" {len(train)} to train, {arguments.epochs} epochs after compression"
    )


def _in_own_process(kind: str, arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "benchmarks.compression", "--child", kind, "--folder", folder,
        "--epochs", str(arguments.epochs), "--seed", str(arguments.seed),
        *(["--costs-only"] if arguments.costs_only else []),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["ended without a word"])[-1][:120]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _measure_one(arguments: argparse.Namespace) -> None:
    """Compile one kind here, and print what came of it as JSON."""
    from worker.ml.determinism import pin

    pin(arguments.seed)
    import numpy as np

    from worker.ml import compilers, training
    from worker.ml.preprocessing import default_preprocessing

    with np.load(arguments.folder / "photos.npz") as stored:
        photos = {name: stored[name] for name in stored.files}
    model = training.load_keras(arguments.folder / "model.keras")
    if arguments.child == "nothing":
        sys.stdout.write("\n" + json.dumps({"peak": _peak()}) + "\n")
        return
    runtime, precision = arguments.child.split(":")
    preprocessing = default_preprocessing(model.input_shape[1])
    begun = time.process_time()
    compressed = _compress(model, (runtime, precision), photos, preprocessing, arguments)
    trained = time.process_time() - begun
    begun = time.process_time()
    made = compilers.compile_variant(
        model,
        runtime,
        precision,
        labels=[str(label) for label in photos["labels"]],
        preprocessing=preprocessing,
        calibration_images=list(photos["train"][:CALIBRATION_PHOTOS]),
        name="benchmark",
        version="0",
        compressed=compressed,
    )
    found = {
        "bytes": len(made.data),
        "zipped": len(zlib.compress(made.data, 6)),
        "cpu": time.process_time() - begun,
        "trained": trained if compressed is not None else None,
        "peak": _peak(),
        "failures": made.failures,
    }
    if not arguments.costs_only:
        found |= _judge(made.data, runtime, photos)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def _compress(
    model: Any,
    kind: tuple[str, str],
    photos: dict[str, Any],
    preprocessing: Any,
    arguments: argparse.Namespace,
) -> Any:
    from worker.ml import evaluation
    from worker.ml.compression import RECIPES, TrainingPhotos, compress

    recipe = RECIPES.get(kind)
    if recipe is None or not recipe.is_tuned:
        return None
    images = list(photos["train"])
    answers = evaluation.predict_keras(model, images)
    return compress(
        model,
        recipe,
        TrainingPhotos(images, photos["train_truth"], answers, preprocessing),
        epochs=arguments.epochs,
        seed=arguments.seed,
        progress=lambda *_: None,
    )


def _judge(content: bytes, runtime: str, photos: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from server.domain.policy import TrainingPolicy
    from server.domain.promotion import judge_variant
    from worker.ml import evaluation
    from worker.ml.coreml import CoreMLModel

    test, truth, exact = photos["test"], photos["truth"], photos["exact"]
    latency: dict[str, float] = {}
    if runtime == "coreml":
        count = min(COREML_PHOTOS, len(test))
        places = np.linspace(0, len(test) - 1, count).round().astype(int)
        test, truth, exact = test[places], truth[places], exact[places]
        answers = evaluation.predict_coreml(CoreMLModel(content), list(test))
    else:
        answers, latency = evaluation.predict_tflite(content, list(test))
    labels = [str(label) for label in photos["labels"]]
    measured = evaluation.measure(answers, truth.tolist(), labels)
    called, before = answers.argmax(axis=1), exact.argmax(axis=1)
    right = list(zip((called == truth).tolist(), (before == truth).tolist(), strict=True))
    policy = TrainingPolicy()
    verdict = judge_variant(
        (called == before).tolist(),
        right,
        tolerance=policy.variant_tolerance,
        min_agreement=policy.variant_agreement,
    )
    return {
        "accuracy": measured["accuracy"],
        "interval": measured["interval"],
        "count": measured["count"],
        "agrees": float((called == before).mean()),
        "p50": latency.get("p50"),
        "refusal": verdict.refusal,
    }


def _peak() -> float:
    """Return this process's largest memory in MiB.

    Not getrusage's word: that begins with the parent's, and an exec does not forget it.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) / 1024


def _print(kind: str, found: dict[str, Any]) -> None:
    if "error" in found:
        sys.stdout.write(f"{kind:24} {found['error']}\n")
        return
    interval = found.get("interval")
    cells = (
        _cell(found.get("bytes"), 9, "d"),
        _cell(found.get("zipped"), 9, "d"),
        _cell(found.get("accuracy"), 8, ".3f"),
        (f"{interval[0]:.3f}-{interval[1]:.3f}" if interval else "").rjust(13),
        _cell(found.get("agrees"), 6, ".3f"),
        _cell(found.get("p50"), 7, ".2f"),
        _cell(found.get("cpu"), 6, ".1f"),
        _cell(found.get("trained"), 7, ".0f"),
        _cell(found.get("peak"), 8, ".0f"),
    )
    verdict = "; ".join(found.get("failures", ())) or found.get("refusal") or ""
    if kind != "nothing" and not verdict and "accuracy" in found:
        verdict = f"ships ({found['count']} photos)"
    sys.stdout.write(f"{kind:24} {' '.join(cells)}  {verdict}\n")
    sys.stdout.flush()


def _cell(value: Any, width: int, form: str) -> str:
    return (format(value, form) if value is not None else "").rjust(width)


if __name__ == "__main__":
    sys.exit(main())

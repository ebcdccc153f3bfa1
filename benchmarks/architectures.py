"""Which architecture becomes which file: size, and agreement with Keras on real photos.

    python -m benchmarks.architectures [NAME ...] [--side 96] [--photos 24] [--data FOLDER]

One row for each architecture and kind of file. Networks whose weights lie in the data folder have
them; all others have drawn weights, with batch normalisation's statistics taken from the photos,
as networks drawn at random else give features that hardly depend on the photo. A linear head for
the six labels of recyclables is fitted on the features. Resizable networks take photos of
``--side`` pixels: their weights, and so the files, are those of the full size, and the time is
not. Each network runs in a process of its own.

The error is the root mean square difference from Keras's probabilities, as a share of their
spread between photos; a network whose own answers do not vary is refused. Core ML files are
calculated by the MIL definitions, not by a phone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
KINDS = ("tflite:float32", "tflite:int8", "coreml:float16")
LEAST_SPREAD = 0.01
NOT_RESIZED = {"mnist_mlp": 28, "mnist_cnn": 28, "cifar_cnn": 32}


def main() -> int:
    """Print a row for each architecture and kind."""
    arguments = _arguments()
    if arguments.alone:
        return _measure(arguments.names[0], arguments)
    print(
        f"| network | side | {' | '.join(f'{kind} MB, same label, error' for kind in KINDS)} | s |"
    )
    print("|---|---" * 1 + "|---" * (len(KINDS) + 1) + "|", flush=True)
    for name in arguments.names or _families():
        options = ["--side", str(arguments.side), "--photos", str(arguments.photos)]
        options += ["--data", str(arguments.data), "--alone"]
        command = [sys.executable, "-m", "benchmarks.architectures", name, *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
        if done.returncode:
            print(f"| {name} | | failed: {done.stderr.strip().splitlines()[-1]} |", flush=True)
        else:
            print(done.stdout.strip().splitlines()[-1], flush=True)
    return 0


def _arguments() -> argparse.Namespace:
    data = os.environ.get("NIGHTFERRY_TEST_DATA") or REPOSITORY.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _families() -> list[str]:
    """Return one width and size of those families that come in many, and all the rest."""
    from worker.ml.architectures import ARCHITECTURES

    kept = {"mobilenet_0.25_128", "mobilenet_1.0_224", "mobilenet_v2_0.35_224"}
    many = ("mobilenet_0", "mobilenet_1", "mobilenet_v2")
    return [name for name in ARCHITECTURES if name in kept or not name.startswith(many)]


def _measure(name: str, arguments: argparse.Namespace) -> int:
    from worker.ml.determinism import pin, pin_tensorflow

    pin(0)
    pin_tensorflow(0)
    begun = time.process_time()
    from worker.ml.architectures import find_architecture
    from worker.ml.preprocessing import default_preprocessing, load_image

    architecture = find_architecture(name)
    if architecture.resizable:
        architecture = architecture.at(max(arguments.side, architecture.smallest_px))
    preprocessing = default_preprocessing(architecture.input_size)
    folder = arguments.data / "recyclables"
    labels = sorted(path.name for path in folder.iterdir() if path.is_dir())
    columns = [sorted((folder / label).glob("*.jpg"))[: arguments.photos // 6] for label in labels]
    paths = [path for row in zip(*columns, strict=True) for path in row]
    images = [load_image(path, preprocessing) for path in paths]
    model = _network(architecture, images, labels, arguments.data / "weights")
    cells = [_row(model, kind, images, labels, preprocessing) for kind in KINDS]
    spent = time.process_time() - begun
    print(f"| {name} | {architecture.input_size} | {' | '.join(cells)} | {spent:.0f} |")
    return 0


def _network(architecture: Any, images: list[Any], labels: list[str], folder: Path) -> Any:
    import keras
    import numpy as np

    from worker.ml.errors import WeightsUnavailable
    from worker.ml.training import train_head
    from worker.ml.weights import find_weights

    backbone = architecture.build(architecture.input_size)
    pixels = np.stack(images).astype(np.float32)
    try:
        weights = find_weights(architecture.name, folder, allow_download=False)
        architecture.load(backbone, weights.path)
    except WeightsUnavailable:
        _take_statistics(backbone, pixels)
    features = np.asarray(backbone(pixels, training=False))
    targets = np.arange(len(images)) % len(labels)
    head = train_head(features, targets, label_count=len(labels), progress=lambda *_: None)
    dense = keras.layers.Dense(len(labels), activation="softmax", name="probabilities")
    model = keras.Model(backbone.input, dense(backbone.output), name="model")
    dense.set_weights([head.kernel, head.bias])
    return model


def _take_statistics(backbone: Any, pixels: Any) -> None:
    """Normalise each layer by what the photos are there, as training would have done."""
    norms = [one for one in backbone.layers if type(one).__name__ == "BatchNormalization"]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    if norms:
        backbone(pixels, training=True)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


def _row(model: Any, kind: str, images: list[Any], labels: list[str], preprocessing: Any) -> str:
    import numpy as np

    from worker.ml import compilers, evaluation
    from worker.ml.coreml import CoreMLModel
    from worker.ml.errors import MLError

    exact = evaluation.predict_keras(model, images)
    spread = float(np.sqrt(((exact - exact.mean(axis=0)) ** 2).mean()))
    if spread < LEAST_SPREAD:
        message = f"the network's own answers hardly vary between photos ({spread:.4f})"
        raise SystemExit(message)
    runtime, precision = kind.split(":")
    try:
        made = compilers.compile_variant(
            model,
            runtime,
            precision,
            labels=labels,
            preprocessing=preprocessing,
            calibration_images=images[:12],
            name="model",
            version="1",
        )
        if runtime == "tflite":
            answers, _ = evaluation.predict_tflite(made.data, images)
        else:
            answers = evaluation.predict_coreml(CoreMLModel(made.data), images)
    except MLError as error:
        return f"no: {str(error)[:160]}"
    same = int((answers.argmax(axis=1) == exact.argmax(axis=1)).sum())
    error = float(np.sqrt(((answers - exact) ** 2).mean())) / spread
    failed = f" (fails: {made.failures[0][:120]})" if made.failures else ""
    return f"{len(made.data) / 1e6:.2f}, {same}/{len(images)}, {error:.1e}{failed}"


if __name__ == "__main__":
    sys.exit(main())

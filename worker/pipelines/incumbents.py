"""What the version that devices have now says to photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from worker.ml import evaluation
from worker.ml.preprocessing import Preprocessing
from worker.pipelines.photos import PhotoSet, load_images

if TYPE_CHECKING:
    from server.blobs import BlobStore
    from server.registry.models import ModelVersion

_MOST_EXACT_FIRST = (
    "float32", "float16", "dynamic_int8", "int8", "clustered16", "pruned50", "filter_pruned50",
    "edgetpu", "int16x8",
)  # fmt: skip


def answers(
    version: ModelVersion, test: PhotoSet, labels: Sequence[str], store: BlobStore
) -> list[bool] | None:
    """Return, per test photo, whether the incumbent is right; None where it cannot be run here.

    Its most exact shipped TFLite file is asked, which is what devices run, with the
    preprocessing of its own manifest. Labels are compared by name: the candidate may know more.
    """
    variants = {
        variant.precision: variant
        for variant in version.variants.filter(runtime="tflite", is_shipped=True)
    }
    exact = next((variants[p] for p in _MOST_EXACT_FIRST if p in variants), None)
    if exact is None or not version.preprocessing:
        return None
    preprocessing = Preprocessing.from_manifest(version.preprocessing)
    images = load_images(test, preprocessing, store)
    with store.open(exact.sha256) as file:
        probabilities, _ = evaluation.predict_tflite(file.read(), images, preprocessing)
    said = [version.labels[index] for index in probabilities.argmax(axis=1)]
    wanted = [labels[target] for target in test.targets]
    return [answer == want for answer, want in zip(said, wanted, strict=True)]

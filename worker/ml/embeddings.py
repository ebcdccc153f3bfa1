"""A photo's features from a frozen network, computed once, ever.

The network is exported to a float32 TFLite file and run by LiteRT, which needs a quarter of the
time that Keras needs for one photo, and a tenth of the memory.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.determinism import THREADS, pin_tensorflow
from worker.ml.errors import ModelUnusable, WeightsUnavailable
from worker.ml.preprocessing import Pixels, Preprocessing, default_preprocessing, to_input

if TYPE_CHECKING:
    import keras

    from worker.ml.architectures import Architecture
    from worker.ml.weights import Weights

EMBEDDER_VERSION: Final = 1
"""Raise it when the same photo would get other features: every photo is then embedded anew."""

_DEPTH: Final = "top"
_LEAST_SPREAD: Final = 1e-6


class Embedder:
    """The frozen part of a network as a function from photos to features.

    ``key`` names everything that features depend on besides the photo: features stored under
    one key belong together. It is known without loading any network.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Weights,
        cache_folder: Path,
        *,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        """Describe an embedder; the network is exported to ``cache_folder`` on first use."""
        self.architecture = architecture
        self.weights = weights
        self.preprocessing = preprocessing or default_preprocessing(architecture.input_size)
        self.feature_size = architecture.feature_size
        self.key = _key(architecture, weights, self.preprocessing)
        self._path = cache_folder / f"{self.key}.tflite"
        self._interpreter: Any = None

    def embed(self, images: Iterable[Pixels]) -> npt.NDArray[np.float32]:
        """Return features (photos, feature_size) of photos from :func:`~.load_image`.

        Raises :class:`ModelUnusable` where a feature is not finite.
        """
        rows = [self._embed_one(image) for image in images]
        if not rows:
            return np.empty((0, self.feature_size), dtype=np.float32)
        features = np.stack(rows)
        if not np.isfinite(features).all():
            message = f"{self.architecture.name} gave features that are not finite"
            raise ModelUnusable(message)
        return features

    def _embed_one(self, image: Pixels) -> npt.NDArray[np.float32]:
        if self._interpreter is None:
            self._interpreter = self._load()
        interpreter = self._interpreter
        batch = to_input([image], self.preprocessing)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], batch)
        interpreter.invoke()
        output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        features: npt.NDArray[np.float32] = output[0]
        return features

    def _load(self) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        if not self._path.is_file():
            self._export()
        interpreter = Interpreter(model_path=str(self._path), num_threads=THREADS)
        interpreter.allocate_tensors()
        return interpreter

    def _export(self) -> None:
        from worker.ml.compilers.tflite import convert

        content = convert(load_backbone(self.architecture, self.weights), "float32")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Two workers may export at once: each writes its own file, the last rename wins.
        with tempfile.NamedTemporaryFile(dir=self._path.parent, delete=False) as file:
            file.write(content)
        Path(file.name).replace(self._path)


def load_backbone(architecture: Architecture, weights: Weights) -> keras.Model:
    """Return the frozen network with its pretrained weights.

    Raises :class:`WeightsUnavailable` where they are not weights of this network, or where
    features do not depend on the picture (which wrong weights can do without any error).
    """
    if weights.path is None or architecture.load is None:
        message = f"{architecture.name} needs pretrained weights"
        raise WeightsUnavailable(message)
    pin_tensorflow(0)
    model = architecture.build(architecture.input_size)
    architecture.load(model, weights.path)
    model.trainable = False
    _check_features_vary(model, architecture)
    return model


def _check_features_vary(model: keras.Model, architecture: Architecture) -> None:
    """Two pictures without likeness: even random weights tell them apart, broken ones do not."""
    side = architecture.input_size
    ramp = np.linspace(0, 255, side, dtype=np.float32)
    smooth = np.broadcast_to(ramp[:, None, None], (side, side, 3))
    coarse = np.broadcast_to(np.indices((side, side)).sum(axis=0)[..., None] // 8 % 2 * 255.0,
                             (side, side, 3))  # fmt: skip
    features = np.asarray(model(np.stack([smooth, coarse]).astype(np.float32), training=False))
    spread = float(np.abs(features[0] - features[1]).mean())
    if not np.isfinite(features).all() or spread < _LEAST_SPREAD:
        message = f"the weights of {architecture.name} see no difference between two pictures"
        raise WeightsUnavailable(message, code="weights_wrong")


def _key(architecture: Architecture, weights: Weights, preprocessing: Preprocessing) -> str:
    facts = {
        "backbone": architecture.name,
        "input_size": architecture.input_size,
        "weights": weights.sha256,
        "depth": _DEPTH,
        "preprocessing": preprocessing.to_manifest(),
        "version": EMBEDDER_VERSION,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{architecture.name}-{_DEPTH}-{digest[:16]}"

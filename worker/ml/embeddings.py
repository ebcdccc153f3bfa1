"""A photo's features from a frozen network, at several depths, computed once, ever.

The network is exported to a float32 TFLite file and run by LiteRT, which needs a quarter of the
time that Keras needs for one photo, and a tenth of the memory.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
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

TOP: Final = "features"
"""The depth of the network's own features; the others are names of layers."""

Features = npt.NDArray[np.float32]

# What keys call the top since there was only that: features stored under it stay valid.
_TOP_IN_KEYS: Final = "top"
_LEAST_SPREAD: Final = 1e-6


class Embedder:
    """The frozen part of a network as a function from photos to features, of several depths.

    A key names everything that features depend on besides the photo: features stored under one
    key belong together. Keys are known without loading any network. ``key`` is that of the top's
    features of the photo as it is, :meth:`key_of` gives the others.
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
        self.depths: tuple[str, ...] = (*architecture.depths, TOP)
        """From low to high; the last is the top."""
        self.key = self.key_of(TOP)
        self._network = LiteNetwork(
            cache_folder / f"{self._file_name()}.tflite",
            lambda: _all_depths(load_backbone(architecture, weights), self.depths),
        )

    def key_of(self, depth: str, view: str = "") -> str:
        """Return the key of a layer's features; ``view`` names the augmentation and the number.

        Of the photo as it is, ``view`` is empty.
        """
        facts = {
            "backbone": self.architecture.name,
            "input_size": self.architecture.input_size,
            "weights": self.weights.sha256,
            "depth": _TOP_IN_KEYS if depth == TOP else depth,
            "preprocessing": self.preprocessing.to_manifest(),
            "version": EMBEDDER_VERSION,
        }
        if view:
            facts["view"] = view
        return f"{self.architecture.name}-{facts['depth']}-{_digest(facts)}"

    def embed(self, images: Iterable[Pixels]) -> Features:
        """Return the top's features (photos, feature_size) of photos from :func:`~.load_image`.

        Raises :class:`ModelUnusable` where a feature is not finite.
        """
        return self.embed_depths(images)[TOP]

    def embed_depths(self, images: Iterable[Pixels]) -> dict[str, Features]:
        """Return the features of every depth, each (photos, features), in one pass over a photo.

        Raises :class:`ModelUnusable` where a feature is not finite.
        """
        rows = [self._network(to_input([image], self.preprocessing)) for image in images]
        if not rows:
            empty = np.empty((0, self.feature_size), dtype=np.float32)
            return dict.fromkeys(self.depths, empty)
        features = np.stack(rows)
        if not np.isfinite(features).all():
            message = f"{self.architecture.name} gave features that are not finite"
            raise ModelUnusable(message)
        ends = np.cumsum(self._network.sizes)
        return dict(zip(self.depths, np.split(features, ends[:-1], axis=1), strict=True))

    def place_among_lower(self, depth: str) -> slice:
        """Return where a lower depth's features lie among those of all lower depths, joined."""
        sizes = self._network.load_sizes()
        at = self.depths.index(depth)
        return slice(sum(sizes[:at]), sum(sizes[: at + 1]))

    def _file_name(self) -> str:
        if len(self.depths) == 1:
            return self.key
        facts = [self.key_of(depth) for depth in self.depths]
        return f"{self.architecture.name}-depths-{_digest(facts)}"


class LiteNetwork:
    """A network of one output run by LiteRT, exported once to a file beside which its sizes lie."""

    def __init__(self, path: Path, build: Callable[[], tuple[keras.Model, list[int]]]) -> None:
        """Describe it; ``build`` gives the network and the sizes of what its output joins."""
        self._path = path
        self._build = build
        self._interpreter: Any = None
        self.sizes: list[int] = []

    def __call__(self, batch: npt.NDArray[np.float32]) -> Features:
        """Return the output for a batch of one photo, without the batch's axis."""
        if self._interpreter is None:
            self._interpreter = self._load()
        interpreter = self._interpreter
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], batch)
        interpreter.invoke()
        output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        features: Features = output[0]
        return features

    def load_sizes(self) -> list[int]:
        """Return the sizes of what the output joins; the network is exported if it was not."""
        if not self.sizes:
            sidecar = self._path.with_suffix(".json")
            if not (self._path.is_file() and sidecar.is_file()):
                self._export(sidecar)
            self.sizes = json.loads(sidecar.read_text())
        return self.sizes

    def _load(self) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        self.load_sizes()
        interpreter = Interpreter(model_path=str(self._path), num_threads=THREADS)
        interpreter.allocate_tensors()
        return interpreter

    def _export(self, sidecar: Path) -> None:
        from worker.ml.compilers.tflite import convert

        model, sizes = self._build()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Two workers may export at once: each writes its own file, the last rename wins.
        _replace(self._path, convert(model, "float32"))
        _replace(sidecar, json.dumps(sizes).encode())


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


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


def cut(backbone: keras.Model, depths: Sequence[str]) -> keras.Model:
    """Return the part of a network that the features of ``depths``, joined, need.

    What lies above is left out of it, and of every file compiled from it.
    """
    import keras

    if list(depths) == [TOP]:
        return backbone
    outputs = [
        backbone.output
        if depth == TOP
        else keras.layers.GlobalAveragePooling2D(name=f"{depth}_average")(
            backbone.get_layer(depth).output
        )
        for depth in depths
    ]
    joined = outputs[0] if len(outputs) == 1 else keras.layers.Concatenate(name="joined")(outputs)
    return keras.Model(backbone.input, joined, name=backbone.name)


def below_head(model: keras.Model) -> keras.Model:
    """Return the part of a network trained here that gives the top's features."""
    import keras

    return keras.Model(model.input, model.get_layer(TOP).output, name=model.name)


def load_tuned(model: keras.Model, path: Path, *, digest: str) -> None:
    """Fill a backbone with the weights of a network that was fine-tuned from it.

    Raises :class:`WeightsUnavailable` where the file does not hold the weights of that digest.
    """
    from worker.ml.training import load_keras, weights_digest

    tuned = below_head(load_keras(path))
    if weights_digest(tuned) != digest:
        message = f"{path.name} does not hold the weights that fine-tuning came to"
        raise WeightsUnavailable(message, code="weights_wrong")
    model.set_weights(tuned.get_weights())


def _all_depths(backbone: keras.Model, depths: Sequence[str]) -> tuple[keras.Model, list[int]]:
    sizes = [
        int((backbone.output if depth == TOP else backbone.get_layer(depth).output).shape[-1])
        for depth in depths
    ]
    return cut(backbone, depths), sizes


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


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

"""Weights reach networks by Keras's own way: same files, same hashes, same features."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worker.ml.architectures import ARCHITECTURES, Architecture, find_architecture
from worker.ml.architectures.keras_backbone import IMAGENET_MEAN, IMAGENET_STD
from worker.ml.determinism import pin_tensorflow
from worker.ml.errors import WeightsUnavailable
from worker.ml.weights import CHECKSUMS, find_weights

SIZED = ("mobilenet_0", "mobilenet_1", "mobilenet_v2")
DOWNLOADED = (
    "mobilenet_0.25_128",
    "mobilenet_1.0_224",
    "mobilenet_v2_1.4_224",
    "mobilenet_v2_0.35_96",
    *(
        name
        for name, architecture in ARCHITECTURES.items()
        if architecture.keras_file is not None and not name.startswith(SIZED)
    ),
)


class Reached(Exception):
    pass


def keras_arguments(architecture: Architecture) -> tuple[Any, dict[str, Any]]:
    """Return Keras's constructor and what it takes to give the same network."""
    import keras

    backbone = architecture.build.__self__  # type: ignore[attr-defined]
    options = {key: value for key, value in backbone.options.items() if key == "alpha"}
    side = architecture.input_size
    options |= {"input_shape": (side, side, 3), "include_top": False, "weights": "imagenet"}
    return getattr(keras.applications, backbone.constructor), options


def module_of(architecture: Architecture) -> Any:
    assert architecture.keras_file is not None
    return importlib.import_module(f"keras.src.applications.{architecture.keras_file.module}")


@pytest.mark.ml
@pytest.mark.parametrize("name", DOWNLOADED)
def test_the_file_is_the_one_that_keras_downloads(name: str, monkeypatch: Any) -> None:
    pin_tensorflow(0)
    import keras

    asked: list[tuple[str, str, str]] = []

    def get_file(file: str, origin: str, *, file_hash: str | None = None, **_: Any) -> str:
        asked.append((file, origin, file_hash or ""))
        raise Reached

    architecture = find_architecture(name)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    make, options = keras_arguments(architecture)
    with pytest.raises(Reached), keras.StatelessScope():
        make(**options)
    monkeypatch.setattr("keras.utils.get_file", get_file)
    with pytest.raises(WeightsUnavailable):
        find_weights(name, None)
    assert asked[0] == asked[1]
    keras.backend.clear_session()


@pytest.mark.ml
@pytest.mark.parametrize(
    "name",
    ["mobilenet_0.25_128", "mobilenet_v3_small_0.75_224", "efficientnet_b0", "resnet50"],
)
def test_features_are_those_of_kerass_own_network(
    name: str, monkeypatch: Any, tmp_path: Path
) -> None:
    """For each kind of preprocessing: Keras's network with Keras's preprocessing agrees."""
    pin_tensorflow(0)
    import keras

    architecture = find_architecture(name)
    assert architecture.keras_file is not None
    assert architecture.load is not None
    path = tmp_path / architecture.keras_file.name
    make, options = keras_arguments(architecture)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: str(path))
    side = architecture.input_size
    photos = np.random.default_rng(4).integers(0, 256, (3, side, side, 3)).astype(np.float32)
    photos *= np.array([0.2, 0.6, 1.0], dtype=np.float32)[:, None, None, None]
    photos[..., 2] *= 0.5
    prepared = module_of(architecture).preprocess_input(photos.copy())
    _write_weights(make(**{**options, "weights": None}), prepared, path)
    theirs = make(**options, pooling="avg")
    ours = architecture.build(side)
    architecture.load(ours, path)
    expected = np.asarray(theirs(prepared))
    spread = expected.std(axis=0).mean()
    # A guard: drawn networks can give features that no photo changes.
    assert spread > 0.01 * np.abs(expected).mean() > 0
    assert np.asarray(ours(photos)) == pytest.approx(expected, abs=float(1e-3 * spread), rel=1e-3)
    keras.backend.clear_session()


def _write_weights(network: Any, pixels: Any, path: Path) -> None:
    """Write a file as Keras's downloads are, with batch statistics of ``pixels``."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    for layer in network.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.momentum = 0.0
        if type(layer).__name__ == "Normalization":
            layer.set_weights([np.array(IMAGENET_MEAN), np.array(IMAGENET_STD) ** 2, np.array(0)])
            layer.finalize_state()
    network(pixels, training=True)
    for layer in network.layers:
        if type(layer).__name__ == "Normalization":
            layer.set_weights([np.array(IMAGENET_MEAN), np.array(IMAGENET_STD), np.array(0)])
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)


def test_a_damaged_download_in_the_folder_is_refused(tmp_path: Path) -> None:
    file = find_architecture("resnet50").keras_file
    assert file is not None
    (tmp_path / file.name).write_bytes(b"not the weights")
    with pytest.raises(WeightsUnavailable, match="MD5") as caught:
        find_weights("resnet50", tmp_path)
    assert caught.value.code == "weights_wrong"


def test_own_weights_need_a_line_that_vouches_for_them(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="nobody publishes them"):
        find_weights("shufflenet_g3", tmp_path)
    path = tmp_path / "shufflenet_g3.weights.h5"
    path.write_bytes(b"weights")
    with pytest.raises(WeightsUnavailable, match="vouches") as caught:
        find_weights("shufflenet_g3", tmp_path)
    assert caught.value.code == "weights_unchecked"
    digest = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / CHECKSUMS).write_text(f"{digest}  {path.name}\n")
    assert find_weights("shufflenet_g3", tmp_path).sha256 == digest
    path.write_bytes(b"others")
    with pytest.raises(WeightsUnavailable, match="damaged"):
        find_weights("shufflenet_g3", tmp_path)


@pytest.mark.ml
def test_own_weights_fill_the_network(tmp_path: Path) -> None:
    pin_tensorflow(0)
    architecture = find_architecture("squeezenet_1.1").at(64)
    assert architecture.load is not None
    trained, fresh = architecture.build(64), architecture.build(64)
    path = tmp_path / "squeezenet_1.1.weights.h5"
    trained.save_weights(path)
    architecture.load(fresh, path)
    for one, other in zip(trained.get_weights(), fresh.get_weights(), strict=True):
        assert (one == other).all()
    shufflenet = find_architecture("shufflenet_g3").at(64)
    assert shufflenet.load is not None
    network = shufflenet.build(64)
    with pytest.raises(WeightsUnavailable, match="does not hold weights of shufflenet_g3"):
        shufflenet.load(network, path)

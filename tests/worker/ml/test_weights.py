"""Pretrained weights are checked, and their absence is a plain sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.ml.architectures import find_architecture
from worker.ml.embeddings import Embedder, load_backbone
from worker.ml.errors import WeightsUnavailable
from worker.ml.weights import Weights, file_sha256, find_weights

NAME = "mobilenet_v2_0.35_224"
FILE = "mobilenet_v2_0.35_224_no_top.weights.h5"


def test_a_folder_of_weights_is_used_and_hashed(weights_folder: Path) -> None:
    weights = find_weights(NAME, weights_folder, allow_download=False)
    assert weights.origin == "folder"
    assert weights.path is not None
    assert weights.sha256 == file_sha256(weights.path)


def test_a_damaged_file_is_refused(weights_folder: Path, tmp_path: Path) -> None:
    content = bytearray((weights_folder / FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(WeightsUnavailable, match="damaged") as caught:
        find_weights(NAME, tmp_path, allow_download=False)
    assert caught.value.code == "weights_wrong"


def test_without_folder_and_network_the_sentence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=f"NIGHTFERRY_WEIGHTS.*{FILE}"):
        find_weights(NAME, tmp_path, allow_download=False)


@pytest.mark.ml
def test_weights_of_another_network_are_refused(weights_folder: Path) -> None:
    path = weights_folder / FILE
    with pytest.raises(WeightsUnavailable, match=r"MobileNetV2 1\.0"):
        load_backbone(find_architecture("mobilenet_v2_1.0_224"), Weights(path, "folder", "0"))


def test_the_key_of_embeddings_changes_with_whatever_changes_them(tmp_path: Path) -> None:
    from worker.ml.preprocessing import Preprocessing

    architecture = find_architecture(NAME)
    embedders = [
        Embedder(architecture, Weights(None, "folder", "a"), tmp_path),
        Embedder(architecture, Weights(None, "download", "a"), tmp_path / "elsewhere"),
        Embedder(architecture, Weights(None, "folder", "b"), tmp_path),
        Embedder(find_architecture("mobilenet_v2_1.0_224"), Weights(None, "folder", "a"), tmp_path),
        Embedder(
            architecture,
            Weights(None, "folder", "a"),
            tmp_path,
            preprocessing=Preprocessing(224, 224, fit="center_crop"),
        ),
    ]
    keys = [embedder.key for embedder in embedders]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4

"""The photos that a compressed network is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.ml.preprocessing import Pixels, Preprocessing, to_input


@dataclass(frozen=True)
class TrainingPhotos:
    """Photos as pixels, with their labels' indexes and the original network's probabilities."""

    images: Sequence[Pixels]
    targets: npt.NDArray[np.int64]
    """(photos,)"""
    answers: npt.NDArray[np.float32]
    """(photos, labels)"""
    preprocessing: Preprocessing

    def batch(self, indexes: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Return these photos as the network takes them."""
        return to_input([self.images[index] for index in indexes], self.preprocessing)

    def wanted(self, indexes: npt.NDArray[np.intp], label_share: float) -> npt.NDArray[np.float32]:
        """Return what the network is to answer: the labels by their share, the rest as before."""
        answers = self.answers[indexes]
        labels = np.eye(answers.shape[1], dtype=np.float32)[self.targets[indexes]]
        return np.asarray(label_share * labels + (1 - label_share) * answers, dtype=np.float32)

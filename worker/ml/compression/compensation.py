"""Weights taken away one after the other, the rest making up for it.

A layer's kernel is changed so that its outputs on photos change least, which second moments of
its inputs tell without any training: optimal brain surgeon (Hassibi and Stork 1993), in the order
of rows and with one factorisation as GPTQ (Frantar et al. 2022, arXiv:2210.17323) and SparseGPT
(Frantar and Alistarh 2023, arXiv:2301.00774) do it. On small networks it is what makes pruning
and palettes bearable at all: without it half of the weights cost half of the accuracy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.compression import kernels
from worker.ml.compression.palettes import find_palette
from worker.ml.compression.probing import columns_into
from worker.ml.determinism import one_thread

if TYPE_CHECKING:
    import keras

    from worker.ml.compression.recipes import Recipe

Array = npt.NDArray[np.float64]

_RIDGE: Final = 0.01


def compress_kernels(model: keras.Model, recipe: Recipe, photos: npt.NDArray[np.float32]) -> None:
    """Prune or cluster a folded network's kernels, in place, each on what now reaches it.

    ``photos`` (N, height, width, 3) are as the network takes them.
    """
    with one_thread():
        for layer in kernels.compressible(model):
            kernel = np.asarray(layer.kernel, dtype=np.float64)
            inputs = columns_into(model, layer, photos)
            rows = kernel.reshape(inputs.shape[1], -1)
            changed = _compress(rows, inputs, recipe)
            layer.kernel.assign(changed.astype(np.float32).reshape(kernel.shape))


def _compress(rows: Array, inputs: Array, recipe: Recipe) -> Array:
    """Return the kernel (inputs, outputs) with fewer or fewer different values."""
    moments = inputs.T @ inputs / len(inputs)
    moments += np.eye(len(moments)) * (_RIDGE * np.trace(moments) / len(moments) + 1e-12)
    inverse = np.linalg.inv(moments)
    mask = np.ones(rows.shape, dtype=bool)
    if recipe.sparsity:
        saliency = rows / np.sqrt(np.diag(inverse))[:, None]
        mask = kernels.mask_of(saliency.astype(np.float32), recipe.sparsity)
    palette = None
    if recipe.palette:
        found, _ = find_palette(rows[mask].astype(np.float16), recipe.palette)
        palette = np.unique(found.astype(np.float64))
    factor = np.linalg.cholesky(inverse).T
    left = rows.copy()
    for place in range(len(left)):
        wanted = _allowed(left[place], mask[place], palette)
        error = (left[place] - wanted) / factor[place, place]
        left[place] = wanted
        left[place + 1 :] -= np.outer(factor[place, place + 1 :], error)
    return left


def _allowed(row: Array, mask: npt.NDArray[np.bool_], palette: Array | None) -> Array:
    if palette is not None:
        row = palette[np.searchsorted((palette[1:] + palette[:-1]) / 2, row)]
    return np.where(mask, row, 0.0)


def palette_in(layer: Any, size: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Return the values (``size``,) that a clustered kernel has, and each weight's index."""
    kernel = np.asarray(layer.kernel)
    return kernels.palette_of(kernel, size, kernel != 0)

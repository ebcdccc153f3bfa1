"""Filter pruning: inner channels are cut out, and the network becomes a smaller one.

A chain is a convolution, what works on each of its channels alone, and the layer that takes the
result. Its channels can go without anything else changing shape: in an inverted residual block
the expansion, in a plain network every convolution but the last. Which ones go is decided as in
ThiNet (Luo et al. 2017, arXiv:1707.06342): those whose part in the next layer's input is least
on photos; what they gave is then made up for by least squares on the same photos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from worker.ml.compression import graphs
from worker.ml.compression.probing import channels_into

if TYPE_CHECKING:
    import keras

Array = npt.NDArray[np.float64]

LEAST_CHANNELS: Final = 8
_PER_CHANNEL: Final = (
    "Activation", "ReLU", "ReLU6", "LeakyReLU", "Dropout", "ZeroPadding2D", "MaxPooling2D",
    "AveragePooling2D", "GlobalAveragePooling2D", "BatchNormalization",
)  # fmt: skip
_RIDGE: Final = 1e-4


@dataclass(frozen=True)
class Chain:
    """Layers of one width: the convolution that makes it, those between, and the taker."""

    maker: Any
    between: tuple[Any, ...]
    taker: Any

    @property
    def depthwise(self) -> list[Any]:
        """Return the layers between that have weights."""
        return [layer for layer in self.between if layer.weights]

    @property
    def channels(self) -> int:
        """Return how wide it is."""
        return int(self.maker.filters)


def find_chains(model: keras.Model) -> list[Chain]:
    """Return the chains of a flat network whose width can change; the first layer is spared."""
    graphs.check_flat(model)
    flow = graphs.Flow(model)
    weighted = [layer for layer in model.layers if layer.weights]
    chains = (_chain_from(flow, layer) for layer in weighted[1:])
    return [chain for chain in chains if chain is not None and chain.channels >= LEAST_CHANNELS]


def _chain_from(flow: graphs.Flow, maker: Any) -> Chain | None:
    if type(maker).__name__ != "Conv2D" or maker.groups != 1:
        return None
    between: list[Any] = []
    layer = flow.only_follower(maker)
    while layer is not None and flow.only_source(layer) is not None:
        kind = type(layer).__name__
        if kind == "Dense" or (kind == "Conv2D" and layer.groups == 1):
            return Chain(maker, tuple(between), layer)
        is_alone = kind == "DepthwiseConv2D" and layer.depth_multiplier == 1
        if kind not in _PER_CHANNEL and not is_alone:
            return None
        between.append(layer)
        layer = flow.only_follower(layer)
    return None


def prune_filters(model: keras.Model, share: float, photos: npt.NDArray[np.float32]) -> keras.Model:
    """Return a smaller network: of each chain ``share`` of the channels is gone.

    ``photos`` (N, height, width, 3) are as the network takes them. The network must be folded.
    """
    kept: dict[str, npt.NDArray[np.intp]] = {}
    kernels: dict[str, npt.NDArray[np.float32]] = {}
    for chain in find_chains(model):
        inputs = channels_into(model, chain.taker, photos)
        count = max(LEAST_CHANNELS, round(chain.channels * (1 - share) / 8) * 8)
        keep = _choose(chain.taker, inputs, min(count, chain.channels))
        for layer in (chain.maker, *chain.depthwise):
            kept[layer.name] = keep
        kernels[chain.taker.name] = _mend(chain.taker, inputs, keep)
    return _cut(model, kept, kernels)


def _flat_kernel(layer: Any) -> Array:
    """Return (channels, everything else)."""
    kernel = np.asarray(layer.kernel, dtype=np.float64)
    if kernel.ndim == 2:  # noqa: PLR2004 - a dense layer
        return kernel
    return kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)


def _choose(taker: Any, inputs: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Return the channels that matter most to the taker, in their order."""
    spread = inputs.astype(np.float64).var(axis=0)
    weight = (_flat_kernel(taker) ** 2).sum(axis=1)
    order = np.argsort(-(spread * weight), kind="stable")
    return np.sort(order[:count])


def _mend(
    taker: Any, inputs: npt.NDArray[np.float32], keep: npt.NDArray[np.intp]
) -> npt.NDArray[np.float32]:
    """Return the taker's kernel on the channels kept, such that it gives what it gave before.

    Least squares with a little ridge: every channel's part in what went is explained by those
    that stay. Positions of a larger kernel are taken to be alike.
    """
    x = inputs.astype(np.float64)
    # What is constant belongs to the bias: without its mean it would bend the weights.
    known, all_of = x[:, keep], x
    gram = known.T @ known
    gram += np.eye(len(keep)) * (_RIDGE * np.trace(gram) / len(keep) + 1e-12)
    explained = np.linalg.solve(gram, known.T @ all_of)
    kernel = np.asarray(taker.kernel, dtype=np.float64)
    if kernel.ndim == 2:  # noqa: PLR2004
        return (explained @ kernel).astype(np.float32)
    mended: npt.NDArray[np.float32] = np.einsum("kc,hwco->hwko", explained, kernel).astype(
        np.float32
    )
    return mended


def _cut(
    model: keras.Model,
    kept: dict[str, npt.NDArray[np.intp]],
    kernels: dict[str, npt.NDArray[np.float32]],
) -> keras.Model:
    def change(layer: Any) -> Any:
        if layer.name in kept and type(layer).__name__ == "Conv2D":
            return graphs.copy_of(layer, filters=len(kept[layer.name]))
        return graphs.copy_of(layer)

    rebuilt = graphs.rebuild(model, change)
    for layer in model.layers:
        if layer.weights:
            weights = _cut_weights(layer, kept.get(layer.name), kernels.get(layer.name))
            rebuilt.get_layer(layer.name).set_weights(weights)
    return rebuilt


def _cut_weights(
    layer: Any,
    keep: npt.NDArray[np.intp] | None,
    kernel: npt.NDArray[np.float32] | None,
) -> list[Any]:
    weights: list[Any] = layer.get_weights()
    if kernel is not None:
        weights[0] = kernel
    if keep is None:
        return weights
    if type(layer).__name__ == "DepthwiseConv2D":
        return [weights[0][:, :, keep], *(one[keep] for one in weights[1:])]
    if type(layer).__name__ == "Conv2D":
        return [weights[0][..., keep], *(one[keep] for one in weights[1:])]
    return [one[keep] for one in weights]

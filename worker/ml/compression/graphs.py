"""A flat network's layers: who follows whom, and the same network with other layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from worker.ml.errors import CompilationFailed

if TYPE_CHECKING:
    import keras

    Change = Callable[[keras.layers.Layer], keras.layers.Layer]


def check_flat(model: keras.Model) -> None:
    """Raise :class:`CompilationFailed` where layers are networks: those are not looked into."""
    nested = [layer.name for layer in model.layers if hasattr(layer, "layers")]
    if nested:
        message = (
            f"the network holds another ({nested[0]}), whose layers pruning and clustering cannot"
            " reach; build it of plain layers"
        )
        raise CompilationFailed(message, code="network_nested")


def rebuild(model: keras.Model, change: Change) -> keras.Model:
    """Return the network with each layer as ``change`` makes it anew, without weights."""
    import keras

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        # Only batch normalisation takes one, and may be gone; photos have none.
        return layer(*args, **{name: one for name, one in kwargs.items() if name != "mask"})

    return keras.models.clone_model(model, clone_function=change, call_function=call)


def copy_of(layer: Any, **values: Any) -> Any:
    """Return the layer anew, with some members of its configuration changed."""
    return type(layer).from_config({**layer.get_config(), "trainable": True, **values})


class Flow:
    """Which layer's output goes where, within one network."""

    def __init__(self, model: keras.Model) -> None:
        """Read the network's own nodes: layers may have others, in networks they are shared by."""
        self._followers: dict[str, list[Any]] = {layer.name: [] for layer in model.layers}
        self._sources: dict[str, list[Any]] = {layer.name: [] for layer in model.layers}
        names = set(self._followers)
        for layer in model.layers:
            for source in _sources_of(layer):
                if source.name in names:
                    self._followers[source.name].append(layer)
                    self._sources[layer.name].append(source)
        self._ends = {layer.name for layer in _output_layers(model)}

    def only_follower(self, layer: Any) -> Any | None:
        """Return the one layer that takes this one's output, unless it is an output itself."""
        followers = self._followers[layer.name]
        is_inner = len(followers) == 1 and layer.name not in self._ends
        return followers[0] if is_inner else None

    def only_source(self, layer: Any) -> Any | None:
        """Return the one layer that this one takes its input from."""
        sources = self._sources[layer.name]
        return sources[0] if len(sources) == 1 else None


def _sources_of(layer: Any) -> Iterator[Any]:
    for node in layer._inbound_nodes:  # noqa: SLF001 - Keras has no public way to ask
        for tensor in node.input_tensors:
            yield tensor._keras_history.operation  # noqa: SLF001


def _output_layers(model: Any) -> list[Any]:
    return [tensor._keras_history.operation for tensor in model.outputs]  # noqa: SLF001

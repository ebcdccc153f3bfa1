"""Core ML packages with one thing wrong in each, as a converter or a disk might leave them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.ml.compilers import mlpackage
from worker.ml.coreml.files import parse

_METADATA_BYTES = 64
_SIZE_AT, _OFFSET_AT = 8, 16


@dataclass
class Opened:
    """A package's specification (protobuf) and its file of weights, to be changed in place."""

    specification: Any
    weights: bytearray

    @property
    def block(self) -> Any:
        function = self.specification.mlProgram.functions["main"]
        return next(iter(function.block_specializations.values()))

    def operations(self, kind: str) -> list[Any]:
        return [one for one in self.block.operations if one.type == kind]

    def constant(self, operation: Any, argument: str) -> Any:
        """Return the value (protobuf) of an operation's argument."""
        if argument in operation.attributes:
            return operation.attributes[argument]
        binding = operation.inputs[argument].arguments[0]
        if binding.WhichOneof("binding") == "value":
            return binding.value
        made = next(one for one in self.block.operations if one.outputs[0].name == binding.name)
        return made.attributes["val"]

    def array(self, operation: Any, argument: str, dtype: Any) -> npt.NDArray[Any]:
        """Return the stored numbers of an argument, flat; writing to them changes the file."""
        offset = self.constant(operation, argument).blobFileValue.offset
        header = self.weights[offset : offset + _METADATA_BYTES]
        size = int.from_bytes(header[_SIZE_AT : _SIZE_AT + 8], "little")
        start = int.from_bytes(header[_OFFSET_AT : _OFFSET_AT + 8], "little")
        return np.frombuffer(memoryview(self.weights)[start : start + size], dtype)


def break_package(data: bytes, fault: Callable[[Opened], None]) -> bytes:
    """Return the package with the fault."""
    package = mlpackage.unpack(data)
    files = dict(package.files)
    opened = Opened(parse(package.specification), bytearray(files[mlpackage.WEIGHTS_PATH]))
    fault(opened)
    files[package.root] = opened.specification.SerializeToString(deterministic=True)
    files[mlpackage.WEIGHTS_PATH] = bytes(opened.weights)
    return mlpackage.pack(mlpackage.Package(package.root, files, package.items), "x")


def swap_channels(opened: Opened) -> None:
    """Blue before red, in the first layer's weights."""
    weights = opened.array(opened.operations("conv")[0], "weight", np.float16)
    kernel = weights.reshape(-1, 3, 3, 3)
    kernel[:] = kernel[:, ::-1].copy()


def declare_bgr(opened: Opened) -> None:
    """Let Core ML hand over blue before red."""
    image = opened.specification.description.input[0].type.imageType
    image.colorSpace = image.ColorSpace.Value("BGR")


def halve_the_scale(opened: Opened) -> None:
    """Pixels to 0..1 that should go to -1..1."""
    stored = opened.constant(opened.operations("mul")[0], "y").immediateValue.tensor
    stored.bytes.values = (np.frombuffer(stored.bytes.values, np.float16) / 2).tobytes()


def scale_twice(opened: Opened) -> None:
    """The rescaling once more, as where app and file both do it."""
    operations = opened.block.operations
    place = next(index for index, one in enumerate(operations) if one.type == "mul")
    first = operations[place]
    again = type(first)()
    again.CopyFrom(first)
    again.outputs[0].name = "scaled_again"
    again.inputs["x"].arguments[0].name = first.outputs[0].name
    for later in operations[place + 1 :]:
        for argument in later.inputs.values():
            for binding in argument.arguments:
                if binding.name == first.outputs[0].name:
                    binding.name = "scaled_again"
    operations.insert(place + 1, again)


def exchange_labels(opened: Opened) -> None:
    """Two labels in each other's place."""
    classes = opened.constant(opened.operations("classify")[0], "classes")
    values = classes.immediateValue.list.values
    texts = [one.immediateValue.tensor.strings.values for one in values[:2]]
    texts[0][0], texts[1][0] = texts[1][0], texts[0][0]


def exchange_outputs(opened: Opened) -> None:
    """Two outputs of the last layer in each other's place."""
    weights = opened.array(opened.operations("linear")[-1], "weight", np.float16)
    rows = weights.reshape(-1, 1280)
    rows[[0, 1]] = rows[[1, 0]]


def forget_a_layer(opened: Opened) -> None:
    """Noughts for the weights of a layer in the middle."""
    convolutions = opened.operations("conv")
    opened.array(convolutions[len(convolutions) // 2], "weight", np.float16)[:] = 0


def cut_the_weights(opened: Opened) -> None:
    """Half of the file of weights."""
    del opened.weights[len(opened.weights) // 2 :]


def pad_elsewhere(opened: Opened) -> None:
    """The odd row of padding above the picture, not below: the weights are all right."""
    for operation in opened.operations("pad"):
        sides = opened.constant(operation, "pad").immediateValue.tensor.ints.values
        sides[:] = [
            side for before, after in zip(sides[::2], sides[1::2], strict=True)
            for side in (after, before)
        ]  # fmt: skip


def lose_the_ceiling(opened: Opened) -> None:
    """Activations without their limit of 6: the weights are all right."""
    for operation in opened.operations("relu6"):
        operation.type = "relu"


def sort_a_layer(opened: Opened) -> None:
    """No fault, but an operator that the evaluator does not know."""
    opened.operations("relu6")[0].type = "sin"


def change_a_palette_entry(opened: Opened) -> None:
    """One of 256 values in the palette of the largest layer."""
    palettes = opened.operations("constexpr_lut_to_dense")
    largest = max(palettes, key=lambda one: len(opened.array(one, "indices", np.uint8)))
    indexes = opened.array(largest, "indices", np.uint8)
    entry = int(np.bincount(indexes).argmax())
    opened.array(largest, "lut", np.float16)[entry] += 1


def flip_a_bit(opened: Opened) -> None:
    """The lowest bit of one weight."""
    convolutions = opened.operations("conv")
    weights = opened.array(convolutions[len(convolutions) // 2], "weight", np.uint16)
    weights[len(weights) // 2] ^= 1

"""Runs a model file on images (needs ``pip install nightferry[tflite]``)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, cast

from nightferry.cache import hash_file
from nightferry.errors import (
    IntegrityError,
    NotAClassifierError,
    PredictionError,
    RuntimeMissingError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from nightferry.models import Model
    from nightferry.preprocessing import ImageSource, Preprocessing
    from nightferry.usage import Usage


class Predictor:
    """One model, loaded. Keeps running the file it was made with, whatever is installed later.

    May be called from any thread; predictions of one predictor follow one another.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_threads: int | None = None,
        usage: Usage | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: what to run; its file is hashed once more before it is trusted.
            num_threads: threads of the runtime; None for the runtime's default.
            usage: hears of every prediction, and of what failed.

        Raises:
            RuntimeMissingError: the packages of the ``tflite`` extra are not installed.
            PredictionError: the model is not one this can run.
            IntegrityError: the file has changed since it was installed.

        """
        _require_runnable(model)
        from nightferry.tensors import Tensors

        self.model = model
        self._interpreter = _open_interpreter(model, num_threads)
        self._tensors = Tensors(self._interpreter)
        self._input = self._interpreter.get_input_details()[0]
        self._output = self._interpreter.get_output_details()[0]
        self._preprocessing = self._read_preprocessing()
        self._usage = usage
        self._lock = threading.Lock()

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """Each input of the file: ``shape`` (an open side is None) and ``dtype``."""
        return {name: _told(one) for name, one in self._tensors.inputs.items()}

    @property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """Each output of the file: ``shape`` (an open side is None) and ``dtype``."""
        return {name: _told(one) for name, one in self._tensors.outputs.items()}

    def run(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Return every output by name, for arrays by the names of ``inputs``.

        Arrays have the input's shape and type. Where an input is of quantised integers, floats are
        quantised by the file's own scale, and integers are taken as they are; quantised outputs
        come as float32. Counts like a prediction.

        Raises:
            PredictionError: an input is missing or does not fit, or the runtime failed.

        """
        answers: dict[str, NDArray[Any]] = self._counted(lambda: self._tensors.run(inputs))
        return answers

    def prepare(self, image: ImageSource) -> NDArray[np.float32]:
        """Return a photo as the model's preprocessing makes it: float32, (1, height, width, 3).

        Raises:
            PreprocessingError: the image cannot be read, or the preprocessing is not known.

        """
        from nightferry.preprocessing import Preprocessing, load_image

        steps = self._preprocessing or Preprocessing.from_manifest(self.model.preprocessing)
        return steps.apply(load_image(image))

    def _counted(self, run: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            with self._lock:
                result = run()
        except PredictionError as error:
            if self._usage is not None:
                self._usage.failed(error)
            raise
        if self._usage is not None:
            self._usage.succeeded((time.perf_counter() - started) * 1000)
        return result

    def predict(self, image: ImageSource, top: int | None = None) -> list[tuple[str, float]]:
        """Return ``(label, probability)`` pairs, the likeliest first.

        Args:
            image: a path, the bytes of an image file, an open binary file, a Pillow image, or
                pixels as uint8 of shape (height, width, 3), RGB.
            top: how many pairs; None for all.

        Raises:
            NotAClassifierError: the model has no labels, or does not answer a photo with one
                number for each.
            PreprocessingError: the image cannot be read.
            PredictionError: the runtime failed, or the outputs are not numbers.

        """
        from nightferry.preprocessing import load_image

        if self._preprocessing is None:
            raise NotAClassifierError(self._why_not())
        started = time.perf_counter()
        tensor = self._preprocessing.apply(load_image(image))
        try:
            with self._lock:
                scores = self._run(tensor)
        except PredictionError as error:
            if self._usage is not None:
                self._usage.failed(error)
            raise
        ranked = sorted(
            zip(self.model.labels, map(float, scores), strict=True), key=lambda pair: -pair[1]
        )
        if self._usage is not None:
            self._usage.succeeded((time.perf_counter() - started) * 1000)
        return ranked[:top]

    def _run(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the outputs for one input tensor: float32, shape (labels,)."""
        import numpy as np

        try:
            self._interpreter.set_tensor(self._input["index"], quantise(tensor, self._input))
            self._interpreter.invoke()
            raw = self._interpreter.get_tensor(self._output["index"])
        except (RuntimeError, ValueError) as error:
            message = f"{self.model.name} {self.model.label} failed to run: {error}"
            raise PredictionError(message) from error
        scores = dequantise(raw, self._output).reshape(-1)
        if not np.isfinite(scores).all():
            message = f"{self.model.name} {self.model.label} gave outputs that are not numbers."
            raise PredictionError(message)
        return scores

    def _read_preprocessing(self) -> Preprocessing | None:
        """Return how a photo is prepared for a classifier; None for what is none."""
        if not self.model.is_classifier or not self._looks_like_a_classifier():
            return None
        if not self.model.preprocessing:
            message = (
                f"Preprocessing of {self.model.name} {self.model.label} is not known. Put the "
                "manifest beside an embedded model: nightferry fetch --output writes both."
            )
            raise PredictionError(message)
        from nightferry.preprocessing import Preprocessing

        steps = Preprocessing.from_manifest(self.model.preprocessing)
        self._check_shapes(steps)
        return steps

    def _looks_like_a_classifier(self) -> bool:
        """Tell whether there is one input, like a photo, and one row of numbers as output."""
        if len(self._tensors.inputs) != 1 or len(self._tensors.outputs) != 1:
            return False
        taken, given = self._input["shape"], self._output["shape"]
        return len(taken) == 4 and taken[3] == 3 and len(given) == 2  # noqa: PLR2004

    def _why_not(self) -> str:
        name = f"{self.model.name} {self.model.label}"
        if not self.model.labels:
            return (
                f"{name} has no labels, so there is nothing to predict. Use run(), or, if it is an "
                "embedded classifier, put its manifest beside it: nightferry fetch --output."
            )
        return (
            f"{name} does not answer a photo with one number for each label: it takes "
            f"{', '.join(self.inputs)} and answers {', '.join(self.outputs)}. Use run()."
        )

    def _check_shapes(self, steps: Preprocessing) -> None:
        wanted = (1, steps.height, steps.width, 3)
        given = tuple(int(side) for side in self._input["shape"])
        if given != wanted:
            message = f"The model takes {given}, its preprocessing makes {wanted}."
            raise PredictionError(message)
        outputs = [int(side) for side in self._output["shape"]]
        if outputs != [1, len(self.model.labels)]:
            message = f"The model gives {outputs}, and there are {len(self.model.labels)} labels."
            raise PredictionError(message)


def _told(details: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np

    sides = [int(side) for side in details.get("shape_signature", details["shape"])]
    return {
        "shape": tuple(side if side >= 0 else None for side in sides),
        "dtype": np.dtype(details["dtype"]).name,
    }


def quantise(tensor: NDArray[np.float32], details: dict[str, Any]) -> NDArray[Any]:
    """Return a float tensor as the input wants it.

    For integers: ``q = round(x / scale) + zero_point``, clipped to the type's range
    (TensorFlow Lite 8-bit quantization specification).
    """
    import numpy as np

    dtype = np.dtype(details["dtype"])
    if dtype.kind == "f":
        return tensor.astype(dtype)
    scale, zero_point = _quantisation(details)
    limits = np.iinfo(dtype)
    steps = np.round(tensor / np.float32(scale)) + zero_point
    clipped: NDArray[Any] = np.clip(steps, limits.min, limits.max)
    return clipped.astype(dtype)


def dequantise(tensor: NDArray[Any], details: dict[str, Any]) -> NDArray[np.float32]:
    """Return an output tensor as float32: ``(q - zero_point) * scale`` for integers."""
    import numpy as np

    if tensor.dtype.kind == "f":
        return tensor.astype(np.float32)
    scale, zero_point = _quantisation(details)
    return (tensor.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


def _quantisation(details: dict[str, Any]) -> tuple[float, int]:
    scale, zero_point = details["quantization"]
    if not scale:
        message = f"The tensor {details.get('name')!r} is of integers and states no scale."
        raise PredictionError(message)
    return float(scale), int(zero_point)


def _require_runnable(model: Model) -> None:
    if model.runtime != "tflite":
        message = f"This SDK runs tflite models; {model.name} is made for {model.runtime!r}."
        raise PredictionError(message)
    try:
        intact = hash_file(model.path) == model.sha256
    except OSError as error:
        message = f"The model file {model.path} cannot be read: {error.strerror}."
        raise PredictionError(message) from error
    if not intact:
        message = f"The model file {model.path} has changed. Run: nightferry verify"
        raise IntegrityError(message)


def _open_interpreter(model: Model, num_threads: int | None) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        message = "Running models needs the runtime: pip install 'nightferry[tflite]'."
        raise RuntimeMissingError(message) from error
    try:
        interpreter = cast("Any", Interpreter)(str(model.path), num_threads=num_threads)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        message = f"{model.name} {model.label} is not a model this runtime can load: {error}"
        raise PredictionError(message) from error
    return interpreter

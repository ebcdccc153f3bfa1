"""The self-test of a model file before it is used: whether it answers as on the server.

A wrong model does not crash, it answers wrongly. A manifest's ``selftest`` carries a few tiny
pictures, or for a model that is no classifier the seeds of a few inputs, with the answers that the
server got from the very same file; ``docs/selftest-format.md``
describes it. The test finds a runtime, a delegate or a preprocessing that calculates something
else here than there, and a file that cannot be run at all.

The file runs in a process of its own where Python can start one: a damaged file may end the
runtime, and with it the process, and a slow one may never come back. Where it cannot (an app
frozen into one executable, a phone, a sandbox), the file runs in this process.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nightferry.errors import (
    PredictionError,
    SelfTestDiffersError,
    SelfTestNotFiniteError,
    SelfTestTooSlowError,
    SelfTestUnreadableError,
    SelfTestUnrunnableError,
    SelfTestWrongTop1Error,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from nightferry.preprocessing import Preprocessing

FORMAT = 1
MAX_DATA_BYTES = 256 * 1024
MAX_INPUTS = 16
MAX_SIDE_PX = 64
MAX_OUTPUTS = 10_000
MAX_LATENCY_MS = 60_000
TENSORS_FORMAT = 2
MAX_TENSORS = 256
MAX_CELLS = 65_536
MAX_VALUES = 1 << 26
_DTYPES = frozenset({
    "float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64",
    "bool", "image",
})  # fmt: skip

_CHANNELS = 3
# To start Python, load the runtime and open the file, on a slow device.
_START_LIMIT_S = 60.0
_READY = b"nightferry self-test"
_CHILD = (
    "import json, sys; request = json.load(sys.stdin); sys.path[:] = request.pop('sys_path');"
    " from nightferry.selftest import _serve; _serve(request)"
)


@dataclass(frozen=True, slots=True)
class SelfTestReport:
    """A test that was passed: median latency of the runtime, largest difference of an output."""

    latency_ms: float
    max_difference: float


@dataclass(frozen=True, slots=True)
class _Picture:
    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class _Tensors:
    """What a model of any signature is to answer: by case and output, values at some places."""

    request: dict[str, Any]
    values: tuple[tuple[tuple[float, ...], ...], ...]
    names: tuple[str, ...]
    tolerances: tuple[float, ...]
    max_latency_ms: float

    @property
    def runs(self) -> int:
        """How often the file is run."""
        return len(self.values)


@dataclass(frozen=True, slots=True)
class _Vectors:
    """What is to be shown, and what is to be answered, in the same order."""

    pictures: tuple[_Picture, ...]
    outputs: tuple[tuple[float, ...], ...]
    tolerance: float
    max_latency_ms: float

    @property
    def runs(self) -> int:
        """How often the file is run."""
        return len(self.pictures)


def is_runnable(runtime: str) -> bool:
    """Tell whether files for ``runtime`` can be run here: the ``tflite`` extra is installed."""
    if runtime != "tflite":
        return False
    try:
        return all(
            importlib.util.find_spec(name) is not None
            for name in ("numpy", "PIL", "ai_edge_litert.interpreter")
        )
    except (ImportError, ValueError):
        return False


def run_selftest(
    path: Path,
    *,
    preprocessing: Mapping[str, Any],
    selftest: Mapping[str, Any],
    expected_sha256: str | None,
) -> SelfTestReport:
    """Run the file at ``path`` on the pictures of the self-test and compare the answers.

    Args:
        path: a TFLite file whose hash has been verified.
        preprocessing: the manifest's member of that name.
        selftest: the manifest's member of that name; not empty.
        expected_sha256: the hash of ``selftest["data"]`` from signed metadata; None where nothing
            is signed, and then only the member's own hash counts.

    Raises:
        SelfTestError: by its ``code``, the file answers with another first label
            (``selftest_wrong_top1``), with what is no number (``selftest_not_finite``), too far
            off (``selftest_differs``) or too late (``selftest_too_slow``); the self-test or the
            preprocessing is not to be understood (``selftest_unreadable``); or the file cannot
            be run (``selftest_unrunnable``).

    """
    vectors = _read(selftest, expected_sha256)
    request: dict[str, Any]
    if isinstance(vectors, _Tensors):
        request = {"path": os.fspath(path), "tensors": vectors.request}
    else:
        request = {
            "path": os.fspath(path),
            "preprocessing": dict(preprocessing),
            "outputs": len(vectors.outputs[0]),
            "pictures": [
                [one.width, one.height, base64.b64encode(one.rgb).decode()]
                for one in vectors.pictures
            ],
        }
    answer = _ask_child(request, vectors) if _can_start_python() else _answer(request)
    if "error" in answer:
        kind = SelfTestUnreadableError if answer.get("unreadable") else SelfTestUnrunnableError
        raise kind(str(answer["error"]))
    if isinstance(vectors, _Tensors):
        return _judge_tensors(vectors, answer["outputs"], answer["latencies_ms"])
    return _judge(vectors, answer["outputs"], answer["latencies_ms"])


# What the manifest says


def _read(selftest: Mapping[str, Any], expected_sha256: str | None) -> _Vectors | _Tensors:
    if selftest.get("format") != FORMAT:
        raise SelfTestUnreadableError(
            f"The self-test has the format {selftest.get('format')!r}; this SDK reads {FORMAT}."
        )
    text = selftest.get("data")
    # A half of a surrogate pair, which JSON lets pass, has no UTF-8.
    content = text.encode(errors="replace") if isinstance(text, str) else b""
    if not 0 < len(content) <= MAX_DATA_BYTES:
        raise SelfTestUnreadableError(
            f"The self-test's data are not a text of up to {MAX_DATA_BYTES} bytes."
        )
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != selftest.get("sha256") or expected_sha256 not in (None, sha256):
        raise SelfTestUnreadableError("The self-test's data do not have the hash stated for them.")
    try:
        document = json.loads(content)
        if isinstance(document, dict) and "cases" in document:
            return _read_tensors(document)
        return _vectors(document)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SelfTestUnreadableError(f"The self-test's data are malformed: {error}.") from error


def _vectors(document: Any) -> _Vectors:
    pictures = tuple(_picture(one) for one in _list(document["inputs"], MAX_INPUTS))
    rows = _list(document["outputs"], MAX_INPUTS)
    outputs = tuple(tuple(_number(one) for one in _list(row, MAX_OUTPUTS)) for row in rows)
    if len(outputs) != len(pictures) or len({len(row) for row in outputs}) != 1:
        message = "inputs and outputs do not fit each other"
        raise ValueError(message)
    return _Vectors(
        pictures,
        outputs,
        tolerance=_number(document["tolerance"], least=0.0),
        max_latency_ms=_number(document["max_latency_ms"], least=0.0, most=MAX_LATENCY_MS),
    )


def _read_tensors(document: Any) -> _Tensors:
    if document["format"] != TENSORS_FORMAT:
        message = f"format {document['format']!r} is not known"
        raise ValueError(message)
    inputs = [_input(one) for one in _list(document["inputs"], MAX_TENSORS)]
    outputs = _list(document["outputs"], MAX_TENSORS)
    places = [[_whole(at) for at in _list(one["at"], MAX_OUTPUTS)] for one in outputs]
    cases = _list(document["cases"], MAX_INPUTS)
    for case in cases:
        _check_case(case, inputs)
    return _Tensors(
        {
            "inputs": inputs,
            "outputs": [
                {
                    "name": _text(one["name"]),
                    "shape": [_whole(n) for n in _list(one["shape"], 8, least=0)],
                    "at": at,
                }
                for one, at in zip(outputs, places, strict=True)
            ],
            "cases": [{"seeds": case["seeds"], "cells": case["cells"]} for case in cases],
        },
        values=tuple(_values(case["values"], places) for case in cases),
        names=tuple(one["name"] for one in outputs),
        tolerances=tuple(_number(one["tolerance"], least=0.0) for one in outputs),
        max_latency_ms=_number(document["max_latency_ms"], least=0.0, most=MAX_LATENCY_MS),
    )


def _input(document: Any) -> dict[str, Any]:
    shape = [_whole(side) for side in _list(document["shape"], 8, least=0)]
    dtype = _text(document["dtype"])
    if math.prod(shape) > MAX_VALUES or not all(shape) or dtype not in _DTYPES:
        message = f"an input of {shape} {dtype} cannot be made"
        raise ValueError(message)
    limits = {name: _number(document[name]) for name in ("low", "high")}
    return {"name": _text(document["name"]), "shape": shape, "dtype": dtype, **limits}


def _check_case(case: Any, inputs: Sequence[Any]) -> None:
    seeds, cells = _list(case["seeds"], MAX_TENSORS), _list(case["cells"], MAX_TENSORS)
    if not len(seeds) == len(cells) == len(inputs):
        message = "a case has a seed and blocks for every input"
        raise ValueError(message)
    for seed, blocks, one in zip(seeds, cells, inputs, strict=True):
        counts = [_whole(count) for count in _list(blocks, 8, least=0)]
        if not 0 < _whole(seed) < 1 << 32 or len(counts) != len(one["shape"]):
            message = "a seed or the blocks of a case are out of bounds"
            raise ValueError(message)
        if math.prod(counts) > MAX_CELLS or not all(
            0 < count <= side for count, side in zip(counts, one["shape"], strict=True)
        ):
            message = f"blocks of {counts} do not fit {one['shape']}"
            raise ValueError(message)


def _values(rows: Any, places: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
    values = tuple(
        tuple(_number(one) for one in _list(row, MAX_OUTPUTS)) for row in _list(rows, MAX_TENSORS)
    )
    if [len(row) for row in values] != [len(at) for at in places]:
        message = "values and places do not fit each other"
        raise ValueError(message)
    return values


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 1 << 40:
        message = f"{value!r} is not a whole number of at least 0"
        raise ValueError(message)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        message = f"{value!r} is not a text"
        raise TypeError(message)
    return value


def _picture(document: Any) -> _Picture:
    sides = (document["width"], document["height"])
    if any(type(side) is not int or not 0 < side <= MAX_SIDE_PX for side in sides):
        message = f"a picture is 1 to {MAX_SIDE_PX} pixels wide and high, not {sides}"
        raise ValueError(message)
    rgb = base64.b64decode(document["rgb"], validate=True)
    if len(rgb) != sides[0] * sides[1] * _CHANNELS:
        message = f"{len(rgb)} bytes are no picture of {sides} pixels"
        raise ValueError(message)
    return _Picture(*sides, rgb)


def _list(value: Any, most: int, *, least: int = 1) -> Sequence[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        message = f"a list of 1 to {most} members is missing"
        raise ValueError(message)
    return value


def _number(value: Any, *, least: float = -math.inf, most: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"{value!r} is not a number"
        raise TypeError(message)
    if not math.isfinite(value) or not least <= value <= most:
        message = f"{value!r} is out of bounds"
        raise ValueError(message)
    return float(value)


# What the file says


def _judge(
    vectors: _Vectors, outputs: Sequence[Sequence[float]], latencies_ms: Sequence[float]
) -> SelfTestReport:
    for number, (got, wanted) in enumerate(zip(outputs, vectors.outputs, strict=True), start=1):
        if not all(map(math.isfinite, got)):
            raise SelfTestNotFiniteError(f"Picture {number}: an output is not a finite number.")
        ours, theirs = _first(got), _first(wanted)
        if ours != theirs:
            raise SelfTestWrongTop1Error(
                f"Picture {number}: the model answers with output {ours}, on the server it was"
                f" {theirs}."
            )
    worst = max(
        abs(one - other)
        for got, wanted in zip(outputs, vectors.outputs, strict=True)
        for one, other in zip(got, wanted, strict=True)
    )
    if worst > vectors.tolerance:
        raise SelfTestDiffersError(
            f"An output is {worst:.4g} off what it was on the server; {vectors.tolerance:.4g} is"
            " tolerated."
        )
    return SelfTestReport(_timed(latencies_ms, vectors.max_latency_ms), worst)


def _judge_tensors(
    vectors: _Tensors,
    outputs: Sequence[Sequence[Sequence[float]]],
    latencies_ms: Sequence[float],
) -> SelfTestReport:
    worst = 0.0
    for number, (got, wanted) in enumerate(zip(outputs, vectors.values, strict=True), start=1):
        for name, tolerance, ours, theirs in zip(
            vectors.names, vectors.tolerances, got, wanted, strict=True
        ):
            if not all(map(math.isfinite, ours)):
                raise SelfTestNotFiniteError(
                    f"Input {number}: the output {name} is not of finite numbers."
                )
            differ = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
            if differ > tolerance:
                raise SelfTestDiffersError(
                    f"Input {number}: the output {name} is {differ:.4g} off what it was on the"
                    f" server; {tolerance:.4g} is tolerated."
                )
            worst = max(worst, differ)
    return SelfTestReport(_timed(latencies_ms, vectors.max_latency_ms), worst)


def _timed(latencies_ms: Sequence[float], max_latency_ms: float) -> float:
    latency_ms = statistics.median(latencies_ms)
    if latency_ms > max_latency_ms:
        raise SelfTestTooSlowError(
            f"The model takes {latency_ms:.0f} ms for one input; {max_latency_ms:.0f} ms are"
            " allowed."
        )
    return latency_ms


def _first(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


# Running the file


def _can_start_python() -> bool:
    """Tell whether ``sys.executable`` is Python itself, and not an app with Python inside."""
    if getattr(sys, "frozen", False) or sys.platform in {"android", "ios", "emscripten", "wasi"}:
        return False
    return Path(sys.executable or "").name.lower().startswith("python")


def _ask_child(request: dict[str, Any], vectors: _Vectors | _Tensors) -> dict[str, Any]:
    """Return what another process says of the file; what ends that process leaves ours alone."""
    runs = vectors.runs + 1
    limit_s = _START_LIMIT_S + 2 * runs * vectors.max_latency_ms / 1000
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD],
            input=json.dumps(request | {"sys_path": sys.path}).encode(),
            capture_output=True,
            timeout=limit_s,
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except subprocess.TimeoutExpired as error:
        raise SelfTestTooSlowError(
            f"The model gave no answer to {runs - 1} pictures within {limit_s:.0f} s."
        ) from error
    except OSError:
        return _answer(request)
    lines = done.stdout.splitlines()
    if _READY not in lines:
        # Python did not get as far as the file: that is not the model's fault.
        return _answer(request)
    try:
        return cast("dict[str, Any]", json.loads(lines[-1]))
    except ValueError:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return {"error": f"The model file ended the runtime (status {done.returncode}). {said}"}


def _serve(request: dict[str, Any]) -> None:
    """Answer in a process of its own; the last line is the answer, whatever libraries print."""
    print(_READY.decode(), flush=True)  # noqa: T201 - to the parent
    print("\n" + json.dumps(_answer(request)), flush=True)  # noqa: T201


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return ``outputs`` and ``latencies_ms`` per picture, or ``error`` with a sentence."""
    if "tensors" in request:
        try:
            return _run_tensors(request["path"], request["tensors"])
        except Exception as error:  # noqa: BLE001 - a damaged file makes the runtime raise anything
            return {"error": f"The model file cannot be run: {error}"}
    try:
        from nightferry.preprocessing import Preprocessing

        steps = Preprocessing.from_manifest(request["preprocessing"])
    except PredictionError as error:
        return {"error": str(error), "unreadable": error.code == "preprocessing"}
    try:
        return _run(request, steps)
    except Exception as error:  # noqa: BLE001 - a damaged file makes the runtime raise anything
        return {"error": f"The model file cannot be run: {error}"}


def _run(request: dict[str, Any], steps: Preprocessing) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = cast("Any", Interpreter)(request["path"], num_threads=1)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    shapes = [[int(side) for side in one["shape"]] for one in (taken, given)]
    wanted = [[1, steps.height, steps.width, _CHANNELS], [1, request["outputs"]]]
    if shapes != wanted:
        message = f"its input and output are {shapes}, and {wanted} were promised"
        raise PredictionError(message)
    outputs: list[list[float]] = []
    latencies_ms: list[float] = []
    for tensor in _tensors(request["pictures"], steps):
        interpreter.set_tensor(taken["index"], _quantised(tensor, taken))
        if not outputs:
            # The first run of all also prepares the runtime.
            interpreter.invoke()
        started = time.perf_counter()
        interpreter.invoke()
        latencies_ms.append((time.perf_counter() - started) * 1000)
        raw = interpreter.get_tensor(given["index"])
        outputs.append([float(value) for value in _real(raw, given).reshape(-1)])
    return {"outputs": outputs, "latencies_ms": latencies_ms}


def _run_tensors(path: str, request: Mapping[str, Any]) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    from nightferry.tensors import Tensors, fill

    interpreter = cast("Any", Interpreter)(path, num_threads=1)
    interpreter.allocate_tensors()
    tensors = Tensors(interpreter)
    outputs: list[list[list[float]]] = []
    latencies_ms: list[float] = []
    for case in request["cases"]:
        drawn = {
            one["name"]: fill(one["shape"], one["dtype"], cells, seed, one["low"], one["high"])
            for one, seed, cells in zip(
                request["inputs"], case["seeds"], case["cells"], strict=True
            )
        }
        if not outputs:
            # The first run of all also prepares the runtime.
            tensors.run(drawn)
        started = time.perf_counter()
        found = tensors.run(drawn)
        latencies_ms.append((time.perf_counter() - started) * 1000)
        outputs.append([_sample(found, one) for one in request["outputs"]])
    return {"outputs": outputs, "latencies_ms": latencies_ms}


def _sample(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[float]:
    values = found.get(wanted["name"])
    if values is None or list(values.shape) != wanted["shape"]:
        shape = None if values is None else list(values.shape)
        message = f"its output {wanted['name']} is {shape}, and {wanted['shape']} was promised"
        raise PredictionError(message)
    flat = values.reshape(-1)
    return [float(flat[at]) for at in wanted["at"]]


def _tensors(
    pictures: Sequence[tuple[int, int, str]], steps: Preprocessing
) -> Iterator[NDArray[Any]]:
    """Yield each picture enlarged by the nearest neighbour and scaled: (1, height, width, 3)."""
    import numpy as np

    mean = np.asarray(steps.mean, dtype=np.float32)
    std = np.asarray(steps.std, dtype=np.float32)
    rows, columns = np.arange(steps.height), np.arange(steps.width)
    for width, height, rgb in pictures:
        pixels = np.frombuffer(base64.b64decode(rgb), dtype=np.uint8).reshape(height, width, 3)
        large = pixels[np.ix_(rows * height // steps.height, columns * width // steps.width)]
        yield ((large.astype(np.float32) - mean) / std)[np.newaxis]


def _quantised(tensor: NDArray[Any], details: dict[str, Any]) -> NDArray[Any]:
    """Return the tensor as the input takes it; integers without a scale are the values."""
    import numpy as np

    from nightferry.prediction import quantise

    if _is_scaled(details):
        return quantise(tensor, details)
    limits = np.iinfo(details["dtype"])
    clipped: NDArray[Any] = np.clip(tensor, limits.min, limits.max)
    return clipped.astype(details["dtype"])


def _real(raw: NDArray[Any], details: dict[str, Any]) -> NDArray[Any]:
    from nightferry.prediction import dequantise

    return dequantise(raw, details) if _is_scaled(details) else raw


def _is_scaled(details: dict[str, Any]) -> bool:
    import numpy as np

    return np.dtype(details["dtype"]).kind == "f" or bool(details["quantization"][0])

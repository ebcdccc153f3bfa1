"""The self-test of a model file before it is used: whether it answers as on the server.

A wrong model does not crash, it answers wrongly. A manifest's ``selftest`` carries a few tiny
pictures with the answers that the server got from the very same file; ``docs/selftest-format.md``
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
class _Vectors:
    """What is to be shown, and what is to be answered, in the same order."""

    pictures: tuple[_Picture, ...]
    outputs: tuple[tuple[float, ...], ...]
    tolerance: float
    max_latency_ms: float


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
    request = {
        "path": os.fspath(path),
        "preprocessing": dict(preprocessing),
        "outputs": len(vectors.outputs[0]),
        "pictures": [
            [one.width, one.height, base64.b64encode(one.rgb).decode()] for one in vectors.pictures
        ],
    }
    answer = _ask_child(request, vectors) if _can_start_python() else _answer(request)
    if "error" in answer:
        kind = SelfTestUnreadableError if answer.get("unreadable") else SelfTestUnrunnableError
        raise kind(str(answer["error"]))
    return _judge(vectors, answer["outputs"], answer["latencies_ms"])


# What the manifest says


def _read(selftest: Mapping[str, Any], expected_sha256: str | None) -> _Vectors:
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
        return _vectors(json.loads(content))
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


def _list(value: Any, most: int) -> Sequence[Any]:
    if not isinstance(value, list) or not 0 < len(value) <= most:
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
    latency_ms = statistics.median(latencies_ms)
    if latency_ms > vectors.max_latency_ms:
        raise SelfTestTooSlowError(
            f"The model takes {latency_ms:.0f} ms for one picture; {vectors.max_latency_ms:.0f} ms"
            " are allowed."
        )
    return SelfTestReport(latency_ms, worst)


def _first(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


# Running the file


def _can_start_python() -> bool:
    """Tell whether ``sys.executable`` is Python itself, and not an app with Python inside."""
    if getattr(sys, "frozen", False) or sys.platform in {"android", "ios", "emscripten", "wasi"}:
        return False
    return Path(sys.executable or "").name.lower().startswith("python")


def _ask_child(request: dict[str, Any], vectors: _Vectors) -> dict[str, Any]:
    """Return what another process says of the file; what ends that process leaves ours alone."""
    runs = len(vectors.pictures) + 1
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

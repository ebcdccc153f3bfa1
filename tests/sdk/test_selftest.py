"""A model file is tried on the pictures of its manifest, and a wrong one never gets further."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nightferry
import nightferry.selftest
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nightferry.selftest import SelfTestReport, is_runnable, run_selftest
from PIL import Image

from tests.support.data import data_folder

STEPS = {"width": 224, "height": 224, "mean": [127.5] * 3, "std": [127.5] * 3}
SIDE = 24
Vectors = dict[str, Any]


@pytest.fixture(scope="module")
def model_path() -> Path:
    """A real MobileNetV2 with uint8 input and output."""
    return data_folder("weights") / "tf2_mobilenet_v2_1.0_224_ptq.tflite"


@pytest.fixture(scope="module")
def vectors(model_path: Path) -> Vectors:
    """Return photos as the format holds them, with answers got past the SDK, from its text."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model_path))
    interpreter.allocate_tensors()
    taken, given_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    inputs, outputs = [], []
    for name in ("cat_1080p.jpg", "parrot.jpg", "hot_dog.jpg"):
        with Image.open(data_folder("weights") / "check_photos" / name) as photo:
            small = photo.convert("RGB").resize((SIDE, SIDE))
        rgb = small.tobytes()
        large = np.zeros((1, 224, 224, 3), np.float32)
        for y in range(224):
            for x in range(224):
                start = 3 * (y * SIDE // 224 * SIDE + x * SIDE // 224)
                large[0, y, x] = list(rgb[start : start + 3])
        scale, zero_point = taken["quantization"]
        # In float32: in float64 the many halves would be rounded the other way.
        steps = np.round((large - 127.5) / 127.5 / np.float32(scale)) + zero_point
        interpreter.set_tensor(taken["index"], np.clip(steps, 0, 255).astype(np.uint8))
        interpreter.invoke()
        scale, zero_point = given_["quantization"]
        row = (interpreter.get_tensor(given_["index"])[0].astype(float) - zero_point) * scale
        inputs.append({"width": SIDE, "height": SIDE, "rgb": base64.b64encode(rgb).decode()})
        outputs.append([round(value, 4) for value in row.tolist()])
    return {"inputs": inputs, "outputs": outputs, "tolerance": 0.08, "max_latency_ms": 5000}


def _member(document: object) -> dict[str, Any]:
    text = document if isinstance(document, str) else json.dumps(document)
    return {"format": 1, "sha256": hashlib.sha256(text.encode()).hexdigest(), "data": text}


def _refusal(path: Path, member: dict[str, Any], steps: dict[str, Any] = STEPS) -> str:
    with pytest.raises(nightferry.SelfTestError) as caught:
        run_selftest(path, preprocessing=steps, selftest=member, expected_sha256=member["sha256"])
    assert not caught.value.retryable
    return caught.value.code


@pytest.fixture(params=["process of its own", "this process"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run files in both places: an app frozen into one executable cannot start Python."""
    if request.param == "this process":
        monkeypatch.setattr(sys, "frozen", True, raising=False)


@pytest.mark.usefixtures("place")
def test_the_right_file_passes(model_path: Path, vectors: Vectors) -> None:
    member = _member(vectors)
    for expected in (None, member["sha256"]):
        report = run_selftest(
            model_path, preprocessing=STEPS, selftest=member, expected_sha256=expected
        )
        assert isinstance(report, SelfTestReport)
        assert report.max_difference < 0.01
        assert report.latency_ms > 0


@pytest.mark.usefixtures("place")
def test_wrong_answers_are_refused(model_path: Path, vectors: Vectors) -> None:
    rotated = [[*row[1:], row[0]] for row in vectors["outputs"]]
    assert _refusal(model_path, _member({**vectors, "outputs": rotated})) == "selftest_wrong_top1"
    shifted = [[value + 0.2 for value in row] for row in vectors["outputs"]]
    assert _refusal(model_path, _member({**vectors, "outputs": shifted})) == "selftest_differs"
    raw = {**STEPS, "mean": [0, 0, 0], "std": [1, 1, 1]}
    assert _refusal(model_path, _member(vectors), raw) == "selftest_wrong_top1"
    at_once = {**vectors, "max_latency_ms": 0.0001}
    assert _refusal(model_path, _member(at_once)) == "selftest_too_slow"


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"<html>" * 1000,
        lambda content: content[: len(content) // 2],
        lambda content: content[:200] + bytes(2000) + content[2200:],
        lambda _: b"TFL3" * 2000,
    ],
    ids=["empty", "html", "half", "header", "magic"],
)
def test_a_file_that_is_no_model_is_refused(
    model_path: Path, vectors: Vectors, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(damage(model_path.read_bytes()))
    assert _refusal(path, _member(vectors)) == "selftest_unrunnable"


def test_a_file_of_another_shape_is_refused(model_path: Path, vectors: Vectors) -> None:
    smaller = {**STEPS, "width": 96}
    assert _refusal(model_path, _member(vectors), smaller) == "selftest_unrunnable"
    fewer = {**vectors, "outputs": [row[:10] for row in vectors["outputs"]]}
    assert _refusal(model_path, _member(fewer)) == "selftest_unrunnable"
    assert _refusal(model_path / "nowhere", _member(vectors)) == "selftest_unrunnable"


def test_outputs_that_are_no_numbers_are_refused(
    monkeypatch: pytest.MonkeyPatch, model_path: Path, vectors: Vectors
) -> None:
    # The runtime's answer is replaced: real files that answer NaN are refused by the server.
    answer = {"outputs": [[float("nan")] * 1001] * 3, "latencies_ms": [1.0] * 3}
    monkeypatch.setattr(nightferry.selftest, "_answer", lambda _: answer)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert _refusal(model_path, _member(vectors)) == "selftest_not_finite"


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "selftest_unrunnable"),
        ("pass", "selftest_unrunnable"),
        ("import time; time.sleep(600)", "selftest_too_slow"),
    ],
    ids=["crash", "silence", "hang"],
)
def test_a_runtime_that_crashes_or_hangs_leaves_the_app_alone(
    monkeypatch: pytest.MonkeyPatch, model_path: Path, vectors: Vectors, program: str, code: str
) -> None:
    started = "print('nightferry self-test', flush=True);"
    monkeypatch.setattr(nightferry.selftest, "_CHILD", f"{started} {program}")
    monkeypatch.setattr(nightferry.selftest, "_START_LIMIT_S", 0.5)
    member = _member({**vectors, "max_latency_ms": 1 if code == "selftest_too_slow" else 5000})
    assert _refusal(model_path, member) == code


@pytest.mark.parametrize("program", ["import nowhere", "raise SystemExit(3)"])
def test_a_python_that_does_not_start_is_not_the_model_s_fault(
    monkeypatch: pytest.MonkeyPatch, model_path: Path, vectors: Vectors, program: str
) -> None:
    monkeypatch.setattr(nightferry.selftest, "_CHILD", program)
    report = run_selftest(
        model_path, preprocessing=STEPS, selftest=_member(vectors), expected_sha256=None
    )
    assert report.max_difference < 0.01


def _without(name: str) -> Callable[[Vectors], Vectors]:
    return lambda vectors: {key: value for key, value in vectors.items() if key != name}


def _with(**changes: object) -> Callable[[Vectors], Vectors]:
    return lambda vectors: {**vectors, **changes}


def _picture(**changes: object) -> Callable[[Vectors], Vectors]:
    def change(vectors: Vectors) -> Vectors:
        return {**vectors, "inputs": [{**one, **changes} for one in vectors["inputs"]]}

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda _: "[]",
        lambda _: "{" * 100_000,
        lambda vectors: json.dumps(vectors) + " " * nightferry.selftest.MAX_DATA_BYTES,
        _without("inputs"),
        _without("outputs"),
        _without("tolerance"),
        _without("max_latency_ms"),
        _with(inputs=[], outputs=[]),
        _with(outputs=[[]] * 3),
        _with(outputs=[[0.5, 0.5]]),
        _with(outputs=[[0.5, 0.5], [0.5], [0.5, 0.5]]),
        _with(outputs=[[True, False]] * 3),
        _with(outputs=[["0.5", 0.5]] * 3),
        _with(outputs=[[float("nan")] * 2] * 3),
        _with(outputs=[[10**400, 1]] * 3),
        _with(tolerance=-0.1),
        _with(tolerance=float("inf")),
        _with(max_latency_ms=10**9),
        _picture(width=65, height=65),
        _picture(width=0),
        _picture(width=16.0),
        _picture(height=SIDE - 1),
        _picture(rgb="not base64!"),
        _picture(rgb=None),
        lambda vectors: (
            {key: vectors[key] * 6 for key in ("inputs", "outputs")}
            | {"tolerance": 0.1, "max_latency_ms": 5000}
        ),
    ],
)
def test_a_malformed_self_test_is_refused(
    model_path: Path, vectors: Vectors, change: Callable[[Vectors], Any]
) -> None:
    assert _refusal(model_path, _member(change(vectors))) == "selftest_unreadable"


def test_the_self_test_has_to_be_the_signed_one(model_path: Path, vectors: Vectors) -> None:
    member = _member(vectors)
    for wrong in (
        {**member, "sha256": "0" * 64},
        {**member, "data": member["data"] + " "},
        {**member, "format": 2},
        {**member, "data": None},
        {},
    ):
        with pytest.raises(nightferry.SelfTestUnreadableError):
            run_selftest(model_path, preprocessing=STEPS, selftest=wrong, expected_sha256=None)
    for signed in ("1" * 64, ""):
        with pytest.raises(nightferry.SelfTestUnreadableError):
            run_selftest(model_path, preprocessing=STEPS, selftest=member, expected_sha256=signed)
    with pytest.raises(nightferry.SelfTestUnreadableError, match="letterbox"):
        run_selftest(
            model_path,
            preprocessing={**STEPS, "fit": "letterbox"},
            selftest=member,
            expected_sha256=None,
        )


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.fixed_dictionaries(
        {"format": st.sampled_from([1, 1, True, None, "1"]), "data": _JSON},
        optional={"sha256": _JSON},
    ),
    st.booleans(),
)
def test_no_manifest_breaks_the_reader(member: dict[str, Any], is_hashed: bool) -> None:
    if is_hashed and isinstance(member["data"], str):
        member = member | {
            "sha256": hashlib.sha256(member["data"].encode(errors="replace")).hexdigest()
        }
    with pytest.raises(nightferry.SelfTestUnreadableError):
        run_selftest(Path("nowhere"), preprocessing={}, selftest=member, expected_sha256=None)


def test_what_can_be_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_runnable("tflite")
    assert not is_runnable("coreml")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    assert not is_runnable("tflite")


def test_the_module_loads_nothing_heavy() -> None:
    program = (
        "import sys, nightferry.selftest; nightferry.selftest.is_runnable('tflite');"
        "print([n for n in ('numpy', 'PIL', 'tuf', 'ai_edge_litert.interpreter')"
        " if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

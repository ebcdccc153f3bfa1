from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bsdiff4
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nightferry.patches import apply_patch

from tests.support.data import data_folder
from worker import patches
from worker.patches import create_patch

REPOSITORY = Path(__file__).parents[2]
WEIGHTS = "mobilenet_v2_0.35_224_no_top.weights.h5"


def apply(old: bytes, patch: bytes, new: bytes) -> bytes:
    out = io.BytesIO()
    digest = hashlib.sha256(new).hexdigest()
    apply_patch(io.BytesIO(old), io.BytesIO(patch), out, size_bytes=len(new), sha256=digest)
    return out.getvalue()


@pytest.fixture(scope="module")
def weights() -> bytes:
    """Return real float32 weights, as published: enough for a small network."""
    return (data_folder("weights") / WEIGHTS).read_bytes()[500_000:900_000]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Return a file and what cutting, moving, repeating and nudging parts of it made of it."""
    old = new = draw(st.binary(max_size=300)) * draw(st.integers(1, 60))
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(new)))
        stop = draw(st.integers(start, min(len(new), start + 5000)))
        part = np.frombuffer(new[start:stop], np.uint8)
        other = draw(st.sampled_from([b"", b"?", new[:999], (part + 1).tobytes(), part.tobytes()]))
        rest = new[:start] + new[stop:]
        at = draw(st.integers(0, len(rest)))
        new = rest[:at] + other + rest[at:]
    return old, new


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_what_is_made_is_what_the_device_gets(pair: tuple[bytes, bytes]) -> None:
    old, new = pair
    patch = create_patch(old, new)
    assert apply(old, patch, new) == new
    assert create_patch(old, new) == patch


def nudged(content: bytes, kind: str, step: float) -> bytes:
    """Return the numbers after a step of training: each moves, large ones no more than small."""
    numbers = np.frombuffer(content, kind)
    noise = np.random.default_rng(5).standard_normal(len(numbers))
    return (numbers + noise * step).astype(kind).tobytes()


def test_moved_weights_cost_less_than_elsewhere(weights: bytes) -> None:
    kept = np.frombuffer(weights, "<f4")
    kept = kept[np.isfinite(kept) & (np.abs(kept) > 1e-6) & (np.abs(kept) < 10)]
    for kind, most in (("<f4", 0.9), ("<f2", 0.8)):
        old = kept.astype(kind).tobytes()
        new = nudged(old, kind, 1e-4)
        patch = create_patch(old, new)
        assert apply(old, patch, new) == new
        assert len(patch) < most * len(bsdiff4.diff(old, new))


def test_a_moved_file_costs_no_more_than_what_is_new(weights: bytes) -> None:
    middle = len(weights) // 2 + 1
    insert = np.random.default_rng(6).bytes(501)
    new = weights[777:middle] + insert + weights[middle:] + weights[:777]
    patch = create_patch(weights, new)
    assert apply(weights, patch, new) == new
    assert len(patch) < len(insert) + 400


def test_moved_weights_are_found_also_where_nothing_is_equal(weights: bytes) -> None:
    half = len(weights) // 8 * 4
    first, second = weights[:half], weights[half:]
    in_place = len(create_patch(weights, nudged_int8(weights)))
    # Only a few labels of the file, as it were, tell by how much the rest moved.
    new = nudged_int8(first) + b"label" * 9 + first[:64] + nudged_int8(second)
    moved = create_patch(first + first[:64] + second, new)
    assert len(moved) < in_place + 2000


def nudged_int8(content: bytes) -> bytes:
    steps = np.random.default_rng(8).choice(np.array([0, 1, 255], np.uint8), len(content))
    return (np.frombuffer(content, np.uint8) + steps).tobytes()


def test_patches_are_the_same_in_every_process(weights: bytes, tmp_path: Path) -> None:
    new = nudged_int8(weights)
    (tmp_path / "old").write_bytes(weights)
    (tmp_path / "new").write_bytes(new)
    program = (
        "import hashlib, sys; from pathlib import Path; from worker.patches import create_patch;"
        "old, new = (Path(sys.argv[1], name).read_bytes() for name in ('old', 'new'));"
        "print(hashlib.sha256(create_patch(old, new)).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            check=True,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {hashlib.sha256(create_patch(weights, new)).hexdigest()}


def test_a_patch_that_does_not_lead_there_is_never_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planes: Callable[..., list[npt.NDArray[np.uint8]]] = patches._planes
    monkeypatch.setattr(patches, "_planes", lambda *args: [p ^ 1 for p in planes(*args)])
    with pytest.raises(patches.PatchNotReproducing):
        create_patch(b"cardboard", b"glass")

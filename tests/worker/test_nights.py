"""Whole runs: the same files whoever makes them, and nothing learned from what tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import REPOSITORY, data_folder

pytestmark = [pytest.mark.ml, pytest.mark.timeout(1800)]


def nights(folder: Path, order: str, count: int) -> list[dict[str, Any]]:
    """Return what came of some nights in an interpreter and a database of their own."""
    known = ("PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in known if name in os.environ}
    environment |= {
        "NIGHTFERRY_DATA": str(folder),
        "NIGHTFERRY_WEIGHTS": str(data_folder("weights")),
    }
    arguments = [str(data_folder("recyclables")), order, str(count)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.worker.nights", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("NIGHT ")]
    assert len(lines) == count, done.stdout[-2000:] + done.stderr[-4000:]
    found = [json.loads(line.removeprefix("NIGHT ")) for line in lines]
    for night in found:
        assert night["state"] == "succeeded", night["outcome"]
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return nights(tmp_path_factory.mktemp("here"), "forwards", 2)


def without_times(metrics: dict[str, Any]) -> str:
    return json.dumps({**metrics, "latency_ms": None}, sort_keys=True)


def test_two_servers_make_the_same_files_of_the_same_photos(
    here: list[dict[str, Any]], tmp_path: Path
) -> None:
    """They brought the photos in another order, so every id and every time is another."""
    (there,) = nights(tmp_path, "backwards", 1)
    first = here[0]
    assert set(first["files"]) == {"tflite:float32", "tflite:int8", "coreml:float16"}
    for fact in ("digest", "counts", "weights", "files", "shipped", "gates"):
        assert there[fact] == first[fact], fact
    assert without_times(there["metrics"]) == without_times(first["metrics"])


def test_other_pixels_in_the_test_photos_change_the_figures_and_no_weight(
    here: list[dict[str, Any]],
) -> None:
    """Not the head, its regularisation, the choice of how to tune, nor int8's calibration."""
    first, second = here
    assert second["digest"] != first["digest"]
    assert second["metrics"]["log_loss"] != first["metrics"]["log_loss"]
    assert second["weights"] == first["weights"]
    assert second["files"] == first["files"]


def test_a_gate_told_to_judges_on_golden_photos_and_shows_them_beside_the_rest(
    here: list[dict[str, Any]],
) -> None:
    first, second = (night["metrics"] for night in here)
    assert first["gate"]["judged_on"] == "test"
    assert first["gate"]["finding"] in {"first", "no_better_than_guessing"}
    assert second["golden"]["count"] == 2
    assert (second["gate"]["judged_on"], second["gate"]["test_photos"]) == ("golden", 2)
    # The same weights answer alike: nothing won and nothing lost.
    gate = second["gate"]
    assert (gate["only_candidate_right"], gate["only_incumbent_right"]) == (0, 0)
    assert gate["passes"]
    assert second["count"] == first["count"] > 2


def test_every_compiled_file_is_judged_in_pairs_with_keras(here: list[dict[str, Any]]) -> None:
    first = here[0]
    gate = first["gates"]["tflite:float32"]
    assert gate["photos"] == first["metrics"]["count"]
    assert (gate["won"], gate["lost"], gate["agreement"]) == (0, 0, 1.0)
    assert gate["agreement_interval"][0] < 1.0
    for kind, verdict in first["gates"].items():
        if verdict is not None:
            assert first["shipped"][kind] == verdict["passes"], kind

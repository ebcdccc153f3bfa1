"""A fit that is killed at any stage goes on to the very bytes of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import REPOSITORY, data_folder

pytestmark = [pytest.mark.ml, pytest.mark.timeout(900)]

POLICY = {
    "architecture": "mobilenet_v2_0.35_224",
    "max_contributor_share": 1.0,
    "validation_share": 0.3,
    "fine_tune_min_photos_per_label": 10,
    # Taken whatever it wins, so that there is something to kill and to compare.
    "strategy": "fine_tune",
    "augmentation": "hand_held",
    "views": 1,
}
STAGES = ("embedding", "regularisation", "head", "reading", "fine_tuning")


def go(folder: Path, stage: str = "") -> dict[str, Any] | None:
    """Begin the run of this folder, or go on with it; None where it was killed as wished."""
    known = ("PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in known if name in os.environ}
    environment |= {
        "NIGHTFERRY_DATA": str(folder),
        "NIGHTFERRY_WEIGHTS": str(data_folder("weights")),
        "NIGHTFERRY_TEST_DATA": str(data_folder("weights").parent),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.worker.pipelines.victim", json.dumps(POLICY), stage],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if stage:
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("RUN ")]
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RUN "))
    return found


def test_killed_at_every_stage_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole")
    for stage in STAGES:
        assert go(tmp_path / "killed", stage) is None
    killed = go(tmp_path / "killed")
    assert whole is not None
    assert killed is not None
    # Two processes, two databases, one of them killed five times: fine-tuning begins anew, with
    # the same seed, and comes to the same weights and the same file.
    assert (killed["weights"], killed["file"]) == (whole["weights"], whole["file"])
    assert killed["choice"]["strategy"] == "fine_tune"
    # What was embedded before the kills was not embedded again.
    assert killed["embeddings_before"] == killed["embeddings"] == whole["embeddings"]
    assert "0 photos embedded now, 40 from the cache." in killed["messages"]

"""Runs a piece of Python in a fresh interpreter, in which frameworks can be made missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FRAMEWORKS = ("tensorflow", "keras", "coremltools", "ai_edge_litert", "sklearn", "scipy")

_BLOCKER = f"""
import sys

class _Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FRAMEWORKS!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, _Missing())
"""
_LOADED = f"""
loaded = sorted({{name.partition(".")[0] for name in sys.modules}} & set({FRAMEWORKS!r}))
"""


def run(code: str, *, data: Path, frameworks: bool = True) -> dict[str, Any]:
    """Run ``code`` with its own data folder; return the dict that it left in ``answer``.

    The answer also says which machine-learning frameworks were loaded by then. Without
    ``frameworks`` they cannot be imported, as on a machine that has none.
    """
    program = ("import sys\n" if frameworks else _BLOCKER) + code + _LOADED
    program += "\nimport json; print('\\n' + json.dumps({**answer, 'loaded': loaded}))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=REPOSITORY,
        env=os.environ | {"NIGHTFERRY_DATA": str(data), "DATABASE_URL": "", "BROKER_URL": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])

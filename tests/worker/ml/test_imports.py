"""Heavy libraries load when a function needs them, not before."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import worker.ml

HEAVY = ("tensorflow", "keras", "coremltools", "ai_edge_litert", "sklearn", "django", "server")


def test_importing_every_module_loads_nothing_heavy() -> None:
    names = [module.name for module in pkgutil.walk_packages(worker.ml.__path__, "worker.ml.")]
    assert len(names) > 12
    program = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(worker.ml.__path__[0]).parents[1],
    )
    assert done.stdout.strip() == "[]"

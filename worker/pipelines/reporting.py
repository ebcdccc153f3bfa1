"""What a pipeline tells the run it works for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from server.training import actions

if TYPE_CHECKING:
    from server.training.models import TrainingRun
    from worker.context import JobContext

# People read two updates a second; more would only cost writes.
_MIN_INTERVAL_S = 0.5


class Reporter:
    """Writes progress and log lines, and asks the ledger whether to go on."""

    def __init__(self, run: TrainingRun, context: JobContext) -> None:
        """Report on ``run``, which the job of ``context`` performs."""
        self._run = run
        self._context = context
        self._stage = ""
        self._reported_at = 0.0

    def say(self, stage: str, message: str, *, level: str = "info") -> None:
        """Add a sentence to the run's log."""
        actions.write_line(run=self._run, stage=stage, message=message, level=level)

    def progress(self, stage: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show how far a stage is; raises when the job was cancelled or taken away."""
        self._context.check_alive()
        is_edge = stage != self._stage or step >= total
        if not is_edge and time.monotonic() - self._reported_at < _MIN_INTERVAL_S:
            return
        self._stage, self._reported_at = stage, time.monotonic()
        figures = {name: round(float(value), 5) for name, value in metrics.items()}
        actions.report_progress(run=self._run, stage=stage, step=step, total=total, metrics=figures)

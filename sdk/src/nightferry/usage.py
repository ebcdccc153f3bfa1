"""What is told about the predictions of one loaded model: that it works, how fast, that it fails.

Nothing of a photo or of what was predicted is told, and nothing here ever stops a prediction.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightferry.errors import NightferryError
    from nightferry.events import EventQueue
    from nightferry.models import Enrolment, Model
    from nightferry.trial import Trial

_LOOK_AGAIN_S = 60.0


class Usage:
    """Watches the predictions of one model. May be called from any thread.

    Args:
        model: what is run.
        events, trial: who hears of it.
        current: returns the model in use now; a rollout may begin or end while this one is loaded.
        limit_ms: what a prediction may take, in milliseconds; None where nobody said.

    """

    def __init__(
        self,
        model: Model,
        events: EventQueue,
        trial: Trial,
        *,
        current: Callable[[], Model | None],
        limit_ms: float | None = None,
    ) -> None:
        """Watch from now on."""
        self._model = model
        self._events = events
        self._trial = trial
        self._current = current
        self._limit_ms = limit_ms
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._told: set[Enrolment | None] = set()
        self._has_failed = False
        self._is_settled = False

    def succeeded(self, latency_ms: float) -> None:
        """Note a good prediction and how long it took, in milliseconds."""
        model, is_first = self._latest()
        if is_first and not self._trial.has_inferred(model):
            timed: dict[str, object] = {"latency_ms": round(latency_ms, 3)}
            if self._limit_ms is not None:
                timed["limit_ms"] = self._limit_ms
            # Told before it is noted: a kill in between tells it twice, which counts once.
            self._events.record("first_inference", model, timed)
            self._trial.inferred(model)
        self._events.time(model, latency_ms, self._limit_ms)
        if not self._is_settled:
            self._is_settled = self._trial.succeeded(model)

    def failed(self, error: NightferryError, *, code: str | None = None) -> None:
        """Note that the model could not be run, the first time it happens."""
        with self._lock:
            # The embedded model's faults count where a first release is compared with it.
            if self._has_failed or (self._model.is_embedded and not self._model.enrolment):
                return
            self._has_failed = True
        model, _ = self._latest()
        self._events.record("failed", model, {"code": code or error.code, "reason": str(error)})

    def _latest(self) -> tuple[Model, bool]:
        """Return the model by its latest enrolment, and whether nothing was told under it yet."""
        now = time.monotonic()
        with self._lock:
            if now - self._looked_at >= _LOOK_AGAIN_S:
                self._looked_at = now
                latest = self._current()
                if latest is not None and latest.sha256 == self._model.sha256:
                    self._model = latest
            is_first = self._model.enrolment not in self._told
            self._told.add(self._model.enrolment)
            return self._model, is_first

"""One steady label from a live video: the confidence of many frames together.

Single frames flicker: a hand moves, the picture blurs, two labels take turns. A ``Smoother`` keeps
an exponential mean of the probabilities of one stream and changes what it says only when another
label has led clearly for a while.

With the probabilities ``p_t(l)`` of label l in frame t, at ``t`` seconds, and the half-life h::

    w      = 2 ** (-(t - t_before) / h)           how much the past counts; half after h seconds
    s_t(l) = w * s_before(l) + (1 - w) * p_t(l)   for the first frame s(l) = p(l), as it came
    conf   = s_t(best) / max(1, sum of s_t)       "collective confidence", from 0 to 1

The state changes by two thresholds (hysteresis): a label is named when its ``conf`` has reached
``enter`` and leads by ``margin``, for ``frames`` frames in a row; it is kept, whatever flickers,
until its own ``conf`` falls below ``leave``, or until another one is named in this way.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nightferry.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_SMALLEST = 1e-6


@dataclass(frozen=True, slots=True)
class Smoothed:
    """What a stream shows: the label named, or None; its confidence, 0 where there is none.

    ``ranked`` are the smoothed confidences of all labels, the largest first. ``is_new`` tells
    that this frame changed the label.
    """

    label: str | None
    confidence: float
    ranked: tuple[tuple[str, float], ...]
    is_new: bool


class Smoother:
    """The state of one video stream; make one for each. Not for several threads at once.

    It begins anew when the model changes (``key``), after a pause of ``pause_s``, and with
    ``reset``.

    Args:
        half_life_s: after how many seconds a frame counts half.
        enter: confidence at which a label is named, from 0 to 1.
        leave: confidence below which it is not named any more; at most ``enter``.
        margin: by how much it has to lead the next label to be named.
        frames: for how many frames in a row, at least.
        pause_s: after so long without a frame nothing of the past counts.
        clock: seconds that never run backwards, for frames that come without a time.

    Raises:
        ConfigurationError: an argument is out of bounds.

    """

    def __init__(
        self,
        *,
        half_life_s: float = 0.4,
        enter: float = 0.6,
        leave: float = 0.4,
        margin: float = 0.1,
        frames: int = 3,
        pause_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the arguments; see the class."""
        if not (half_life_s > 0 and pause_s > 0 and frames >= 1):
            raise ConfigurationError("half_life_s and pause_s are above 0, frames is at least 1.")
        if not (0 <= leave <= enter <= 1 and 0 <= margin <= 1):
            raise ConfigurationError("0 <= leave <= enter <= 1, and margin lies between 0 and 1.")
        self._half_life_s = half_life_s
        self._enter, self._leave, self._margin, self._frames = enter, leave, margin, frames
        self._pause_s = pause_s
        self._clock = clock
        self._key: object = None
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self._scores: dict[str, float] = {}
        self._seen_at: float | None = None
        self._label: str | None = None
        self._rival: str | None = None
        self._led = 0

    def add(
        self,
        ranked: Iterable[tuple[str, float]],
        *,
        at_s: float | None = None,
        key: object = None,
    ) -> Smoothed:
        """Take one frame's ``predict`` and return what the stream shows.

        Args:
            ranked: ``(label, probability)`` pairs in any order; what is not finite or below 0
                counts as 0. Labels that are missing count as 0, so ``top=5`` is enough.
            at_s: when the frame was taken, in seconds; now, if None. A time before the last one
                counts as the same moment.
            key: what the frame was predicted by, such as ``predictor.model.sha256``; with another
                one than before the stream begins anew.

        """
        now = self._clock() if at_s is None else at_s
        if key != self._key or (self._seen_at is not None and now - self._seen_at > self._pause_s):
            self.reset()
            self._key = key
        weight = self._weight(now)
        frame = {label: _probability(value) for label, value in ranked}
        self._scores = {
            label: weight * self._scores.get(label, 0.0) + (1 - weight) * frame.get(label, 0.0)
            for label in {**self._scores, **frame}
        }
        self._seen_at = now if self._seen_at is None else max(now, self._seen_at)
        return self._say()

    def _weight(self, now: float) -> float:
        if self._seen_at is None:
            return 0.0
        # Two frames of one moment count as if a hundredth of the half-life lay between them.
        passed_s = max(now - self._seen_at, self._half_life_s / 100)
        return float(2.0 ** (-passed_s / self._half_life_s))

    def _say(self) -> Smoothed:
        total = max(1.0, sum(self._scores.values()))
        ranked = sorted(((one, s / total) for one, s in self._scores.items()), key=_by_confidence)
        self._scores = {one: s for one, s in self._scores.items() if s > _SMALLEST}
        before = self._label
        if dict(ranked).get(before or "", 0.0) < self._leave:
            self._label = None
        if ranked:
            self._count(ranked)
        confidence = dict(ranked)[self._label] if self._label is not None else 0.0
        return Smoothed(
            self._label,
            confidence,
            tuple(ranked),
            is_new=self._label != before,
        )

    def _count(self, ranked: list[tuple[str, float]]) -> None:
        """Count how long the first label has led, and name it when that is long enough."""
        best, confidence = ranked[0]
        second = ranked[1][1] if len(ranked) > 1 else 0.0
        leads = confidence >= self._enter and confidence - second >= self._margin
        self._led = self._led + 1 if leads and best == self._rival else int(leads)
        self._rival = best
        if self._led >= self._frames:
            self._label = best


def _probability(value: float) -> float:
    number = float(value)
    return number if math.isfinite(number) and number > 0 else 0.0


def _by_confidence(pair: tuple[str, float]) -> tuple[float, str]:
    return (-pair[1], pair[0])

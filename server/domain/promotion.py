"""The gate, which says whether a candidate may replace the incumbent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.domain.intervals import mcnemar_exact, wilson


@dataclass(frozen=True)
class GateVerdict:
    """The gate's answer with everything it was decided from."""

    passes: bool
    sentence: str
    test_photos: int
    candidate_accuracy: float
    incumbent_accuracy: float | None
    only_candidate_right: int
    only_incumbent_right: int
    p_value: float | None


def judge_candidate(
    candidate: Sequence[bool],
    incumbent: Sequence[bool] | None,
    *,
    margin: float,
    most_frequent_share: float,
) -> GateVerdict:
    """Compare two versions on the same test photos, in the same order.

    The rule is non-inferiority: the candidate's accuracy is at most ``margin`` below the
    incumbent's, because nightly retrains are nearly equal and demanding a proven gain would keep
    an old model for ever. A first candidate has to beat guessing the most frequent label.

    Raises:
        ValueError: there are no test photos, or the two lists differ in length.

    """
    count = len(candidate)
    if count == 0 or (incumbent is not None and len(incumbent) != count):
        message = "the gate needs the same test photos for both versions, and at least one"
        raise ValueError(message)
    accuracy = sum(candidate) / count
    interval = wilson(sum(candidate), count)
    seen = (
        f"{accuracy:.1%} on {count} test photos"
        f" (95 % interval {interval.lower:.1%} to {interval.upper:.1%})"
    )
    if incumbent is None:
        passes = accuracy > most_frequent_share
        relation = "better than" if passes else "no better than"
        sentence = (
            f"First candidate: {seen}, {relation} always answering the most frequent label"
            f" ({most_frequent_share:.1%})."
        )
        return GateVerdict(passes, sentence, count, accuracy, None, 0, 0, None)
    before = sum(incumbent) / count
    won = sum(c and not i for c, i in zip(candidate, incumbent, strict=True))
    lost = sum(i and not c for c, i in zip(candidate, incumbent, strict=True))
    p_value = mcnemar_exact(won, lost)
    # The margin counts whole photos: a float just past it must not decide.
    passes = (lost - won) <= margin * count + 1e-9
    sentence = (
        f"Candidate {seen}; incumbent {before:.1%} on the same photos: {won} won, {lost} lost"
        f" (McNemar p = {p_value:.2f}). "
        + (
            f"Within the margin of {margin:.1%}: the candidate may replace it."
            if passes
            else f"Worse by more than the margin of {margin:.1%}: the incumbent stays."
        )
    )
    return GateVerdict(passes, sentence, count, accuracy, before, won, lost, p_value)

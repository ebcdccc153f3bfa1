"""The gates: may a candidate replace the incumbent, and may a compiled file ship.

Both compare two networks on the same photos, pair by pair. The rule, with its reasons and what
follows from few photos, is written down in docs/gates.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from server.domain.intervals import mcnemar_exact, mcnemar_mid_p, paired_difference, wilson

SIGNIFICANT = 0.05
# A float just past a whole photo must not decide.
_SLACK = 1e-9


class Finding(StrEnum):
    """What the pairs show; the first four let a candidate pass."""

    FIRST = "first"
    BETTER = "better"
    NO_WORSE = "no_worse"
    WITHIN_MARGIN = "within_margin"
    UNDECIDED = "undecided"
    WORSE = "worse"
    NO_BETTER_THAN_GUESSING = "no_better_than_guessing"


_PASSING = frozenset({Finding.FIRST, Finding.BETTER, Finding.NO_WORSE, Finding.WITHIN_MARGIN})


@dataclass(frozen=True)
class GateVerdict:
    """The gate's answer with everything it was decided from.

    ``p_value`` is McNemar's exact p and ``mid_p`` its mid-p; ``difference`` is the interval of the
    candidate's accuracy minus the incumbent's. All three are None for a first candidate.
    """

    passes: bool
    sentence: str
    test_photos: int
    candidate_accuracy: float
    incumbent_accuracy: float | None
    only_candidate_right: int
    only_incumbent_right: int
    p_value: float | None
    finding: str
    margin: float
    mid_p: float | None
    difference: tuple[float, float] | None
    candidate_interval: tuple[float, float]
    incumbent_interval: tuple[float, float] | None


def judge_candidate(
    candidate: Sequence[bool],
    incumbent: Sequence[bool] | None,
    *,
    margin: float,
    most_frequent_share: float,
    photos: str = "test photos",
) -> GateVerdict:
    """Compare two versions on the same photos, in the same order; ``photos`` names them.

    The rule is non-inferiority: of all photos the candidate may lose at most ``margin`` more than
    it wins, because nightly retrains are nearly equal and demanding a proven gain would keep an
    old model for ever. Beyond the margin the incumbent stays: as the better one where McNemar's
    mid-p shows it, else because too few photos tell the two apart. A first candidate has to beat
    guessing the most frequent label.

    Raises:
        ValueError: there are no photos, or the two lists differ in length.

    """
    count = len(candidate)
    if count == 0 or (incumbent is not None and len(incumbent) != count):
        message = "the gate needs the same test photos for both versions, and at least one"
        raise ValueError(message)
    if incumbent is None:
        return _judge_first(sum(candidate), count, margin, most_frequent_share, photos)
    won = sum(c and not i for c, i in zip(candidate, incumbent, strict=True))
    lost = sum(i and not c for c, i in zip(candidate, incumbent, strict=True))
    mid_p, difference = mcnemar_mid_p(won, lost), paired_difference(won, lost, count)
    finding = _find(won, lost, count, margin)
    before = sum(incumbent)
    sentence = (
        f"Candidate {shown_share(sum(candidate), count)} of {count} {photos}; incumbent"
        f" {shown_share(before, count)} of the same: {won} won, {lost} lost (McNemar mid-p ="
        f" {mid_p:.2f}; difference {difference.lower * 100:+.1f} to {difference.upper * 100:+.1f}"
        f" points). {_conclusion(finding, won + lost, margin)}"
    )
    return GateVerdict(
        passes=finding in _PASSING,
        sentence=sentence,
        test_photos=count,
        candidate_accuracy=sum(candidate) / count,
        incumbent_accuracy=before / count,
        only_candidate_right=won,
        only_incumbent_right=lost,
        p_value=mcnemar_exact(won, lost),
        finding=finding.value,
        margin=margin,
        mid_p=mid_p,
        difference=(difference.lower, difference.upper),
        candidate_interval=_bounds(sum(candidate), count),
        incumbent_interval=_bounds(before, count),
    )


def _find(won: int, lost: int, count: int, margin: float) -> Finding:
    is_shown = mcnemar_mid_p(won, lost) < SIGNIFICANT
    if lost - won > margin * count + _SLACK:
        return Finding.WORSE if is_shown else Finding.UNDECIDED
    if won > lost and is_shown:
        return Finding.BETTER
    is_clear = paired_difference(won, lost, count).lower >= -margin
    return Finding.NO_WORSE if is_clear else Finding.WITHIN_MARGIN


def _conclusion(finding: Finding, disagreeing: int, margin: float) -> str:
    few = f"{disagreeing} photo{'' if disagreeing == 1 else 's'} on which the two differ"
    return {
        Finding.BETTER: "It is better: the candidate may replace it.",
        Finding.NO_WORSE: (
            f"Shown to be no worse by more than {margin:.1%}: the candidate may replace it."
        ),
        Finding.WITHIN_MARGIN: (
            f"Within the margin of {margin:.1%}, which so few photos cannot prove: the candidate"
            " may replace it."
        ),
        Finding.UNDECIDED: (
            f"Beyond the margin of {margin:.1%}, though by chance perhaps ({few}): the incumbent"
            " stays until more test photos tell."
        ),
        Finding.WORSE: f"Worse by more than the margin of {margin:.1%}: the incumbent stays.",
    }[finding]


def _judge_first(
    right: int, count: int, margin: float, most_frequent_share: float, photos: str
) -> GateVerdict:
    passes = right / count > most_frequent_share + _SLACK
    relation = "better than" if passes else "no better than"
    sentence = (
        f"First candidate: {shown_share(right, count)} of {count} {photos}, {relation} always"
        f" answering the most frequent label ({most_frequent_share:.1%})."
    )
    finding = Finding.FIRST if passes else Finding.NO_BETTER_THAN_GUESSING
    return GateVerdict(
        passes=passes,
        sentence=sentence,
        test_photos=count,
        candidate_accuracy=right / count,
        incumbent_accuracy=None,
        only_candidate_right=0,
        only_incumbent_right=0,
        p_value=None,
        finding=finding.value,
        margin=margin,
        mid_p=None,
        difference=None,
        candidate_interval=_bounds(right, count),
        incumbent_interval=None,
    )


@dataclass(frozen=True)
class VariantVerdict:
    """Whether a compiled file may ship, and the pairs that say so.

    ``lost`` and ``won`` are None where no labelled photos were at hand.
    """

    passes: bool
    refusal: str
    photos: int
    won: int | None
    lost: int | None
    mid_p: float | None
    difference: tuple[float, float] | None
    agreeing: int
    agreement: float
    agreement_interval: tuple[float, float]


def judge_variant(
    same_answer: Sequence[bool],
    pairs: Sequence[tuple[bool, bool]] | None,
    *,
    tolerance: float,
    min_agreement: float,
) -> VariantVerdict:
    """Compare a compiled file with the network it was made from, on the same photos.

    ``same_answer`` says of each photo whether both name the same label; ``pairs`` says whether
    the file and the network are right, where that is known. The file may lose at most
    ``tolerance`` of all photos more than it wins, and has to give the network's answer, right or
    wrong, on at least ``min_agreement`` of them: a file may be as accurate by other mistakes.

    Raises:
        ValueError: there are no photos, or the two lists differ in length.

    """
    count = len(same_answer)
    if count == 0 or (pairs is not None and len(pairs) != count):
        message = "a variant's gate needs the same photos for both networks, and at least one"
        raise ValueError(message)
    agreeing = sum(same_answer)
    reasons = []
    won = lost = None
    if pairs is not None:
        won = sum(ours and not theirs for ours, theirs in pairs)
        lost = sum(theirs and not ours for ours, theirs in pairs)
        reasons += _lost_too_much(pairs, won, lost, tolerance)
    if agreeing < min_agreement * count - _SLACK:
        reasons.append(
            f"answers as Keras does on {agreeing} of {count} photos ({agreeing / count:.1%}), and"
            f" the policy asks for {min_agreement:.1%}"
        )
    interval = None if won is None or lost is None else paired_difference(won, lost, count)
    return VariantVerdict(
        passes=not reasons,
        refusal="; ".join(reasons),
        photos=count,
        won=won,
        lost=lost,
        mid_p=None if won is None or lost is None else mcnemar_mid_p(won, lost),
        difference=None if interval is None else (interval.lower, interval.upper),
        agreeing=agreeing,
        agreement=agreeing / count,
        agreement_interval=_bounds(agreeing, count),
    )


def _lost_too_much(
    pairs: Sequence[tuple[bool, bool]], won: int, lost: int, tolerance: float
) -> list[str]:
    count = len(pairs)
    if lost - won <= tolerance * count + _SLACK:
        return []
    ours, theirs = (sum(pair[side] for pair in pairs) / count for side in (0, 1))
    reason = (
        f"loses {(theirs - ours) * 100:.1f} points against Keras ({ours:.1%} against {theirs:.1%}"
        f" of the same {count} photos: {won} won, {lost} lost), more than the tolerated"
        f" {tolerance * 100:.1f}"
    )
    return [reason]


def shown_share(right: int, count: int) -> str:
    """Return a share with its 95 % interval, as sentences show it."""
    lower, upper = _bounds(right, count)
    return f"{right / count:.1%} (95 % interval {lower:.1%} to {upper:.1%})"


def _bounds(right: int, count: int) -> tuple[float, float]:
    interval = wilson(right, count)
    return interval.lower, interval.upper

"""Guardrails: harm that rolls a candidate back without a person, at any moment it is looked at.

Each guardrail counts installations by their first event. Under equal rates such an event comes
from the treatment arm with probability theta, the arm's share of the installations at risk;
under a rate ratio r, with probability theta r / (1 + theta (r - 1)). The likelihood ratio of the
two is an e-process: looking at it daily, hourly or after every event costs nothing, and by
Ville's inequality it reaches 1/alpha with probability at most alpha under equal rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Mixed with equal weights: from a subtle rise that needs many events to a flood.
RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
FLOOR_TRIED = 20
FLOOR_SHARE = 0.5

_LARGEST_LOG = 700.0  # e to the 709.8th is the largest float


@dataclass(frozen=True)
class StageEvents:
    """First events of one guardrail in one stage, with the installations at risk of one.

    At risk are installations assigned to the arm that had no such event before the stage. Where
    the measure does not depend on a recent update, all incumbents may serve as control. A change
    of the arms' shares within a stage (all incumbents as control, say) needs an entry of its own.
    """

    treatment_events: int
    control_events: int
    treatment_at_risk: int
    control_at_risk: int

    @property
    def treatment_share(self) -> float:
        """Theta: the treatment arm's share of the installations at risk."""
        # An event may arrive although its installation's assignment was lost on the way.
        treatment = max(self.treatment_at_risk, self.treatment_events)
        control = max(self.control_at_risk, self.control_events)
        return treatment / (treatment + control)


@dataclass(frozen=True)
class GuardrailVerdict:
    """One guardrail's answer: its evidence against equal rates and what it needs to breach."""

    name: str
    is_breached: bool
    log_e: float
    log_threshold: float
    treatment_events: int
    control_events: int
    treatment_share: float
    control_share: float
    sentence: str


@dataclass(frozen=True)
class FloorVerdict:
    """The hard floor's answer, which needs no statistics."""

    is_breached: bool
    sentence: str


def log_e_value(stages: Sequence[StageEvents], ratios: Sequence[float] = RATIOS) -> float:
    """Return the natural logarithm of the e-process after ``stages``; 0 before any event.

    ``log E = logsumexp_i(-log K + sum_s [x_s log r_i - m_s log(1 + theta_s (r_i - 1))])`` with
    x_s first events in treatment, m_s in both arms: a mixture (Robbins 1970, Ann. Math. Stat.
    41:1397) of likelihood ratios of the events' arms given their number.
    """
    known = [
        (
            stage.treatment_events,
            stage.treatment_events + stage.control_events,
            stage.treatment_share,
        )
        for stage in stages
        if stage.treatment_events + stage.control_events
    ]
    weight = -math.log(len(ratios))
    return _logsumexp(
        [
            weight + sum(x * math.log(r) - m * math.log1p(theta * (r - 1)) for x, m, theta in known)
            for r in ratios
        ]
    )


def judge_guardrail(name: str, stages: Sequence[StageEvents], *, alpha: float) -> GuardrailVerdict:
    """Judge one guardrail over all stages so far; it is breached at E of 1/alpha or more."""
    log_e, threshold = log_e_value(stages), -math.log(alpha)
    is_breached = log_e >= threshold
    treatment = sum(stage.treatment_events for stage in stages)
    control = sum(stage.control_events for stage in stages)
    # Installations stay at risk from stage to stage; the largest stage holds nearly all of them.
    at_risk = max((stage.treatment_at_risk for stage in stages), default=0)
    control_at_risk = max((stage.control_at_risk for stage in stages), default=0)
    words = name.replace("_", " ")
    e_value = math.exp(min(log_e, _LARGEST_LOG))
    sentence = (
        f"{words}: {treatment} installations with the candidate, {control} with the incumbent;"
        f" evidence {e_value:.3g} of {1 / alpha:.0f} needed"
        + (", the candidate is rolled back." if is_breached else ".")
    )
    return GuardrailVerdict(
        name,
        is_breached,
        log_e,
        threshold,
        treatment,
        control,
        treatment / at_risk if at_risk else 0.0,
        control / control_at_risk if control_at_risk else 0.0,
        sentence,
    )


def judge_floor(*, tried: int, load_failures: int) -> FloorVerdict:
    """Judge the hard floor: of 20 or more installations that tried, half could not load it."""
    is_breached = tried >= FLOOR_TRIED and load_failures >= FLOOR_SHARE * tried
    sentence = f"{load_failures} of {tried} installations could not load the candidate" + (
        ", at least half: it is rolled back." if is_breached else "."
    )
    return FloorVerdict(is_breached, sentence)


def _logsumexp(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))

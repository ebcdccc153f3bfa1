"""Rollouts of a candidate that equals the incumbent: how often is it rolled back all the same?

The larger study and the power table are in benchmarks/rollouts.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from server.domain.rollout_policy import RolloutPolicy
from tests.support.rollout_study import Fleet, run

MONTH = RolloutPolicy(deadline_days=60)
RUNS = 100


@pytest.mark.parametrize("installations", [2000, 20_000, 60_000])
def test_false_rollbacks_in_thirty_days_with_all_guardrails_are_at_most_five_percent(installations):
    random = np.random.default_rng(installations)
    fleet = Fleet(installations=installations)
    endings = [run(fleet, MONTH, random, goes_on=True) for _ in range(RUNS)]
    false = [ending for ending in endings if ending.action == "roll_back"]
    held = sum(ending.held for ending in endings)
    print(f"{installations}: {len(false)} of {RUNS} rolled back, {held} held at least once")
    assert len(false) <= 0.05 * RUNS


def test_an_equal_candidate_is_promoted_and_bad_ones_are_rolled_back():
    random = np.random.default_rng(4)
    fleet = Fleet(installations=20_000)
    good = run(fleet, RolloutPolicy(), random)
    assert (good.action, good.rule) == ("promote", "promote")
    crashing = run(fleet.with_rate("crash", 0.2, 0.01), RolloutPolicy(), random)
    assert (crashing.action, crashing.rule) == ("roll_back", "guardrail")
    assert "crash" in crashing.sentence
    unloadable = run(fleet.with_rate("load_failure", 0.9, 0.0), RolloutPolicy(), random)
    assert unloadable.action == "roll_back"
    assert unloadable.day == 1

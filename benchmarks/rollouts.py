"""What the rollout's statistics do: false alarms, time to a stop, and what small fleets can say.

    python -m benchmarks.rollouts [--runs 400] [--seed 1]

Fleets are simulated (tests/support/rollout_study.py says how), rules and state machine are the
product's own. Fleets grow by 2 % a day, four of five installations poll on a day, half of the new
ones send feedback. Six guardrails share alpha = .05; both arms are equally large and counted as
assigned. An error rate is the share of installations that err after an update.
"""

from __future__ import annotations

import argparse
from statistics import median

import numpy as np

from server.domain.guardrails import StageEvents, log_e_value
from server.domain.intervals import wilson
from server.domain.rollout_forecast import forecast
from server.domain.rollout_policy import RolloutPolicy
from server.domain.sample_ratio import chi_square_p
from tests.support.rollout_study import Fleet, run

MONTH = RolloutPolicy(deadline_days=60)
SIZES = (2000, 20_000, 100_000)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, default=400)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    random = np.random.default_rng(options.seed)
    peeking(random, 10 * options.runs)
    equal(random, options.runs)
    one_by_one(random, options.runs)
    power(random, options.runs // 4)
    promotion(random, options.runs // 4)


def percent(count: int, runs: int) -> str:
    interval = wilson(count, runs)
    return f"{count / runs:6.1%} ({interval.lower:.1%}-{interval.upper:.1%})"


def peeking(random: np.random.Generator, runs: int) -> None:
    print(
        "\nOne measure at alpha = .05, equal arms, 200 new installations per arm and day, 30 looks"
    )
    print(f"{'error rate':<12}{'e-process':>22}{'z-test at each look':>24}")
    for rate in (0.005, 0.01, 0.05, 0.2):
        alarms = np.zeros(2, int)
        for _ in range(runs):
            treatment = random.binomial(200, rate, 30).cumsum()
            control = random.binomial(200, rate, 30).cumsum()
            at_risk = 200 * np.arange(1, 31)
            alarms[0] += any(
                log_e_value([StageEvents(*map(int, row))]) >= np.log(20)
                for row in zip(treatment, control, at_risk, at_risk, strict=True)
            )
            share = (treatment + control) / (2 * at_risk)
            error = share * (1 - share) * 2 / at_risk
            gap = (treatment - control) / at_risk
            score = np.divide(gap**2, error, out=np.zeros(30), where=error > 0)
            alarms[1] += any(chi_square_p(float(value)) < 0.05 for value in score)
        print(f"{rate:<12.1%}{percent(alarms[0], runs):>22}{percent(alarms[1], runs):>24}")


def equal(random: np.random.Generator, runs: int) -> None:
    print("\nA/A: an equal candidate, judged for 30 days with all six guardrails and the floor")
    print(f"{'fleet':>8}{'looks a day':>13}{'runs':>6}{'rolled back':>22}{'held once':>22}")
    for looks, count in ((1, 2 * runs), (24, runs // 2)):
        for size in SIZES:
            ends = [
                run(Fleet(installations=size), MONTH, random, looks_per_day=looks, goes_on=True)
                for _ in range(count)
            ]
            false = sum(end.action == "roll_back" for end in ends)
            held = sum(end.held for end in ends)
            print(
                f"{size:>8}{looks:>13}{count:>6}{percent(false, count):>22}"
                f"{percent(held, count):>22}",
                flush=True,
            )


def one_by_one(random: np.random.Generator, runs: int) -> None:
    print("\nOne measure, looked at after each exposed installation; the incumbent errs on 1 %")
    print(
        f"{'control arm':<32}{'alpha':>8}{'20 %: median stop':>19}{'95th percentile':>17}"
        f"{'1 %: false in 1000':>22}"
    )
    for name, ratio in (("as large", 1), ("all incumbents, 99 per exposed", 99)):
        for alpha in (0.05, 0.05 / 6):
            bad = [_exposed(random, ratio, alpha, 0.2) or 0 for _ in range(runs)]
            equal = [_exposed(random, ratio, alpha, 0.01) for _ in range(runs)]
            false = sum(exposed is not None for exposed in equal)
            print(
                f"{name:<32}{alpha:>8.4f}{median(bad):>19.0f}{np.percentile(bad, 95):>17.0f}"
                f"{percent(false, runs):>22}"
            )


def _exposed(
    random: np.random.Generator, ratio: int, alpha: float, rate: float, *, most: int = 1000
) -> int | None:
    treatment = random.binomial(1, rate, most).cumsum().tolist()
    control = random.binomial(ratio, 0.01, most).cumsum().tolist()
    for exposed, (bad, usual) in enumerate(zip(treatment, control, strict=True), start=1):
        if log_e_value([StageEvents(bad, usual, exposed, exposed * ratio)]) >= -np.log(alpha):
            return exposed
    return None


def power(random: np.random.Generator, runs: int) -> None:
    print(f"\nPower: default policy, hourly looks, at most 14 days, {runs} runs each")
    print(
        f"{'change':<22}{'fleet':>8}{'rolled back':>22}{'promoted':>10}{'expired':>9}"
        f"{'median day':>12}{'exposed':>9}{'of fleet':>10}"
    )
    for name, change in (
        ("errors 1 -> 3 %", lambda fleet: fleet.with_rate("inference_error", 0.03, 0.01)),
        ("errors 1 -> 20 %", lambda fleet: fleet.with_rate("inference_error", 0.2, 0.01)),
        ("success 90 -> 85 %", lambda fleet: _with_success(fleet, 0.85)),
        ("success 90 -> 87 %", lambda fleet: _with_success(fleet, 0.87)),
    ):
        for size in SIZES:
            fleet = change(Fleet(installations=size))
            ends = [run(fleet, RolloutPolicy(), random, looks_per_day=24) for _ in range(runs)]
            stopped = [end for end in ends if end.action == "roll_back"]
            promoted = sum(end.action == "promote" for end in ends)
            expired = sum(end.action == "expire" for end in ends)
            days = f"{median(end.day for end in stopped):.1f}" if stopped else "-"
            exposed = median(end.exposed for end in stopped) if stopped else 0
            print(
                f"{name:<22}{size:>8}{percent(len(stopped), runs):>22}{promoted / runs:>10.0%}"
                f"{expired / runs:>9.0%}{days:>12}{exposed:>9.0f}{exposed / size:>10.1%}",
                flush=True,
            )


def _with_success(fleet: Fleet, share: float) -> Fleet:
    return Fleet(installations=fleet.installations, success=(share, 0.9))


def promotion(random: np.random.Generator, runs: int) -> None:
    print("\nAn equal candidate under the default policy, daily looks, 14 days")
    print(f"{'fleet':>8}{'promoted':>22}{'median day':>12}{'expired':>10}{'rolled back':>13}")
    for size in (1000, 5000, *SIZES[1:]):
        ends = [run(Fleet(installations=size), RolloutPolicy(), random) for _ in range(runs)]
        good = [end.day for end in ends if end.action == "promote"]
        expired = sum(end.action == "expire" for end in ends)
        false = sum(end.action == "roll_back" for end in ends)
        day = f"{median(good):.0f}" if good else "-"
        print(
            f"{size:>8}{percent(len(good), runs):>22}{day:>12}{expired / runs:>10.0%}"
            f"{false / runs:>13.1%}"
        )
    print("\nForecast for new installations per arm and day that send one answer each, 90 % right")
    print(f"{'new':>6}{'by day 14':>12}{'by day 30':>12}{'median day':>12}")
    for new in (20, 50, 100, 200, 500, 1000):
        seen = forecast(RolloutPolicy(), new_per_arm_and_day=new, success_share=0.9, days=30)
        day = str(seen.median_day or "-")
        print(f"{new:>6}{seen.by_day[13]:>12.0%}{seen.probability:>12.0%}{day:>12}")


if __name__ == "__main__":
    main()

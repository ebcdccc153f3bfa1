"""A simulation from its start to its report: processes full of devices, and one operator."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet import checks
from fleet.driver import Assignment, Share, run_share
from fleet.report import Happening, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from fleet.scenario import Scenario
    from fleet.staff import Operator

_WARM_UP_S = 3.0  # processes start, and load the SDK
_LOOK_S = 0.5
_SIGNED_WITHIN_S = 120.0
_COUNTED_WITHIN_S = 120.0
_OPEN = ("running", "paused")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to simulate, against which server, and on how many processes.

    ``candidate`` is the version that is rolled out, or released to everybody where ``is_plain``,
    on the scenario's day; 0 for none.
    """

    scenario: Scenario
    operator: Operator
    root: bytes
    model: str
    channel: str = "production"
    runtime: str = "tflite"
    app_key: str | None = None
    candidate: int = 0
    is_plain: bool = False
    seed: str
    processes: int
    threads: int
    shares_files: bool = True
    checks: bool = False


def simulate(plan: Plan, say: Callable[[str], None]) -> Run:
    """Live through the scenario; ``say`` hears what happens meanwhile. Raises OperatorError."""
    return _Simulation(plan, say).run()


class _Simulation:
    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._scenario = plan.scenario
        self._operator = plan.operator
        self._happenings: list[Happening] = []
        self._starts_at = 0.0
        self._is_released = plan.candidate == 0
        self._rollout: dict[str, Any] | None = None
        self._ended_at: float | None = None  # the day the rollout ended

    def run(self) -> Run:
        with tempfile.TemporaryDirectory(prefix="nightferry-fleet-") as folder:
            return self._run(Path(folder) / "over")

    def _run(self, over: Path) -> Run:
        plan = self._plan
        before = self._counted()
        if not self._is_released and (self._scenario.candidate.day <= 0 or self._is_instant):
            self._release()
        self._starts_at = time.time() + _WARM_UP_S
        with ProcessPoolExecutor(plan.processes, mp_context=get_context("spawn")) as pool:
            futures = [
                pool.submit(run_share, self._assignment(i, over)) for i in range(plan.processes)
            ]
            self._watch(futures, over)
            shares = [future.result() for future in futures]
        run = Run(
            scenario=self._scenario,
            seed=plan.seed,
            model=plan.model,
            candidate=plan.candidate,
            shares=shares,
            last_day=self._scenario.days if self._is_instant else round(self._day, 3),
            happenings=self._happenings,
            rollout=self._rollout,
        )
        if plan.checks:
            checks.check_run(
                run, self._operator, plan.channel, before, counted_within_s=_COUNTED_WITHIN_S
            )
        return run

    @property
    def _is_instant(self) -> bool:
        return self._scenario.day_s == 0

    @property
    def _day(self) -> float:
        if self._is_instant or not self._starts_at:
            return 0.0
        return max(0.0, (time.time() - self._starts_at) / self._scenario.day_s)

    def _assignment(self, index: int, over: Path) -> Assignment:
        plan = self._plan
        return Assignment(
            url=self._operator.url,
            app_key=plan.app_key,
            root=plan.root,
            model=plan.model,
            channel=plan.channel,
            runtime=plan.runtime,
            candidate=plan.candidate,
            scenario=self._scenario,
            seed=plan.seed,
            first=index,
            step=plan.processes,
            threads=plan.threads,
            starts_at=self._starts_at,
            shares_files=plan.shares_files,
            checks=plan.checks,
            over=over,
        )

    def _watch(self, futures: list[Future[Share]], over: Path) -> None:
        """Be the operator until every process is done."""
        while not all(future.done() for future in futures):
            if not self._is_released and self._day >= self._scenario.candidate.day:
                self._release()
            self._look()
            if self._has_been_seen:
                over.touch()
            time.sleep(_LOOK_S)
        self._look()

    @property
    def _has_been_seen(self) -> bool:
        """Whether the rollout ended so long ago that the scenario shows no more."""
        after = self._scenario.days_after
        return bool(after) and self._ended_at is not None and self._day >= self._ended_at + after

    def _release(self) -> None:
        """Offer the candidate, and wait until it is signed."""
        plan = self._plan
        self._is_released = True
        if plan.is_plain:
            label = self._operator.release(plan.model, plan.channel, plan.candidate)
            self._note(f"version {plan.candidate} is released to everybody as {label}")
        else:
            self._rollout = self._operator.start_rollout(
                plan.model, plan.channel, plan.candidate, self._scenario.scaled_policy()
            )
            label = self._rollout["candidate"]
            stages = ", ".join(f"{bp / 100:g} %" for bp in self._rollout["policy"]["stages_bp"])
            self._note(f"version {plan.candidate} is rolled out as {label}: {stages}")
        self._operator.wait_until_announced(plan.model, plan.channel, label, _SIGNED_WITHIN_S)
        self._note(f"{label} is signed and offered")

    def _look(self) -> None:
        """Note what has changed about the rollout."""
        if self._rollout is None:
            return
        before, now = self._rollout, self._operator.rollout(self._rollout["id"])
        self._rollout = now
        if (before["state"], before["stage"]) == (now["state"], now["stage"]):
            return
        decision = self._operator.newest_decision(now["id"])
        why = f": {decision['sentence']}" if decision else ""
        if now["state"] in _OPEN:
            where = f" (stage {now['stage'] + 1}, {now['coverage_bp'] / 100:g} %)"
        else:
            where, self._ended_at = "", self._day
        self._note(f"{now['state']}{where}{why}")

    def _note(self, what: str) -> None:
        day = round(self._day, 3)
        self._happenings.append(Happening(day, what))
        self._say(f"  day {day:6.2f}  {what}")

    def _counted(self) -> dict[str, Mapping[str, Any]]:
        """Return what the server has counted of each release so far."""
        plan = self._plan
        if not plan.checks:
            return {}
        labels = [str(one["label"]) for one in self._operator.releases(plan.model, plan.channel)]
        return {
            label: self._operator.telemetry(plan.model, plan.channel, label) for label in labels
        }


def with_devices(scenario: Scenario, devices: int | None, day_s: float | None) -> Scenario:
    """Return the scenario with another size of fleet, or another speed of time."""
    if devices is not None:
        scenario = replace(scenario, fleet=replace(scenario.fleet, devices=devices))
    return scenario if day_s is None else replace(scenario, day_s=day_s)

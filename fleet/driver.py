"""Runs a share of a fleet in one process: who does what when, on a few threads."""

from __future__ import annotations

import heapq
import logging
import random
import tempfile
import threading
import time
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import nightferry.selftest
from nightferry.timing import Timing

from fleet.installation import DAY_S, Installation, Place, draw_traits
from fleet.network import Files, MeasuredTransport, SharedVerifier, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nightferry.manifest import Document
    from nightferry.models import Model

    from fleet.scenario import Scenario

_FLUSH_TRIES = 200
_FLUSH_PAUSE_S = 0.5


@dataclass(frozen=True)
class Assignment:
    """A process's share: installations ``first``, ``first + step``, … of the run."""

    url: str
    app_key: str | None
    root: bytes
    model: str
    channel: str
    runtime: str
    candidate: int
    scenario: Scenario
    seed: str
    first: int
    step: int
    threads: int
    starts_at: float
    shares_files: bool
    checks: bool
    over: Path  # the simulation ends early once there is such a file


@dataclass(frozen=True)
class LastWord:
    """What one installation was told at the end, and what it runs."""

    device: str
    attributes: Mapping[str, str]
    has_right_clock: bool
    label: str
    enrolment: str
    running: str


@dataclass
class Ledger:
    """What installations recorded, counted here so that it can be compared with the server."""

    recorded: int = 0
    devices: defaultdict[tuple[str, str], set[str]] = field(
        default_factory=lambda: defaultdict(set)
    )
    answers: Counter[str] = field(default_factory=Counter)
    right_answers: Counter[str] = field(default_factory=Counter)

    def note(self, event: Document) -> None:
        """Count one event."""
        label, kind = str(event["label"]), str(event["type"])
        self.recorded += 1
        self.devices[label, kind].add(str(event["device"]))
        data = event["data"]
        if kind == "feedback" and isinstance(data, dict):
            self.answers[label] += 1
            self.right_answers[label] += bool(data.get("correct"))


@dataclass
class Share:
    """What became of a process's share of the fleet."""

    traffic: Traffic = field(default_factory=Traffic)
    check_traffic: Traffic = field(default_factory=Traffic)
    ledger: Ledger = field(default_factory=Ledger)
    errors: Counter[str] = field(default_factory=Counter)
    releases: list[tuple[str, list[tuple[float, str, int, str]]]] = field(default_factory=list)
    last_words: list[LastWord] = field(default_factory=list)
    lag_s: array[float] = field(default_factory=lambda: array("d"))
    waiting: int = 0
    busy_s: float = 0.0
    whole_s: float = 0.0


def run_share(assignment: Assignment) -> Share:
    """Live through all days; return what happened."""
    logging.getLogger("nightferry").setLevel(logging.CRITICAL)
    # Simulated devices hold no bytes that a self-test could run; what fails is the scenario's word.
    nightferry.selftest.is_runnable = lambda runtime: False  # noqa: ARG005
    with tempfile.TemporaryDirectory(prefix="nightferry-fleet-") as folder:
        return _Share(assignment, Path(folder)).run()


class _Share:
    def __init__(self, assignment: Assignment, folder: Path) -> None:
        self._its = assignment
        self._folder = folder
        self._share = Share()
        self._noting = threading.Lock()
        self._verifiers: dict[float, SharedVerifier] = {}
        self._transport = MeasuredTransport(
            assignment.url,
            assignment.app_key,
            lost_answers=assignment.scenario.fleet.lost_answers,
            chance=random.Random(f"{assignment.seed} network {assignment.first}"),  # noqa: S311
        )

    def run(self) -> Share:
        lives = self._lives()
        began = time.monotonic()
        agenda = Agenda(
            self._its.threads, self._its.starts_at, self._its.scenario, self._its.over.exists
        )
        self._share.lag_s = agenda.run(lives)
        self._share.busy_s = time.monotonic() - began
        self._each(lives, self._flush)
        if self._its.checks:
            self._check(lives)
        self._share.traffic = self._transport.traffic
        self._share.whole_s = time.monotonic() - began
        for life in lives:
            one = life.installation
            self._share.errors.update(one.diary.errors)
            self._share.releases.append((one.traits.device, one.diary.releases))
        return self._share

    def _lives(self) -> list[Life]:
        fleet = self._its.scenario.fleet
        return [self._life(i) for i in range(self._its.first, fleet.devices, self._its.step)]

    def _life(self, index: int) -> Life:
        traits = draw_traits(self._its.scenario, self._its.seed, index)
        chance = random.Random(f"{self._its.seed} life {index}")  # noqa: S311 - a simulation
        return Life(Installation(self._place, traits, chance), self._its.scenario, chance)

    @cached_property
    def _place(self) -> Place:
        return Place(
            model=self._its.model,
            channel=self._its.channel,
            runtime=self._its.runtime,
            candidate=self._its.candidate,
            scenario=self._its.scenario,
            transport=self._transport,
            files=Files(self._transport, is_shared=self._its.shares_files),
            verifier=self._verifier,
            note=self._note,
        )

    def _verifier(self, offset_s: float) -> SharedVerifier:
        if offset_s not in self._verifiers:
            self._verifiers[offset_s] = SharedVerifier(
                self._its.root,
                self._folder / f"clock{offset_s:+.0f}",
                self._transport,
                channel=self._its.channel,
                runtime=self._its.runtime,
                timing=Timing(now=lambda: time.time() + offset_s),
            )
        return self._verifiers[offset_s]

    def _note(self, event: Document) -> None:
        with self._noting:
            self._share.ledger.note(event)

    def _each(self, lives: list[Life], do: Callable[[Life], object]) -> None:
        """Do something for every installation, on all threads."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self._its.threads) as pool:
            for _ in pool.map(do, lives):
                pass

    def _flush(self, life: Life) -> None:
        """Send the rest; a server that throttles is asked again."""
        life.installation.network.is_cut = False
        for _ in range(_FLUSH_TRIES):
            waiting = life.installation.flush()
            if not waiting:
                return
            time.sleep(_FLUSH_PAUSE_S)
        with self._noting:
            self._share.waiting += waiting

    def _check(self, lives: list[Life]) -> None:
        """Bring everybody to rest, then ask once more: nothing may be new."""
        restless = [life for life in lives if not life.installation.is_at_rest()]
        self._each(restless, _poll_and_open)
        self._each(restless, self._flush)
        before = self._transport.traffic
        self._transport.traffic = Traffic()
        self._each(lives, lambda life: life.installation.poll())
        self._share.check_traffic = self._transport.traffic
        self._transport.traffic = before
        before.merge(self._share.check_traffic)
        for life in lives:
            self._share.last_words.append(_last_word(life.installation))


def _poll_and_open(life: Life) -> None:
    life.installation.poll()
    life.installation.open_app(float("inf"))


def _last_word(one: Installation) -> LastWord:
    label, enrolment = one.decision()
    return LastWord(
        device=one.traits.device,
        attributes=one.facts,
        has_right_clock=not one.traits.offset_s,
        label=label,
        enrolment=enrolment,
        running=one.running(),
    )


class Life:
    """When an installation polls, is used and is answered about, in simulated days."""

    def __init__(
        self, installation: Installation, scenario: Scenario, chance: random.Random
    ) -> None:
        """Draw the first start."""
        self.installation = installation
        self._fleet = scenario.fleet
        self._chance = chance
        self._offline_until = 0.0
        self._feedback: list[tuple[float, int, Model]] = []
        self._polls_at = chance.uniform(0, self._fleet.arrival_days)
        # An app asks for its model right after its first start.
        self._opens_at = self._polls_at + chance.uniform(0, 0.01)
        self._leaves_at = self._polls_at + self._gap(self._fleet.offline_per_day)

    @property
    def due(self) -> float:
        """When something happens next, in days."""
        answers_at = self._feedback[0][0] if self._feedback else float("inf")
        return min(self._polls_at, self._opens_at, answers_at)

    def live(self, day: float) -> None:
        """Do the one thing that is due."""
        now = self.due
        self._be_on_or_off(now)
        if self._feedback and self._feedback[0][0] <= now:
            _, _, model = heapq.heappop(self._feedback)
            self.installation.give_feedback(model)
        elif self._polls_at <= now:
            self._polls_at = now + max(self.installation.poll() / DAY_S, 1e-4)
        else:
            self._opens_at = now + self._gap(self._fleet.sessions_per_day)
            self.open_app(day)

    def open_app(self, day: float) -> None:
        """Use the app once, and perhaps be asked whether it was right."""
        model = self.installation.open_app(day)
        asked = self._chance.random() < 1 / self._fleet.feedback_every
        if model is not None and self.installation.traits.gives_feedback and asked:
            delay = self._fleet.feedback_delay_days
            answers_at = day + (self._chance.expovariate(1 / delay) if delay else 0.0)
            heapq.heappush(self._feedback, (answers_at, len(self._feedback), model))

    def _be_on_or_off(self, now: float) -> None:
        if now >= self._leaves_at:
            self._offline_until = now + self._gap(1 / self._fleet.offline_days)
            self._leaves_at = self._offline_until + self._gap(self._fleet.offline_per_day)
        self.installation.network.is_cut = now < self._offline_until

    def _gap(self, per_day: float) -> float:
        return self._chance.expovariate(per_day) if per_day else float("inf")


class Agenda:
    """Calls whoever is due, each in its turn, as simulated days pass."""

    def __init__(
        self, threads: int, starts_at: float, scenario: Scenario, is_over: Callable[[], bool]
    ) -> None:
        """``starts_at`` is in seconds since 1970; ``is_over`` ends it before the last day."""
        self._threads = threads
        self._starts_at = starts_at
        self._scenario = scenario
        self._is_over = is_over
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, Life]] = []
        self._lag_s: array[float] = array("d")
        self._failures: list[BaseException] = []

    def run(self, lives: list[Life]) -> array[float]:
        """Return once the last day is over, with how many real seconds each call came late."""
        self._heap = [(life.due, number, life) for number, life in enumerate(lives)]
        heapq.heapify(self._heap)
        workers = [threading.Thread(target=self._work) for _ in range(self._threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if self._failures:
            raise self._failures[0]
        return self._lag_s

    def _work(self) -> None:
        try:
            while (turn := self._next()) is not None:
                number, life = turn
                life.live(life.due)
                with self._condition:
                    heapq.heappush(self._heap, (life.due, number, life))
                    self._condition.notify()
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            with self._condition:
                self._failures.append(error)
                self._heap.clear()
                self._condition.notify_all()

    def _next(self) -> tuple[int, Life] | None:
        """Wait for the next turn; None when the last day is over, or nothing more is to be seen."""
        with self._condition:
            while True:
                if self._failures:
                    return None
                if not self._heap:  # the others hold all that is left
                    self._condition.wait(0.05)
                    if not self._heap:
                        return None
                    continue
                day = self._heap[0][0]
                if day > self._scenario.days or self._is_over():
                    return None
                late_s = time.time() - (self._starts_at + day * self._scenario.day_s)
                if late_s >= 0:
                    _, number, life = heapq.heappop(self._heap)
                    self._lag_s.append(late_s if self._scenario.day_s else 0.0)
                    return number, life
                self._condition.wait(min(-late_s, 1.0))

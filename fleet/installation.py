"""One simulated installation: the SDK's parts put together as its client does, and an app's day."""

from __future__ import annotations

import math
import random
import uuid
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nightferry import __version__
from nightferry.device import SystemProbe
from nightferry.embedded import EmbeddedModels
from nightferry.errors import NightferryError, PredictionError
from nightferry.events import EventQueue
from nightferry.inventory import Inventory
from nightferry.models import ActivationMode
from nightferry.polling import PollingRound
from nightferry.timing import Timing
from nightferry.trial import Trial
from nightferry.updates import Collaborators, Updates, Wish
from nightferry.usage import Usage

from fleet.network import DeviceDownloader, DeviceNetwork, DeviceVerifier
from fleet.storage import DeviceCache, MemoryEvents, MemoryStates

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightferry.manifest import Document
    from nightferry.models import Model

    from fleet.network import Files, MeasuredTransport, SharedVerifier
    from fleet.scenario import Behaviour, DeviceClass, Scenario

DAY_S = 86400.0
_SPREAD = 0.25  # of latencies, in natural logarithms
_SLOW_FACTOR = 1.5  # slow is so far above the limit


@dataclass(frozen=True)
class Place:
    """Where installations live: the server, the model, and what a process shares."""

    model: str
    channel: str
    runtime: str
    candidate: int
    scenario: Scenario
    transport: MeasuredTransport
    files: Files
    verifier: Callable[[float], SharedVerifier]
    note: Callable[[Document], None]


@dataclass(frozen=True)
class Traits:
    """What one installation is like, drawn once."""

    device: str
    hardware: DeviceClass
    app_version: str
    offset_s: float
    gives_feedback: bool
    telemetry: bool


@dataclass
class Diary:
    """What an installation saw: times it took a release into use, and what went wrong."""

    releases: list[tuple[float, str, int, str]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


class Installation:
    """Polls, uses what it has, and reports; one thread at a time calls it."""

    def __init__(self, place: Place, traits: Traits, chance: random.Random) -> None:
        """Put the SDK's parts together; nothing is asked yet."""
        self.traits = traits
        self.facts = _facts(place, traits)
        self.diary = Diary()
        self._place = place
        self._chance = chance
        self._states = MemoryStates(traits.device, channel=place.channel, runtime=place.runtime)
        cache = DeviceCache(self._states)
        timing = Timing(now=_clock(traits.offset_s), uniform=chance.uniform)
        self._inventory = Inventory(
            cache, self._states, EmbeddedModels({}, runtime=place.runtime), timing.now
        )
        self.network = DeviceNetwork(place.transport, DeviceDownloader(place.files, cache.put))
        self._events = EventQueue(
            MemoryEvents(place.note),
            channel=place.channel,
            device=lambda: traits.device,
            enabled=traits.telemetry,
            device_class=traits.hardware.name,
            sample_bp=self._inventory.sample_bp,
            now=timing.now,
        )
        self._trial = Trial(self._inventory, self._events, timing, ActivationMode.NEXT_LOAD)
        self._updates = Updates(
            Collaborators(
                inventory=self._inventory,
                network=self.network,
                verifier=DeviceVerifier(place.verifier(traits.offset_s), self.network),
                events=self._events,
                trial=self._trial,
                probe=SystemProbe(),
                timing=timing,
            ),
            channel=place.channel,
            runtime=place.runtime,
            facts=self.facts,
            device=lambda: traits.device,
        )
        self._round = PollingRound(self._inventory, timing, self._update, [place.model], None)

    def poll(self) -> float:
        """Ask and bring in, as the SDK does in the background; return seconds until the next."""
        wait_s = self._round.run()
        self.flush()
        per_day = self._place.scenario.fleet.polls_per_day
        return wait_s if not per_day else DAY_S / per_day * self._chance.uniform(0.8, 1.2)

    def flush(self) -> int:
        """Send what waits; return how many events wait still."""
        try:
            self._events.flush(lambda path, body: self.network.transport().post(path, body))
        except NightferryError as error:
            self.diary.errors[error.code] += 1
        return self._events.count()

    def open_app(self, day: float) -> Model | None:
        """Run the app once; return the model that somebody may say something about."""
        self._states.start_process()
        model = self._trial.take(self._place.model)
        if model is None:
            return None
        self._note_release(day, model)
        does = self._behaviour(model)
        usage = self._use(model, does)
        if self._meets(model, "load_failure", does.load_failure):
            usage.failed(PredictionError("It could not be loaded (simulated)."), code="load")
            return None
        if self._meets(model, "crash", does.crash):
            return None  # the process is gone before it could say anything
        if self._meets(model, "inference_error", does.inference_error):
            usage.failed(PredictionError("A prediction failed (simulated)."))
            self._fail(model, day)
            return None
        for _ in range(self._place.scenario.fleet.predictions_per_session):
            usage.succeeded(self._latency_ms(model, does))
        self._trial.end()
        return model

    def give_feedback(self, model: Model) -> None:
        """Say whether a prediction of that model was right."""
        is_right = self._chance.random() < self._behaviour(model).success
        self._events.record("feedback", model, {"correct": is_right})

    def decision(self) -> tuple[str, str]:
        """Return the label on offer, and the enrolment as ``rollout:arm``; empty without."""
        offered = self._states.load(self._place.model).offered
        if offered is None:
            return "", ""
        enrolment = offered.enrolment
        return offered.label, f"{enrolment.rollout}:{enrolment.arm}" if enrolment else ""

    def is_at_rest(self) -> bool:
        """Tell whether it runs what it was offered last."""
        state = self._states.load(self._place.model)
        return state.offered is not None and state.pending() is None

    def running(self) -> str:
        """Return the label in use, empty for none."""
        return self._inventory.label(self._place.model)

    def _update(self, name: str) -> Model | None:
        try:
            self._updates.bring_in(name, _ANY_TIME)
            self._trial.settle(name, at_once=False)
        except NightferryError as error:
            self.diary.errors[error.code] += 1
            raise
        return None

    def _use(self, model: Model, does: Behaviour) -> Usage:
        return Usage(
            model,
            self._events,
            self._trial,
            current=lambda: self._inventory.current(model.name),
            limit_ms=does.limit_ms,
        )

    def _fail(self, model: Model, day: float) -> None:
        """Leave the model as an app does that finds it broken."""
        self._trial.fall_back(model.name, "reported", "Predictions failed (simulated).")
        self.diary.errors["simulated failure"] += 1
        left = self._inventory.current(model.name)
        if left is not None:
            self._note_release(day, left)

    def _latency_ms(self, model: Model, does: Behaviour) -> float:
        if self._meets(model, "slow", does.slow):
            return does.limit_ms * _SLOW_FACTOR
        median = min(does.latency_ms * self.traits.hardware.slowness, does.limit_ms / 2)
        return min(median * math.exp(self._chance.gauss(0, _SPREAD)), does.limit_ms)

    def _behaviour(self, model: Model) -> Behaviour:
        scenario = self._place.scenario
        if model.version != self._place.candidate:
            return scenario.incumbent
        return replace(scenario.candidate, **self.traits.hardware.candidate)

    def _meets(self, model: Model, what: str, share: float) -> bool:
        """Tell whether this installation is among those that meet it with that version."""
        if share <= 0:
            return False
        draw = random.Random(f"{self.traits.device} {model.version} {what}").random()  # noqa: S311
        return draw < share

    def _note_release(self, day: float, model: Model) -> None:
        arm = model.enrolment.arm if model.enrolment else ""
        last = self.diary.releases[-1] if self.diary.releases else None
        if last is None or (last[1], last[3]) != (model.label, arm):
            self.diary.releases.append((day, model.label, model.version, arm))


def _facts(place: Place, traits: Traits) -> dict[str, str]:
    """Return what the installation says of itself in every update check."""
    return {
        "runtime": place.runtime,
        "app_version": traits.app_version,
        "sdk_version": __version__,
        "platform": traits.hardware.platform,
        "os_version": traits.hardware.os_version,
        "device_class": traits.hardware.name,
    }


def draw_traits(scenario: Scenario, seed: str, index: int) -> Traits:
    """Draw what installation ``index`` of a run is like; the same seed draws the same."""
    chance = random.Random(f"{seed} traits {index}")  # noqa: S311 - a simulation
    fleet = scenario.fleet
    return Traits(
        device=str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        hardware=chance.choices(fleet.classes, [one.share for one in fleet.classes])[0],
        app_version=chance.choices(list(fleet.app_versions), list(fleet.app_versions.values()))[0],
        offset_s=_draw_offset(scenario, chance),
        gives_feedback=chance.random() < fleet.feedback_share,
        telemetry=chance.random() >= fleet.opted_out,
    )


def _draw_offset(scenario: Scenario, chance: random.Random) -> float:
    place = chance.random()
    for clock in scenario.fleet.clocks:
        if place < clock.share:
            return clock.offset_s
        place -= clock.share
    return 0.0


def _clock(offset_s: float) -> Callable[[], float]:
    import time

    return time.time if not offset_s else lambda: time.time() + offset_s


def _never() -> bool:
    return False


def _unheard(_done: int, _total: int) -> None:
    pass


_ANY_TIME = Wish(None, _never, _unheard)

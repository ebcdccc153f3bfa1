"""Looking for updates while the app runs, in a thread that never delays the app's start."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nightferry import log
from nightferry.errors import NetworkError, NightferryError
from nightferry.timing import MAX_RETRY_AFTER_S

if TYPE_CHECKING:
    from nightferry.inventory import Inventory
    from nightferry.models import Model
    from nightferry.timing import Timing


_AFTER_SURPRISE_S = 3600.0


class PollingRound:
    """One look at every model, and how long to wait for the next."""

    def __init__(
        self,
        inventory: Inventory,
        timing: Timing,
        update: Callable[[str], Model | None],
        models: Sequence[str] | None,
        on_update: Callable[[Model], object] | None,
    ) -> None:
        """Look after ``models``, by default all that are known; tell ``on_update`` of news."""
        self._inventory = inventory
        self._timing = timing
        self._update = update
        self._models = models
        self._on_update = on_update
        self._failures = 0

    def first_delay_s(self) -> float:
        """Return when to look first: at random, and not before a Retry-After is over."""
        waits = [sent_away_s(self._inventory, self._timing, name) for name in self._names()]
        return self._timing.first_poll_delay_s() + max(waits, default=0.0)

    def run(self) -> float:
        """Update every model once; return the seconds until the next round."""
        failure: NetworkError | None = None
        for name in self._names():
            try:
                self._tell(name, self._update(name))
            except NightferryError as error:
                log.info("%s was not updated. %s", name, error)
                failure = error if isinstance(error, NetworkError) else failure
        if failure is None:
            self._failures = 0
            return self._timing.poll_delay_s(*self._wish())
        self._failures += 1
        return self._timing.backoff_s(self._failures, failure.retry_after_s)

    def _names(self) -> Sequence[str]:
        return self._inventory.names() if self._models is None else self._models

    def _tell(self, name: str, model: Model | None) -> None:
        if model is None or self._on_update is None:
            return
        try:
            self._on_update(model)
        except Exception:  # noqa: BLE001 - the app's code may raise anything
            log.exception("The on_update callback failed for %s.", name)

    def _wish(self) -> tuple[float | None, float | None]:
        """Return the shortest interval the server asks for, in seconds, and its jitter."""
        offers = [self._inventory.states.load(name).offered for name in self._names()]
        wishes = [
            (offer.poll_interval_s, offer.poll_jitter)
            for offer in offers
            if offer is not None and offer.poll_interval_s is not None
        ]
        return min(wishes, key=lambda wish: wish[0]) if wishes else (None, None)


class Poller:
    """Runs rounds until stopped, each after the delay that the one before returned."""

    def __init__(self, run: Callable[[], float], first_delay_s: float) -> None:
        """Prepare the thread."""
        self._round = run
        self._delay_s = first_delay_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nightferry-poll", daemon=True)

    def start(self) -> None:
        """Start the thread and return at once."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ask the thread to end and wait up to ``timeout_s`` for a round under way."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopped.wait(self._delay_s):
            try:
                self._delay_s = self._round()
            except Exception:  # noqa: BLE001 - the thread must live
                log.exception("A poll failed unexpectedly; the next one comes in an hour.")
                self._delay_s = _AFTER_SURPRISE_S


def sent_away_s(inventory: Inventory, timing: Timing, name: str) -> float:
    """Return how long the server's last Retry-After still holds, in seconds."""
    until = inventory.states.load(name).retry_at
    left = 0.0 if until is None else until - timing.now()
    # A clock that jumped must not silence the device: a day is the most a server may ask.
    return left if 0 < left <= MAX_RETRY_AFTER_S else 0.0

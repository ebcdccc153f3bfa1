"""How a release that is ready comes into use, proves itself, or goes out of use again.

A release newly in use is on trial. It is confirmed when the app says so, when its predictions were
good often enough, or when three processes used it and ended in order: the client was closed, or
Python came to its end without an error. It goes out of use when the app reports a failure, or when
two processes in a row began to use it and ended otherwise, killed or crashed, and none had one good
prediction: so it looks when a model takes the app down with it. One such start alone proves
nothing, nor do processes that still run. A confirmed release is never judged so, nor one without
anything to return to.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nightferry import log
from nightferry.errors import NightferryError
from nightferry.files import FileLock, remove, unique_suffix
from nightferry.models import ActivationMode, Model, ModelState
from nightferry.state import Installed, State

if TYPE_CHECKING:
    from pathlib import Path

    from nightferry.events import EventQueue
    from nightferry.inventory import Inventory
    from nightferry.timing import Timing

_A_MINUTE_S = 60.0


@dataclass
class _Start:
    """That this process uses a release: one start, however many clients it makes.

    Where the release is on trial, ``lock`` is held until the process is done with it, so that
    others see who is alive. ``users`` are the clients that use it, ``end`` notes that all did.
    """

    lock: FileLock
    end: Callable[[], None] | None = None
    users: set[int] = field(default_factory=set)


_begun: dict[tuple[object, ...], _Start] = {}
_beginning = threading.Lock()


class Trial:
    """Decides what is in use. Every step writes the next state before its effect shows."""

    def __init__(
        self, inventory: Inventory, events: EventQueue, timing: Timing, mode: ActivationMode
    ) -> None:
        """Use these parts."""
        self._inventory = inventory
        self._states = inventory.states
        self._events = events
        self._timing = timing
        self._mode = mode
        self._used: set[tuple[object, ...]] = set()

    def take(self, name: str) -> Model | None:
        """Return the model to run now, which this process begins to use with that; None for none.

        What is ready comes into use first, where the mode says so, and what crashed goes. What
        has lain ready for long waits until the signed metadata are up to date again: it may have
        been recalled.
        Raises EmbeddedModelError where only the embedded model is left and it is unusable.
        """
        state = self._states.load(name)
        is_ready = state.staged is not None and state.staged.is_ready
        may = is_ready and state.is_informed(self._timing.now())
        if self._mode is not ActivationMode.MANUAL and (may or state.wants_embedded()):
            self.activate(name)
        for _ in range(3):  # the active release and the one before it may both have crashed
            model = self._inventory.current(name)
            if model is None or model.is_embedded or not self._begin(name, model):
                break
        return model

    def settle(self, name: str, *, at_once: bool) -> None:
        """Put in use what was brought in, if now is the time: the app waits for it, or it must be.

        Where there is no model at all, the first one is used whatever the mode.
        """
        state = self._states.load(name)
        is_urgent = state.wants_embedded() or bool(state.staged and state.staged.mandatory)
        may = self._mode is not ActivationMode.MANUAL
        now = self._mode is ActivationMode.IMMEDIATE or at_once or is_urgent
        if (may and now) or not self._inventory.has_model(name):
            self.activate(name)

    def activate(self, name: str) -> None:
        """Put the release that is ready in use, or the embedded model if that is ordered."""
        before = self._states.load(name)
        state = self._states.update(name, self._next_active)
        if state.active == before.active:
            return
        if state.active is not None:
            log.info("%s %s is in use now.", name, state.active.manifest.label)
            self._record("activated", state.active)
        else:
            reason = state.offered.reason if state.offered else ""
            self.tell_roll_back(name, before.active, reason)
        patches = state.active.manifest.patches if state.active else ()
        leftovers = frozenset(patch.sha256 for patch in patches)
        self._inventory.remove_unreferenced(before.referenced() | leftovers)

    def has_inferred(self, model: Model) -> bool:
        """Tell whether it was told already that this release works, under this enrolment."""
        active = self._states.load(model.name).active
        return active is not None and _is_of(active, model) and active.inferred == _echo(model)

    def inferred(self, model: Model) -> None:
        """Note that it was told."""
        echo = _echo(model)
        self._states.update(model.name, _if_active(model, lambda state: state.inferred(echo)))

    def succeeded(self, model: Model) -> bool:
        """Count a good prediction; tell whether nothing more needs counting for this model."""
        active = self._states.load(model.name).active
        if active is None or not _is_of(active, model) or active.confirmed:
            return True
        state = self._states.update(model.name, _if_active(model, State.succeeded))
        if state.active is None or not state.active.confirmed:
            return False
        self._record("confirmed", state.active, by="predictions")
        return True

    def confirm(self, name: str) -> None:
        """Note, once per release, that the app is content with it."""
        active = self._states.load(name).active
        if active is not None and not active.confirmed:
            self._states.update(name, State.confirmed)
            self._record("confirmed", active, by="app")

    def fall_back(self, name: str, code: str, reason: str) -> None:
        """Leave the release in use, which failed, for the previous one, else the embedded one."""
        before = self._states.load(name)
        now = self._timing.now()
        state = self._states.update(name, lambda state: state.fallen_back(code, now))
        failed = before.active
        if failed is None:
            current = self._inventory.current(name)
            if current is not None:
                self._events.record("failed", current, {"code": code, "reason": reason})
            return
        self._record("failed", failed, code=code, reason=reason)
        self.tell_roll_back(name, failed, code)
        self._inventory.remove_unreferenced(before.referenced() - state.referenced())

    def tell_roll_back(self, name: str, left: Installed | None, reason: str) -> None:
        """Record that a release is out of use."""
        if left is not None:
            to = self._inventory.label(name)
            log.warning(
                "%s %s is out of use (%s).", name, left.manifest.label, reason or "rolled back"
            )
            self._record("rolled_back", left, to=to, reason=reason)

    def end(self) -> None:
        """Note that what was taken here is done with, in order."""
        with _beginning:
            for key in self._used:
                start = _begun[key]
                start.users.discard(id(self))
                if not start.users:
                    _end(start)
            self._used.clear()

    def _begin(self, name: str, model: Model) -> bool:
        """Count the start of a process; return True where the release has crashed and was left."""
        key = (os.getpid(), self._states.path_of(name), model.label, model.sha256)
        with _beginning:
            start = _begun.get(key)
            if start is None or not start.users:
                state = self._states.load(name)
                if state.active and _is_of(state.active, model) and not state.active.confirmed:
                    if start is None and self._leaves_crashed(name, model, state):
                        return True
                    start = self._begin_on_trial(name, model, is_first=start is None)
                _begun[key] = start = start or _Start(FileLock(self._starts_of(name, model)))
            start.users.add(id(self))
            self._used.add(key)
        self._inventory.cache.touch(model.sha256)
        return False

    def _leaves_crashed(self, name: str, model: Model, state: State) -> bool:
        """Leave the release on trial if it has crashed; warn where nothing has confirmed it yet."""
        active = state.active
        if active is None:
            return False
        running = _count_running(self._starts_of(name, model))
        if active.has_crashed(running) and self._inventory.has_way_back(name, state):
            self.fall_back(name, "crashed", f"started {active.starts} times in vain")
            return True
        if active.starts + active.ends and not active.successes:
            log.warning(
                "%s %s is used again and nothing has confirmed it. Call notify_ready(%r) once "
                "the app works with it.",
                *(name, model.label, name),
            )
        return False

    def _begin_on_trial(self, name: str, model: Model, *, is_first: bool) -> _Start:
        lock = FileLock(self._starts_of(name, model) / f"{unique_suffix()}.lock")
        lock.try_acquire()
        begun = State.started if is_first else State.resumed
        self._states.update(name, _if_active(model, begun))
        return _Start(lock, lambda: self._note_end(name, model))

    def _note_end(self, name: str, model: Model) -> None:
        others = max(0, _count_running(self._starts_of(name, model)) - 1)
        before = self._states.load(name).active
        state = self._states.update(name, _if_active(model, lambda state: state.ended(others)))
        if before and state.active and state.active.confirmed and not before.confirmed:
            self._record("confirmed", state.active, by="starts")

    def _starts_of(self, name: str, model: Model) -> Path:
        """Return the folder of the locks that processes hold while they use a release on trial."""
        return self._states.path_of(name).with_name("starts") / f"{model.label}-{model.sha256[:16]}"

    def _next_active(self, state: State) -> State:
        """Return the state after activation: ready and still here, embedded if ordered, or same."""
        if state.wants_embedded():
            return state.rolled_back_to_embedded()
        if state.staged is None or not state.staged.is_ready:
            return state
        if self._inventory.is_usable(state.staged, state):
            return state.activated()
        return replace(state, staged=None).settled()

    def _record(self, kind: str, installed: Installed, **data: object) -> None:
        # By the latest word: a rollout may have begun after the release was installed.
        state = self._states.load(installed.manifest.model)
        self._events.record(kind, self._inventory.model(installed, ModelState.ACTIVE, state), data)


def _end(start: _Start) -> None:
    """Note an end in order, once; whatever hinders that, it hinders nothing else."""
    end, start.end = start.end, None
    if end is not None:
        with contextlib.suppress(NightferryError, OSError):
            end()
        start.lock.release()


def _end_at_exit() -> None:
    """Note with Python's end that this process is done in order with all that it took."""
    error = getattr(sys, "last_value", None)  # what has ended Python, if an error has
    if isinstance(error, Exception) and not hasattr(sys, "ps1"):
        return
    for key, start in list(_begun.items()):
        if key[0] == os.getpid():  # not what the process did that this one was forked from
            _end(start)


atexit.register(_end_at_exit)


def _count_running(folder: Path) -> int:
    """Count the processes that hold a lock there; sweep what the others left."""
    running = 0
    for path in folder.glob("*.lock"):
        lock = FileLock(path)
        if not lock.try_acquire():
            running += 1
            continue
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _A_MINUTE_S:  # not one that is being taken
                remove(path)
        lock.release()
    return running


def _echo(model: Model) -> str:
    return f"{model.enrolment.rollout}:{model.enrolment.arm}" if model.enrolment else "-"


def _is_of(installed: Installed, model: Model) -> bool:
    return (installed.manifest.label, installed.sha256) == (model.label, model.sha256)


def _if_active(model: Model, change: Callable[[State], State]) -> Callable[[State], State]:
    """Return the change where that release is in use still; another process may have left it."""
    return lambda state: change(state) if state.active and _is_of(state.active, model) else state

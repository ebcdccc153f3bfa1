"""How a release gets in: ask, bring in, put in use, and the ways back.

Every step writes the next state before its effect shows (see ``nightferry.state``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nightferry import log
from nightferry.device import DeviceProbe, check_conditions, platform_facts
from nightferry.errors import (
    ArtifactGoneError,
    IntegrityError,
    InvalidManifestError,
    NetworkError,
    NightferryError,
)
from nightferry.manifest import Document, Kind, Manifest, parse_manifest
from nightferry.models import DownloadConditions, Model, ModelState, Update
from nightferry.state import Installed, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nightferry.events import EventQueue
    from nightferry.inventory import Inventory
    from nightferry.network import Network
    from nightferry.timing import Timing
    from nightferry.trust import Verifier

Progress = Callable[[int, int], object]

_ANYTHING_GOES = DownloadConditions()


@dataclass(frozen=True)
class Collaborators:
    """Who helps: what is here, the server, who decides, who tells, and the device."""

    inventory: Inventory
    network: Network
    verifier: Verifier
    events: EventQueue
    probe: DeviceProbe
    timing: Timing


class Updates:
    """The steps of one model's update. Callers keep two updates of one model from overlapping."""

    def __init__(
        self,
        collaborators: Collaborators,
        *,
        channel: str,
        facts: Mapping[str, str],
        device: Callable[[], str],
    ) -> None:
        """Use these parts; ``facts`` and ``device`` go into every update check."""
        self._inventory = collaborators.inventory
        self._states = collaborators.inventory.states
        self._cache = collaborators.inventory.cache
        self._network = collaborators.network
        self._verifier = collaborators.verifier
        self._events = collaborators.events
        self._probe = collaborators.probe
        self._timing = collaborators.timing
        self._channel = channel
        self._facts = facts
        self._device = device

    def ask(self, name: str, *, afresh: bool = False) -> State:
        """Ask the server what to run and remember the answer.

        Args:
            name: the model's slug.
            afresh: without the validator of the last answer.

        Raises:
            NetworkError, RequestRefusedError, ProtocolError: what is in use stays.

        """
        before = self._inventory.forget_missing(name)
        current = self._inventory.label(name)
        etag = "" if afresh else _usable_etag(before, current)
        try:
            answer = self._network.transport().get(
                f"/models/{name}/update", self._query(before, current), etag
            )
        except NetworkError as error:
            self._remember_retry_after(name, error)
            raise
        now = self._timing.now()
        if answer.status == 304:  # noqa: PLR2004
            return self._states.update(name, lambda state: state.unchanged(now))
        if answer.status == 204:  # noqa: PLR2004
            return self._states.update(name, lambda state: state.nothing_offered(now))
        manifest = _read_manifest(name, answer.document)
        state = self._states.update(name, lambda state: state.answered(manifest, answer.etag, now))
        self._obey_revocations(name, before, state)
        self._tell_assignment(before, state)
        return state

    def update(self, name: str, conditions: DownloadConditions | None, report: Progress) -> bool:
        """Ask, bring in and put in use what is not held back; tell whether something changed."""
        state = self.ask(name)
        held_back = state.held_back(self._timing.now())
        if held_back is not None:
            log.info("%s: not installed, since %s.", name, held_back)
        if held_back is not None or state.pending() is None:
            return False
        before = self._inventory.label(name)
        self._stage(name, state, conditions, report)
        self.activate(name)
        return self._inventory.label(name) != before

    def fetch(self, name: str, conditions: DownloadConditions | None, report: Progress) -> bool:
        """Ask and bring in, also what is held back; tell whether something is to be activated."""
        state = self.ask(name)
        if state.pending() is None:
            return False
        self._stage(name, state, conditions, report)
        return True

    def activate(self, name: str) -> None:
        """Put the staged release in use, or the embedded model if the server wants that."""
        before = self._states.load(name)
        state = self._states.update(name, self._next_active)
        if state.active == before.active:
            return
        if state.active is not None:
            log.info("%s %s is in use now.", name, state.active.manifest.label)
            self._record("activated", state.active)
        else:
            reason = state.offered.reason if state.offered else ""
            self._tell_roll_back(name, before.active, reason)
        self._inventory.remove_unreferenced(before.referenced())

    def fall_back(self, name: str, reason: str) -> None:
        """Leave the release in use, which failed, for the previous one, else the embedded one."""
        before = self._states.load(name)
        now = self._timing.now()
        state = self._states.update(name, lambda state: state.fallen_back("reported", now))
        failed = before.active
        if failed is None:
            current = self._inventory.current(name)
            if current is not None:
                self._events.record("failed", current, {"code": "reported", "reason": reason})
            return
        self._record("failed", failed, code="reported", reason=reason)
        self._tell_roll_back(name, failed, "reported")
        self._inventory.remove_unreferenced(before.referenced() - state.referenced())

    def confirm(self, name: str) -> None:
        """Note, once per release, that the app is content with it."""
        active = self._states.load(name).active
        if active is not None and not active.confirmed:
            self._states.update(name, State.confirmed)
            self._record("confirmed", active)

    def describe(self, state: State) -> Update | None:
        """Return what the server wants changed, None where nothing is."""
        manifest = state.pending()
        if manifest is None:
            return None
        artifact = manifest.artifact if manifest.kind is Kind.UPDATE else None
        size_bytes = artifact.size_bytes if artifact else 0
        is_here = artifact is None or self._cache.has(artifact.sha256, size_bytes)
        return Update(
            name=manifest.model,
            label=manifest.label,
            version=manifest.version,
            kind=manifest.kind.value,
            reason=manifest.reason,
            notes=manifest.notes,
            mandatory=manifest.mandatory,
            size_bytes=size_bytes,
            download_bytes=0 if is_here else size_bytes,
            held_back=state.held_back(self._timing.now()),
        )

    def _query(self, state: State, current: str) -> dict[str, str]:
        query = {
            "device": self._device(),
            "channel": self._channel,
            **platform_facts(),
            **self._facts,
        }
        if current:
            query["current"] = current
        enrolment = state.offered.enrolment if state.offered else None
        if enrolment:
            query["enrolled"] = f"{enrolment.rollout}:{enrolment.arm}"
        return query

    def _remember_retry_after(self, name: str, error: NetworkError) -> None:
        if error.retry_after_s:
            until = self._timing.now() + error.retry_after_s
            self._states.update(name, lambda state: state.sent_away(until))

    def _obey_revocations(self, name: str, before: State, state: State) -> None:
        """Delete revoked files; the state that no longer names them is on disk already."""
        if before.active and before.active.sha256 in state.revoked:
            self._tell_roll_back(name, before.active, "revoked")
        self._inventory.remove_unreferenced(before.referenced() - state.referenced())
        self._inventory.remove_unreferenced(state.revoked)

    def _tell_assignment(self, before: State, state: State) -> None:
        """Record which release and arm this installation was given, when that is news."""
        offered = state.offered
        if offered is None or offered.artifact is None or offered.kind is not Kind.UPDATE:
            return
        known = before.offered
        if known and (known.label, known.enrolment) == (offered.label, offered.enrolment):
            return
        path = self._cache.relative_path_of(offered.artifact.sha256)
        self._record("assigned", Installed(offered, path), reason=offered.reason)

    def _stage(
        self,
        name: str,
        state: State,
        conditions: DownloadConditions | None,
        report: Progress,
    ) -> None:
        manifest = state.pending()
        if manifest is None or manifest.kind is Kind.ROLLBACK_TO_EMBEDDED:
            return
        try:
            self._bring_in(name, manifest, conditions, report)
        except ArtifactGoneError:
            # Withdrawn since the manifest was made, or an expired address: the server knows.
            renewed = self.ask(name, afresh=True).pending()
            if renewed is not None and renewed.kind is not Kind.ROLLBACK_TO_EMBEDDED:
                self._bring_in(name, renewed, conditions, report)

    def _bring_in(
        self,
        name: str,
        manifest: Manifest,
        conditions: DownloadConditions | None,
        report: Progress,
    ) -> None:
        target = self._verifier.authorise(manifest)
        staged = Installed(manifest, self._cache.relative_path_of(target.sha256))
        if not self._cache.has(target.sha256, target.size_bytes):
            check_conditions(conditions or _ANYTHING_GOES, self._probe, target.size_bytes)
            self._states.update(name, State.downloading)
            started = time.monotonic()
            try:
                # A patch from a cached release will be tried here, before the whole file.
                receipt = self._network.downloader().fetch(
                    target, f"{name} {manifest.label}", report
                )
            except IntegrityError as error:
                self._note_failure(name, staged, error)
                raise
            self._record(
                "downloaded",
                staged,
                received_bytes=receipt.received_bytes,
                resumed_bytes=receipt.resumed_bytes,
                duration_ms=round((time.monotonic() - started) * 1000),
            )
        self._states.update(name, lambda state: state.with_staged(staged))

    def _note_failure(self, name: str, staged: Installed, error: NightferryError) -> None:
        now = self._timing.now()
        self._states.update(name, lambda state: state.failed(staged.manifest, error.code, now))
        self._record("failed", staged, code=error.code, reason=str(error))

    def _next_active(self, state: State) -> State:
        """Return the state after activation: staged and still here, embedded if wanted, or same."""
        offered = state.pending()
        if offered is not None and offered.kind is Kind.ROLLBACK_TO_EMBEDDED:
            return state.rolled_back_to_embedded()
        if state.staged is not None and self._inventory.is_usable(state.staged, state):
            return state.activated()
        return replace(state, staged=None)

    def _tell_roll_back(self, name: str, left: Installed | None, reason: str) -> None:
        if left is not None:
            to = self._inventory.label(name)
            log.warning(
                "%s %s is out of use (%s).", name, left.manifest.label, reason or "rolled back"
            )
            self._record("rolled_back", left, to=to, reason=reason)

    def _record(self, kind: str, installed: Installed, **data: object) -> None:
        model: Model = self._inventory.model(installed, ModelState.ACTIVE)
        self._events.record(kind, model, data)


def _read_manifest(name: str, document: Document) -> Manifest:
    manifest = parse_manifest(document)
    if manifest.model != name:
        raise InvalidManifestError(
            f"The server answered for {manifest.model!r} when asked for {name!r}."
        )
    return manifest


def _usable_etag(state: State, current: str) -> str:
    """Return the validator, unless a 304 would leave us without anything to act on.

    "none" means: what you reported is right. Where that is no longer what is here, ask in full.
    """
    offered = state.offered
    if offered is None or (offered.kind is Kind.NONE and offered.label != current):
        return ""
    return state.etag

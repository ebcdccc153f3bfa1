"""How a release gets in: ask, believe what is signed, bring in, test.

Every step writes the next state before its effect shows (see ``nightferry.state``). What comes of
it in use is the matter of ``nightferry.trial``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nightferry import log
from nightferry.acquisition import Acquisition, Leave, Phases
from nightferry.device import DeviceProbe, platform_facts
from nightferry.errors import (
    ArtifactGoneError,
    CompileFailedError,
    ConditionsNotMetError,
    EmbeddedModelError,
    IntegrityError,
    InvalidManifestError,
    ModelRetiredError,
    NetworkError,
    NightferryError,
    NoTrustedRootError,
    SelfTestError,
    SelfTestUnrunnableError,
    TargetUnlistedError,
    TrustError,
    UnknownModelError,
)
from nightferry.events import Nothing
from nightferry.manifest import Document, Kind, Manifest, parse_manifest
from nightferry.models import DownloadConditions, ModelState, Update
from nightferry.state import (
    MAX_TESTS,
    REFRESH_AFTER_S,
    Installed,
    Phase,
    State,
    same_release,
)
from nightferry.trust import same_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nightferry.compiled import Compiler
    from nightferry.events import EventQueue
    from nightferry.inventory import Inventory
    from nightferry.models import Model, Transfer
    from nightferry.network import Network
    from nightferry.timing import Timing
    from nightferry.trial import Trial
    from nightferry.trust import Authorisation, Verifier

Progress = Callable[[int, int], object]

_DAY_S = 86400
_UNDER_WAY = frozenset({Phase.DOWNLOADING, Phase.VERIFYING})


@dataclass(frozen=True)
class Collaborators:
    """Who helps: what is here, the server, who decides, who tells, and the device."""

    inventory: Inventory
    network: Network
    verifier: Verifier
    events: EventQueue
    trial: Trial
    probe: DeviceProbe
    timing: Timing
    compiler: Compiler | None = None


@dataclass(frozen=True)
class Wish:
    """How an update is wished: under which conditions, until when, and who hears of it."""

    conditions: DownloadConditions | None
    stopped: Callable[[], bool]
    report: Progress


class Updates:
    """The steps of one model's update. Callers keep two updates of one model from overlapping."""

    def __init__(
        self,
        collaborators: Collaborators,
        *,
        channel: str,
        runtime: str,
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
        self._trial = collaborators.trial
        self._probe = collaborators.probe
        self._timing = collaborators.timing
        self._compiler = collaborators.compiler
        self._acquisition = Acquisition(self._inventory, self._network, self._verifier)
        self._channel = channel
        self._runtime = runtime
        self._facts = facts
        self._device = device
        self._refreshed_at: dict[str, float] = {}
        self._refusals: set[tuple[str, str, str]] = set()

    def ask(self, name: str, *, afresh: bool = False) -> State:
        """Ask the server what to run, and what is signed; remember both.

        Args:
            name: the model's slug.
            afresh: without the validator of the last answer.

        Raises:
            NetworkError, RequestRefusedError, ProtocolError, TrustError: what is in use stays.

        """
        self._states.update(name, State.checking)
        try:
            return self._ask(name, afresh=afresh)
        except NetworkError as error:
            self._remember_retry_after(name, error)
            raise
        finally:
            self._states.update(name, State.settled)

    def bring_in(self, name: str, wish: Wish) -> bool:
        """Ask, and make ready what is not held back; tell whether something is newly ready."""
        state = self.ask(name)
        held_back = state.held_back(self._timing.now(), has_model=self._inventory.has_model(name))
        if held_back is not None:
            log.info("%s: not installed, since %s.", name, held_back)
        if held_back is not None or state.pending() is None:
            return False
        was_ready = _is_ready(state)
        self._stage(name, state, wish)
        return _is_ready(self._states.load(name)) and not was_ready

    def fetch(self, name: str, wish: Wish) -> bool:
        """Ask and make ready, also what is held back; tell whether something is to be activated."""
        state = self.ask(name)
        if state.pending() is None:
            return False
        self._stage(name, state, wish)
        return True

    def known_revoked(self, name: str) -> frozenset[str]:
        """Return what the signed policy on the device revokes, whatever its age."""
        policy = self._verifier.known_policy(name)
        return policy.revoked if policy else frozenset()

    def describe(self, state: State) -> Update | None:
        """Return what the server wants changed, None where nothing is."""
        manifest = state.pending()
        if manifest is None:
            return None
        artifact = manifest.artifact if manifest.kind is Kind.UPDATE else None
        return Update(
            name=manifest.model,
            label=manifest.label,
            version=manifest.version,
            kind=manifest.kind.value,
            reason=manifest.reason,
            notes=manifest.notes,
            mandatory=manifest.mandatory,
            size_bytes=artifact.size_bytes if artifact else 0,
            download_bytes=self._download_bytes(manifest),
            held_back=state.held_back(self._timing.now()),
        )

    # Asking

    def _ask(self, name: str, *, afresh: bool) -> State:
        self._refresh_if_due(name)
        before = self._inventory.forget_missing(name)
        current = self._inventory.label(name)
        etag = "" if afresh else _usable_etag(before, current)
        try:
            answer = self._network.transport().get(
                f"/models/{name}/update", self._query(before, current), etag
            )
        except (UnknownModelError, ModelRetiredError):
            self._obey_policy(name)  # what is here of it may be recalled all the same
            raise
        now = self._timing.now()
        self._tell_alive(name, before, now)
        if answer.status == 304:  # noqa: PLR2004
            return self._states.update(name, lambda state: state.unchanged(now))
        if answer.status == 204:  # noqa: PLR2004
            self._states.update(name, lambda state: state.nothing_offered(now))
            return self._refresh(name)
        manifest = _read_manifest(name, answer.document)
        state = self._states.update(name, lambda state: state.answered(manifest, answer.etag, now))
        self._tell_assignment(before, state)
        return self._correct(name, self._refresh(name))

    def _refresh_if_due(self, name: str) -> None:
        """Bring the metadata up to date where they are old, or a refresh was cut short.

        Also where every answer is 304: a server that somebody holds still is noticed.
        """
        if not self._states.load(name).is_informed(self._timing.now()):
            self._refresh(name)

    def _obey_policy(self, name: str) -> None:
        try:
            self._refresh(name)
        except NightferryError as error:
            log.info("%s: the signed metadata were not brought up to date. %s", name, error)

    def bring_policy_in(self, name: str) -> bool:
        """Bring old metadata up to date before what is ready is used; tell whether it may be."""
        try:
            self._refresh_if_due(name)
        except NightferryError as error:
            log.warning("%s: what is ready is not used yet. %s", name, error)
            return False
        return True

    def _refresh(self, name: str) -> State:
        """Bring the metadata up to date and obey the policy; revoked files go."""
        try:
            policy = self._verifier.refresh(name)
        except TrustError as error:
            self._tell_refused(name, error)
            raise
        now = self._timing.now()
        before = self._states.load(name)
        state = self._states.update(
            name,
            lambda state: state.informed(
                min_counter=policy.min_counter,
                revoked=policy.revoked,
                embedded_ordered=self._channel in policy.embedded_channels,
                now=now,
                repository=policy.repository,
            ),
        )
        self._refreshed_at[name] = now
        if before.active and before.active.sha256 in state.revoked:
            self._trial.tell_roll_back(name, before.active, "revoked")
        self._inventory.remove_unreferenced(before.referenced() - state.referenced())
        self._inventory.remove_unreferenced(state.revoked)
        return state

    def _correct(self, name: str, state: State) -> State:
        """Replace what is remembered of the release in use where the answer says otherwise.

        The answer counts only if it is what was signed; whatever it is, what is in use stays.
        """
        offered = state.offered
        slots = (state.active, state.staged)
        if offered is None or offered.artifact is None or all(map(_agrees_with(offered), slots)):
            return state
        try:
            granted = self._verifier.authorise(offered, floor=state.floor)
        except TrustError as error:
            log.info("%s: what is remembered of the release in use stays. %s", name, error)
            return state
        return self._states.update(name, lambda state: state.corrected(granted.manifest))

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

    def _tell_alive(self, name: str, before: State, now: float) -> None:
        """Record, with the first answer of each day (UTC), that this installation is alive."""
        if before.checked_at is not None and before.checked_at // _DAY_S == now // _DAY_S:
            return
        current = self._current(name)
        if current is not None:
            self._events.record("heartbeat", current)

    def _tell_assignment(self, before: State, state: State) -> None:
        """Record which release and arm this installation was given, when that is news.

        Who is given what it runs already, as most of a control arm is, has it in use with that.
        """
        offered = state.offered
        if offered is None or not _is_news(before.offered, offered):
            return
        if offered.artifact is None:
            if offered.kind is Kind.NONE and offered.enrolment is not None:
                self._tell_left_alone(offered)
            return
        if offered.kind is Kind.ROLLBACK_TO_EMBEDDED:
            return
        assigned = self._as_installed(offered)
        self._record("assigned", assigned, reason=offered.reason)
        if state.active is not None and same_release(state.active.manifest, offered):
            self._record("activated", assigned)

    def _tell_left_alone(self, offered: Manifest) -> None:
        """Record that this installation is what a first release is compared with.

        It is counted as the others are who get that release, or the arms would look unequal.
        """
        current = self._current(offered.model)
        if current is None:
            self._events.record("assigned", Nothing(offered.model, offered.enrolment))
            return
        kept = replace(current, enrolment=offered.enrolment)
        for kind in ("assigned", "activated"):
            self._events.record(kind, kept)

    def _current(self, name: str) -> Model | None:
        try:
            return self._inventory.current(name)
        except EmbeddedModelError:
            return None

    def _tell_refused(self, name: str, error: TrustError) -> None:
        """Record, once per process, why what the server offers is not believed."""
        if isinstance(error, NoTrustedRootError):
            return
        pending = self._states.load(name).pending()
        label = pending.label if pending else ""
        if (name, label, error.code) in self._refusals:
            return
        self._refusals.add((name, label, error.code))
        data: Document = {"code": error.code, "reason": str(error)}
        if pending is not None and pending.artifact is not None:
            self._record("failed", self._as_installed(pending), **data)
        elif (current := self._inventory.current(name)) is not None:
            self._events.record("failed", current, data)

    # Bringing in

    def _stage(self, name: str, state: State, wish: Wish) -> None:
        manifest = state.pending()
        if manifest is None or manifest.kind is Kind.ROLLBACK_TO_EMBEDDED:
            return
        try:
            self._bring_in(name, manifest, wish)
        except ArtifactGoneError:
            # Withdrawn since the manifest was made, or an expired address: the server knows.
            renewed = self.ask(name, afresh=True).pending()
            if renewed is not None and renewed.kind is not Kind.ROLLBACK_TO_EMBEDDED:
                self._bring_in(name, renewed, wish)
        self._test(name)

    def _bring_in(self, name: str, manifest: Manifest, wish: Wish) -> None:
        state = self._states.load(name)
        staged = state.staged
        is_same = staged is not None and same_release(staged.manifest, manifest)
        if staged and is_same and self._inventory.is_usable(staged, state):
            return
        granted = self._authorise(name, manifest)
        leave = Leave(wish.conditions, self._probe, wish.stopped, wish.report)
        manifest = granted.manifest
        installed = self._as_installed(manifest, granted)
        started = time.monotonic()
        try:
            transfer = self._acquisition.acquire(
                manifest,
                granted.target,
                leave,
                Phases(
                    downloading=lambda: self._states.update(name, State.downloading),
                    verifying=lambda: self._states.update(name, State.verifying),
                ),
            )
        except IntegrityError as error:
            self._note_failure(name, installed, error)
            raise
        except NightferryError as error:
            waits = isinstance(error, NetworkError | ConditionsNotMetError)
            self._states.update(name, lambda state: _interrupted(state, waits=waits))
            raise
        if transfer.received_bytes or transfer.resumed_bytes:
            self._tell_transfer(installed, transfer, time.monotonic() - started)
        self._states.update(name, lambda state: state.with_staged(installed, transfer))

    def _authorise(self, name: str, manifest: Manifest) -> Authorisation:
        """Return what was signed for this release; raise TrustError to refuse."""
        at = self._refreshed_at.get(name)
        if at is None or not 0 <= self._timing.now() - at < REFRESH_AFTER_S:
            self._refresh(name)
        try:
            try:
                return self._verifier.authorise(manifest, floor=self._states.load(name).floor)
            except TargetUnlistedError:
                # Perhaps released between the metadata and the update check.
                self._refresh(name)
                return self._verifier.authorise(manifest, floor=self._states.load(name).floor)
        except TrustError as error:
            # The next answer is to come whole: perhaps only this one was changed on its way.
            self._states.update(name, State.doubted)
            self._tell_refused(name, error)
            raise

    def _test(self, name: str) -> None:
        """Run the self-test of the staged file where there is one and it can be run here."""
        staged = self._states.load(name).staged
        if staged is None or staged.is_ready:
            return
        if staged.manifest.selftest:
            from nightferry.selftest import is_runnable

            if is_runnable(self._runtime):
                self._run_test(name, staged)
        if self._compiler is not None:
            self._compile(name, self._compiler)
        self._states.update(name, State.passed)

    def _compile(self, name: str, compiler: Compiler) -> None:
        """Have the app compile the staged file; one that cannot be is refused."""
        staged = self._states.load(name).staged
        if staged is None:
            return
        try:
            _refuse_endless(staged)
            if not staged.manifest.selftest:  # else the self-test has counted this try
                self._states.update(name, State.testing)
            compiler.make(self._cache.path_of(staged.sha256), staged.sha256)
        except CompileFailedError as error:
            self._note_failure(name, staged, error)
            self._inventory.remove_unreferenced(frozenset({staged.sha256}))
            raise

    def _run_test(self, name: str, staged: Installed) -> None:
        from nightferry.selftest import run_selftest

        manifest = staged.manifest
        try:
            if staged.tests >= MAX_TESTS:
                raise SelfTestUnrunnableError(
                    f"{name} {manifest.label} was not done with its self-test when the app ended, "
                    f"{staged.tests} times."
                )
            self._states.update(name, State.testing)
            report = run_selftest(
                self._cache.path_of(staged.sha256),
                preprocessing=manifest.preprocessing,
                selftest=manifest.selftest,
                expected_sha256=_sha256_of_text(manifest.selftest.get("data")),
            )
        except SelfTestError as error:
            self._note_failure(name, staged, error)
            self._inventory.remove_unreferenced(frozenset({staged.sha256}))
            raise
        log.info("%s %s: self-test in %.1f ms.", name, manifest.label, report.latency_ms)

    def _note_failure(self, name: str, installed: Installed, error: NightferryError) -> None:
        now = self._timing.now()
        self._states.update(name, lambda state: state.failed(installed.manifest, error.code, now))
        self._record("failed", installed, code=error.code, reason=str(error))

    def _download_bytes(self, manifest: Manifest) -> int:
        """Return what bringing in would cost now, in bytes."""
        artifact = manifest.artifact
        if manifest.kind is not Kind.UPDATE or artifact is None:
            return 0
        if self._cache.has(artifact.sha256, artifact.size_bytes):
            return 0
        found = self._acquisition.usable_patch(manifest)
        return found[0].size_bytes if found else artifact.size_bytes

    def _tell_transfer(self, installed: Installed, transfer: Transfer, duration_s: float) -> None:
        data: Document = {
            "received_bytes": transfer.received_bytes,
            "resumed_bytes": transfer.resumed_bytes,
            "size_bytes": transfer.size_bytes,
            "by_patch": transfer.by_patch,
            "duration_ms": round(duration_s * 1000),
        }
        if transfer.patch_error:
            data["patch_error"] = transfer.patch_error
        self._record("downloaded", installed, **data)

    def _as_installed(self, manifest: Manifest, granted: Authorisation | None = None) -> Installed:
        path = self._cache.relative_path_of(manifest.required_artifact().sha256)
        if granted is None:
            return Installed(manifest, path)
        return Installed(manifest, path, counter=granted.counter, mandatory=granted.mandatory)

    def _record(self, kind: str, installed: Installed, **data: object) -> None:
        self._events.record(kind, self._inventory.model(installed, ModelState.STAGED), data)


def _refuse_endless(staged: Installed) -> None:
    """Raise CompileFailedError for a file that has ended the app twice while it was compiled."""
    if staged.tests > MAX_TESTS:
        raise CompileFailedError(
            f"{staged.manifest.model} {staged.manifest.label} was not compiled when the app ended, "
            f"{staged.tests} times."
        )


def _read_manifest(name: str, document: Document) -> Manifest:
    manifest = parse_manifest(document)
    if manifest.model != name:
        raise InvalidManifestError(
            f"The server answered for {manifest.model!r} when asked for {name!r}."
        )
    return manifest


def _is_news(known: Manifest | None, offered: Manifest) -> bool:
    """Tell whether a release or an arm is named that was not named before."""
    if known is None or known.label != offered.label:
        return True
    return offered.enrolment is not None and offered.enrolment != known.enrolment


def _agrees_with(offered: Manifest) -> Callable[[Installed | None], bool]:
    """Return a check that a release is another, or is remembered as it is offered."""

    def check(installed: Installed | None) -> bool:
        if installed is None or not same_release(installed.manifest, offered):
            return True
        known = installed.manifest
        return (
            known.labels == offered.labels
            and same_json(known.preprocessing, offered.preprocessing)
            and known.selftest.get("data") == offered.selftest.get("data")
        )

    return check


def _usable_etag(state: State, current: str) -> str:
    """Return the validator, unless a 304 would leave us without anything to act on.

    "none" means: what you reported is right. Where that is no longer what is here, ask in full.
    """
    offered = state.offered
    if offered is None or (offered.kind is Kind.NONE and offered.label != current):
        return ""
    return state.etag


def _interrupted(state: State, *, waits: bool) -> State:
    """Return the state of a transfer that ended early: it waits, or is to be begun anew."""
    return state.paused() if waits and state.phase in _UNDER_WAY else state.settled()


def _is_ready(state: State) -> bool:
    return state.staged is not None and state.staged.is_ready


def _sha256_of_text(text: object) -> str | None:
    import hashlib  # OpenSSL behind it is slow to load

    return hashlib.sha256(text.encode()).hexdigest() if isinstance(text, str) else None

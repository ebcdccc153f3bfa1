"""What is known of one model on this device, as a value with pure transitions.

``State`` does no I/O: each method returns the next state, and ``nightferry.store`` writes it before
any effect of it shows. So a kill at any point leaves a state that says what to go on with.

::

    IDLE → CHECKING → AVAILABLE → DOWNLOADING ⇄ PAUSED → VERIFYING → STAGED → SELF_TEST → PENDING
                                                                                            │
               CONFIRMED ◀── confirmed by the app or by good predictions ── TRIAL ◀── activated

    VERIFYING, SELF_TEST ──▶ FAILED        the release was never in use; what was, is still
    TRIAL ──▶ ROLLED_BACK                  reported by the app, or started twice in vain

``phase`` says how far the latest release has come. What may be run does not hang on it: that is
``active``, else the embedded model, and ``previous`` is the way back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from nightferry.errors import IntegrityError
from nightferry.manifest import Kind, Manifest

if TYPE_CHECKING:
    from nightferry.models import Transfer

REFRESH_AFTER_S = 12 * 3600
"""At least this often a device brings its metadata up to date, so that it notices a freeze."""
HOLD_BACK_S = 24 * 3600
DAMAGED_HOLD_BACK_S = 3600
"""After bytes that came damaged for the first time; after that, a day each time."""
MAX_TRIES = 2
MAX_STARTS = 2
"""So many processes may begin to use a release on trial without a good prediction."""
ORDERLY_ENDS = 3
"""So many processes that used a release on trial and ended in order confirm it."""
MAX_TESTS = 2
"""So many self-tests of one file may end without a result, killed with their process."""
GOOD_PREDICTIONS = 10
"""So many good predictions confirm a release, counted over all processes."""
_MAX_FAILURES_KEPT = 16


class Phase(StrEnum):
    """How far the latest release has come."""

    IDLE = "idle"
    CHECKING = "checking"
    AVAILABLE = "available"
    DOWNLOADING = "downloading"
    PAUSED = "paused"
    VERIFYING = "verifying"
    STAGED = "staged"
    SELF_TEST = "self_test"
    PENDING = "pending"
    TRIAL = "trial"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


_BUSY = frozenset(
    {Phase.CHECKING, Phase.DOWNLOADING, Phase.PAUSED, Phase.VERIFYING, Phase.SELF_TEST}
)


@dataclass(frozen=True)
class Installed:
    """A release whose file is in the cache.

    Attributes:
        manifest: labels, preprocessing and the file, as one set.
        path: of the file, relative to the cache folder.
        counter, mandatory: as they were signed.
        tests: self-tests begun.
        is_ready: whether it may be activated: tested, or there is nothing to test it with.
        confirmed: whether it has proved itself; then no crash takes it out of use.
        starts: processes that began to use it on trial and have not ended in order since.
        ends: processes that used it on trial and ended in order.
        successes: good predictions on trial.
        inferred: the enrolment under which the first good prediction was told, as
            ``rollout:arm``, or ``-`` for none; empty before.

    """

    manifest: Manifest
    path: str
    counter: int = 0
    mandatory: bool = False
    tests: int = 0
    is_ready: bool = False
    confirmed: bool = False
    starts: int = 0
    ends: int = 0
    successes: int = 0
    inferred: str = ""

    @property
    def sha256(self) -> str:
        """Return the hash of the file."""
        return self.manifest.required_artifact().sha256

    @property
    def size_bytes(self) -> int:
        """Return the size of the file."""
        return self.manifest.required_artifact().size_bytes

    def has_crashed(self, running: int = 0) -> bool:
        """Tell whether it was begun as often as is allowed and never worked.

        ``running`` of the processes that began to use it are alive: they may yet.
        """
        in_vain = self.starts - running
        return not self.confirmed and in_vain >= MAX_STARTS and not self.successes


@dataclass(frozen=True)
class Failure:
    """A release that failed here: it is left alone for a day, tried once more, then no more.

    Bytes that came damaged speak against the line, not the release: they are counted apart, and
    fetched again for ever, after an hour and then once a day.
    """

    label: str
    sha256: str
    code: str
    failed_at: float
    count: int

    @property
    def is_of_the_line(self) -> bool:
        """Tell whether the bytes came damaged."""
        return self.code == IntegrityError.code


@dataclass(frozen=True)
class State:
    """All that is remembered about one model. Times are seconds since 1970 (UTC).

    ``floor`` is the highest counter ever seen, ``revoked`` and ``embedded_ordered`` what the signed
    policy said when the metadata were last brought up to date, at ``refreshed_at``, below the
    first root of ``repository``.
    """

    phase: Phase = Phase.IDLE
    offered: Manifest | None = None
    etag: str = ""
    checked_at: float | None = None
    retry_at: float | None = None
    refreshed_at: float | None = None
    repository: str = ""
    floor: int = 0
    revoked: frozenset[str] = frozenset()
    embedded_ordered: bool = False
    staged: Installed | None = None
    active: Installed | None = None
    previous: Installed | None = None
    pinned: tuple[Installed, ...] = ()
    failures: tuple[Failure, ...] = ()
    transfer: Transfer | None = None

    # What follows

    def pending(self) -> Manifest | None:
        """Return the manifest that asks for something other than what is in use, else None."""
        offered = self.offered
        if offered is None or offered.kind is Kind.NONE:
            return None
        if offered.kind is Kind.ROLLBACK_TO_EMBEDDED:
            return offered if self.active or self.staged else None
        active = self.active
        if active and same_release(active.manifest, offered):
            return None
        return offered

    def wants_embedded(self) -> bool:
        """Tell whether the embedded model shall be used, by the server's word and by signature."""
        pending = self.pending()
        ordered = pending is not None and pending.kind is Kind.ROLLBACK_TO_EMBEDDED
        return ordered and self.embedded_ordered

    def is_informed(self, now: float) -> bool:
        """Tell whether the signed metadata were brought up to date of late."""
        at = self.refreshed_at
        return at is not None and 0 <= now - at < REFRESH_AFTER_S

    def held_back(self, now: float, *, has_model: bool = True) -> str | None:
        """Say why what is on offer is not installed automatically, or return None.

        Where there is no model at all, none is given up for good.
        """
        offered = self.pending()
        if offered is None:
            return None
        if offered.kind is Kind.ROLLBACK_TO_EMBEDDED:
            return None if self.embedded_ordered else "no signed policy orders the embedded model"
        sha256 = offered.required_artifact().sha256
        if sha256 in self.revoked:
            return f"{offered.label} is revoked"
        for failure in self.failures:
            if failure.label == offered.label and failure.sha256 == sha256:
                reason = _hold_back_reason(failure, now, has_model=has_model)
                if reason is not None:
                    return reason
        return None

    def kept(self) -> tuple[Installed, ...]:
        """Return the releases whose files are needed."""
        slots = (self.staged, self.active, self.previous)
        return (*(installed for installed in slots if installed), *self.pinned)

    def referenced(self) -> frozenset[str]:
        """Return the hashes of the files this state needs."""
        return frozenset(installed.sha256 for installed in self.kept())

    def awaited(self) -> frozenset[str]:
        """Return the hashes of files that may be on their way in."""
        pending = self.pending()
        if pending is None or pending.artifact is None:
            return frozenset()
        return frozenset({pending.artifact.sha256, *(patch.sha256 for patch in pending.patches)})

    # Asking

    def checking(self) -> State:
        """Note that the server is asked."""
        return replace(self, phase=Phase.CHECKING)

    def answered(self, manifest: Manifest, etag: str, now: float) -> State:
        """Take a new manifest, and retreat from a stage that it withdraws.

        The signed metadata count as old from here on: they may say more than the manifest.
        """
        state = replace(
            self,
            offered=manifest,
            etag=etag,
            checked_at=now,
            retry_at=None,
            refreshed_at=None,
        )
        if state.staged and not same_release(state.staged.manifest, manifest):
            state = replace(state, staged=None)
        return state.settled()

    def unchanged(self, now: float) -> State:
        """Take a 304: what was offered is offered still."""
        return replace(self, checked_at=now, retry_at=None).settled()

    def nothing_offered(self, now: float) -> State:
        """Take a 204: there is nothing for this device; what is in use stays."""
        return replace(
            self, offered=None, etag="", checked_at=now, retry_at=None, staged=None
        ).settled()

    def doubted(self) -> State:
        """Forget by what the server knows its last answer again: it is not believed."""
        return replace(self, etag="")

    def sent_away(self, until: float) -> State:
        """Remember Retry-After across restarts."""
        return replace(self, retry_at=until)

    def informed(
        self,
        *,
        min_counter: int,
        revoked: frozenset[str],
        embedded_ordered: bool,
        now: float,
        repository: str = "",
    ) -> State:
        """Take what the signed policy says; revoked releases are out of use at once.

        Below the root of another repository counters and failures begin anew; what is in use stays.
        """
        state = self
        if repository and self.repository not in {"", repository}:
            state = replace(self, floor=0, staged=None, failures=())
        state = replace(
            state,
            repository=repository or self.repository,
            floor=max(state.floor, min_counter),
            revoked=revoked,
            embedded_ordered=embedded_ordered,
            refreshed_at=now,
        )
        if state.staged and state.staged.counter < state.floor:
            state = replace(state, staged=None)  # withdrawn before it came into use
        return state.without(revoked).settled_if_idle()

    def corrected(self, manifest: Manifest) -> State:
        """Take the signed word about a release that is here: an older answer may have lied."""
        return replace(
            self,
            staged=_with_manifest(self.staged, manifest),
            active=_with_manifest(self.active, manifest),
        )

    # Bringing in

    def downloading(self) -> State:
        """Note that a transfer begins or goes on."""
        return replace(self, phase=Phase.DOWNLOADING)

    def paused(self) -> State:
        """Note that a transfer waits; what has arrived is kept."""
        return replace(self, phase=Phase.PAUSED)

    def verifying(self) -> State:
        """Note that all bytes are here and their hash is looked at."""
        return replace(self, phase=Phase.VERIFYING)

    def with_staged(self, installed: Installed, transfer: Transfer) -> State:
        """Note a verified file and what it cost; no older release is taken any more."""
        return replace(
            self,
            phase=Phase.STAGED,
            staged=installed,
            floor=max(self.floor, installed.counter),
            transfer=transfer,
        )

    def testing(self) -> State:
        """Note that the staged file is tested: should that kill us, it is known by what."""
        if self.staged is None:
            return self
        staged = replace(self.staged, tests=self.staged.tests + 1)
        return replace(self, phase=Phase.SELF_TEST, staged=staged)

    def passed(self) -> State:
        """Note that the staged release may be activated."""
        if self.staged is None:
            return self
        return replace(self, phase=Phase.PENDING, staged=replace(self.staged, is_ready=True))

    def failed(self, manifest: Manifest, code: str, now: float) -> State:
        """Note that the release on offer could not be installed; what is in use stays."""
        sha256 = manifest.required_artifact().sha256
        state = self._with_failure(manifest.label, sha256, code, now)
        return replace(state, phase=Phase.FAILED, staged=None)

    # In use

    def activated(self) -> State:
        """Put the release that is ready in use, on trial, and keep a way back."""
        staged = self.staged
        if staged is None or not staged.is_ready:
            return self
        active = replace(staged, starts=0, ends=0, successes=0, confirmed=False, inferred="")
        return replace(
            self, phase=Phase.TRIAL, staged=None, active=active, previous=self._way_back(staged)
        )

    def started(self) -> State:
        """Note that one more process begins to use the release on trial."""
        if self.active is None or self.active.confirmed:
            return self
        return replace(self, active=replace(self.active, starts=self.active.starts + 1))

    def inferred(self, enrolment: str) -> State:
        """Note under which enrolment the first good prediction was told."""
        if self.active is None:
            return self
        return replace(self, active=replace(self.active, inferred=enrolment))

    def ended(self, running: int) -> State:
        """Note that a process is done in order with the release on trial; enough confirm it.

        Starts in vain count in a row only, so of the others those that still run remain.
        """
        if self.active is None or self.active.confirmed:
            return self
        active = replace(self.active, starts=running, ends=self.active.ends + 1)
        state = replace(self, active=active)
        return state.confirmed() if active.ends >= ORDERLY_ENDS else state

    def resumed(self) -> State:
        """Note that a process uses the release on trial again after it was done with it."""
        if self.active is None or self.active.confirmed:
            return self
        ends = max(0, self.active.ends - 1)
        return replace(self, active=replace(self.active, ends=ends)).started()

    def succeeded(self) -> State:
        """Note a good prediction of the release on trial; enough of them confirm it."""
        if self.active is None or self.active.confirmed:
            return self
        active = replace(self.active, successes=self.active.successes + 1)
        state = replace(self, active=active)
        return state.confirmed() if active.successes >= GOOD_PREDICTIONS else state

    def confirmed(self) -> State:
        """Note that the active release has proved itself."""
        if self.active is None:
            return self
        failures = tuple(f for f in self.failures if f.label != self.active.manifest.label)
        state = replace(self, active=replace(self.active, confirmed=True), failures=failures)
        return state.settled_if_idle()

    def rolled_back_to_embedded(self) -> State:
        """Put the embedded model in use; keep the file, the server may want it again."""
        left = self.active or self.previous
        return replace(self, staged=None, active=None, previous=left).settled()

    def fallen_back(self, code: str, now: float) -> State:
        """Leave the active release, which failed, for the previous one, else the embedded one."""
        if self.active is None:
            return self
        label, sha256 = self.active.manifest.label, self.active.sha256
        state = self._with_failure(label, sha256, code, now)
        active = self.previous and replace(self.previous, starts=0, ends=0, successes=0)
        return replace(state, active=active, previous=None, phase=Phase.ROLLED_BACK)

    def without(self, hashes: frozenset[str]) -> State:
        """Forget releases whose files are revoked, damaged or gone, falling back if need be."""
        if not hashes & self.referenced():
            return self
        previous = _unless_in(self.previous, hashes)
        active = _unless_in(self.active, hashes)
        if active is None and self.active is not None:
            active, previous = previous, None
        pinned = tuple(installed for installed in self.pinned if installed.sha256 not in hashes)
        staged = _unless_in(self.staged, hashes)
        return replace(self, staged=staged, active=active, previous=previous, pinned=pinned)

    def with_pin(self, installed: Installed) -> State:
        """Keep a release's file until it is unpinned."""
        others = self.without_pin(installed.manifest.label).pinned
        return replace(self, pinned=(*others, installed))

    def without_pin(self, label: str | None) -> State:
        """Keep a release's file, or with None all, no longer than any other."""
        pinned = tuple(one for one in self.pinned if label not in (None, one.manifest.label))
        return replace(self, pinned=pinned)

    def without_previous(self) -> State:
        """Give up the way back to the release before."""
        return replace(self, previous=None)

    def settled(self) -> State:
        """Return the state with the phase that follows from what it holds."""
        return replace(self, phase=self._phase())

    def settled_if_idle(self) -> State:
        """Return the same, unless something is under way that has a phase of its own."""
        return self if self.phase in _BUSY else self.settled()

    def _phase(self) -> Phase:
        if self.staged:
            return Phase.PENDING if self.staged.is_ready else Phase.STAGED
        if self.pending():
            return Phase.AVAILABLE
        if self.active:
            return Phase.CONFIRMED if self.active.confirmed else Phase.TRIAL
        return Phase.IDLE

    def _way_back(self, to: Installed) -> Installed | None:
        """Choose what to return to: the latest release that proved itself, else the latest."""
        active, previous = self.active, self.previous
        if active is None or active.sha256 == to.sha256:
            return previous
        if previous is None or previous.sha256 == to.sha256 or active.confirmed:
            return active
        return previous if previous.confirmed else active

    def _with_failure(self, label: str, sha256: str, code: str, now: float) -> State:
        failure = Failure(label, sha256, code, now, 1)
        alike = tuple(f for f in self.failures if _key(f) == _key(failure))
        others = tuple(f for f in self.failures if f not in alike)
        failure = replace(failure, count=1 + sum(f.count for f in alike))
        return replace(self, failures=(*others, failure)[-_MAX_FAILURES_KEPT:])


def same_release(one: Manifest, other: Manifest) -> bool:
    """Tell whether two manifests name one release and one file."""
    if one.artifact is None or other.artifact is None:
        return False
    return (one.label, one.artifact.sha256) == (other.label, other.artifact.sha256)


def _with_manifest(installed: Installed | None, manifest: Manifest) -> Installed | None:
    if installed is None or not same_release(installed.manifest, manifest):
        return installed
    return replace(installed, manifest=manifest)


def _unless_in(installed: Installed | None, hashes: frozenset[str]) -> Installed | None:
    return None if installed is None or installed.sha256 in hashes else installed


def _hold_back_reason(failure: Failure, now: float, *, has_model: bool) -> str | None:
    if failure.count >= MAX_TRIES and has_model and not failure.is_of_the_line:
        return f"{failure.label} failed {failure.count} times here ({failure.code})"
    is_first_damage = failure.is_of_the_line and failure.count == 1
    wait_s, span = (DAMAGED_HOLD_BACK_S, "an hour") if is_first_damage else (HOLD_BACK_S, "a day")
    # A clock that went back must not hold a release back for ever.
    if 0 <= now - failure.failed_at < wait_s:
        return f"{failure.label} failed here ({failure.code}) less than {span} ago"
    return None


def _key(failure: Failure) -> tuple[str, str, bool]:
    return failure.label, failure.sha256, failure.is_of_the_line

"""The network of simulated installations: the SDK's own requests, timed; files verified once.

Every installation asks, fetches the signed timestamp and posts for itself, each request over a
connection of its own, as the SDK does. Shared within a process is what thousands would do alike
with the same bytes: checking signatures, and, unless told otherwise, fetching model files.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nightferry import __version__
from nightferry.download import Downloader, Receipt
from nightferry.errors import NightferryError, ServerUnreachableError
from nightferry.network import Network
from nightferry.state import REFRESH_AFTER_S
from nightferry.transport import API, Answer, Reply, Transport
from nightferry.trust import TufVerifier, check_digest

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from nightferry.manifest import Document, Manifest
    from nightferry.timing import Timing
    from nightferry.trust import Authorisation, PatchTarget, Policy, Target

_CHUNK_BYTES = 1 << 16
_MAX_TIMESTAMP_BYTES = 1 << 16


@dataclass
class Traffic:
    """Requests by kind (``poll``, ``events``, ``metadata``, ``artifact``) and what came of them."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: dict[str, array[float]] = field(default_factory=lambda: defaultdict(_floats))
    received_bytes: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    lost_answers: int = 0

    def merge(self, other: Traffic) -> None:
        """Add what another process counted."""
        self.answers.update(other.answers)
        for kind, seconds in other.seconds.items():
            self.seconds[kind].extend(seconds)
        self.received_bytes += other.received_bytes
        self.accepted += other.accepted
        self.duplicates += other.duplicates
        self.rejected.update(other.rejected)
        self.lost_answers += other.lost_answers


def _floats() -> array[float]:
    return array("d")


class MeasuredTransport(Transport):
    """The SDK's transport with a stop-watch. Safe to use from several threads."""

    def __init__(
        self, server_url: str, app_key: str | None, *, lost_answers: float, chance: random.Random
    ) -> None:
        """Lose the answers to a share ``lost_answers`` of the event batches."""
        super().__init__(
            server_url,
            app_key=app_key,
            user_agent=f"nightferry/{__version__} simulated",
            request_timeout_s=60,
            stall_timeout_s=60,
            offline=False,
        )
        self.traffic = Traffic()
        self._lost_answers = lost_answers
        self._chance = chance
        self._lock = threading.Lock()
        self._documents: dict[str, Document] = {}

    def get(self, path: str, query: Mapping[str, str], etag: str = "") -> Answer:
        """Ask for an update; equal manifests are kept once."""
        answer = self._timed("poll", lambda: super(MeasuredTransport, self).get(path, query, etag))
        if answer.status != 200 or not answer.etag:  # noqa: PLR2004
            return answer
        key = f"{answer.etag} {answer.document.get('kind')}"
        return Answer(answer.status, answer.etag, self._documents.setdefault(key, answer.document))

    def post(self, path: str, document: object) -> Answer:
        """Send events, and lose some answers on the way back."""
        answer = self._timed("events", lambda: super(MeasuredTransport, self).post(path, document))
        with self._lock:
            self._count_events(answer.document)
            is_lost = self._chance.random() < self._lost_answers
            self.traffic.lost_answers += is_lost
        if is_lost:
            message = "The answer was lost on its way, for this simulation."
            raise ServerUnreachableError(message)
        return answer

    def open_url(self, url: str, headers: Mapping[str, str], timeout_s: float) -> Reply:
        """Open an address: signed metadata or a model file."""
        kind = "metadata" if f"{API}/metadata/" in url else "artifact"
        started = time.perf_counter()
        try:
            reply = super().open_url(url, headers, timeout_s)
        except NightferryError as error:
            self._note(kind, error.code, started)
            raise
        self._note(kind, str(reply.status), started)
        return reply

    def count_bytes(self, size_bytes: int) -> None:
        """Count bytes of model files."""
        with self._lock:
            self.traffic.received_bytes += size_bytes

    def _timed(self, kind: str, ask: Callable[[], Answer]) -> Answer:
        started = time.perf_counter()
        try:
            answer = ask()
        except NightferryError as error:
            self._note(kind, error.code, started)
            raise
        self._note(kind, str(answer.status), started)
        return answer

    def _note(self, kind: str, outcome: str, started: float) -> None:
        seconds = time.perf_counter() - started
        with self._lock:
            self.traffic.answers[kind, outcome] += 1
            self.traffic.seconds[kind].append(seconds)

    def _count_events(self, receipt: Document) -> None:
        accepted, duplicates = receipt.get("accepted"), receipt.get("duplicates")
        self.traffic.accepted += accepted if isinstance(accepted, int) else 0
        self.traffic.duplicates += duplicates if isinstance(duplicates, int) else 0
        rejected = receipt.get("rejected")
        for entry in rejected if isinstance(rejected, list) else []:
            self.traffic.rejected[str(entry.get("code"))] += 1


class DeviceNetwork(Network):
    """One installation's way to the server, which may be cut."""

    def __init__(self, transport: MeasuredTransport, downloader: Downloader) -> None:
        """Use what the process shares."""
        self._transport = transport
        self._downloader = downloader
        self.is_cut = False

    def transport(self) -> MeasuredTransport:
        """Return what asks and posts. Raises ServerUnreachableError while cut."""
        if self.is_cut:
            message = "The installation is offline, for this simulation."
            raise ServerUnreachableError(message)
        return self._transport

    def downloader(self) -> Downloader:
        """Return what brings in files; see ``transport``."""
        self.transport()
        return self._downloader


class Files:
    """The model files that a process has fetched and verified: hashes, no bytes."""

    def __init__(self, transport: MeasuredTransport, *, is_shared: bool) -> None:
        """Fetch each file once per process where ``is_shared``, else once per installation."""
        self._transport = transport
        self._is_shared = is_shared
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._verified: set[str] = set()

    def fetch(self, target: Target, name: str) -> int:
        """Fetch and verify a file unless it is known; return the bytes received."""
        if not self._is_shared:
            return self._fetch(target, name)
        with self._locks[target.sha256]:
            if target.sha256 in self._verified:
                return 0
            received = self._fetch(target, name)
            self._verified.add(target.sha256)
            return received

    def _fetch(self, target: Target, name: str) -> int:
        import hashlib

        digest, received = hashlib.sha256(), 0
        with self._transport.open_artifact(target.path, {}) as reply:
            if reply.status != 200:  # noqa: PLR2004
                message = f"{name} was answered with status {reply.status}."
                raise ServerUnreachableError(message)
            for chunk in _chunks(reply):
                digest.update(chunk)
                received += len(chunk)
        self._transport.count_bytes(received)
        check_digest(digest.hexdigest(), target, name)
        return received


def _chunks(reply: Reply) -> Iterator[bytes]:
    while chunk := reply.read(_CHUNK_BYTES):
        yield chunk


class DeviceDownloader(Downloader):
    """Brings files into one installation's cache, which keeps no bytes."""

    def __init__(self, files: Files, put: Callable[[str, int], None]) -> None:
        """Tell ``put`` what is here now."""
        self._files = files
        self._put = put

    def fetch(
        self,
        target: Target,
        name: str,
        report: Callable[[int, int], object],
        verifying: Callable[[], object] = lambda: None,
    ) -> Receipt:
        """Make sure that the file is in the cache, verified; see Downloader."""
        received = self._files.fetch(target, name)
        report(target.size_bytes, target.size_bytes)
        verifying()
        self._put(target.sha256, target.size_bytes)
        return Receipt(received, 0)


class SharedVerifier:
    """Checks the signatures of equal metadata once per process, for all with the same clock."""

    def __init__(
        self,
        root: bytes,
        folder: Path,
        transport: Transport,
        *,
        channel: str,
        runtime: str,
        timing: Timing,
    ) -> None:
        """Wrap the SDK's own verifier."""
        self._inner = TufVerifier(
            root=root,
            folder=folder,
            transport=lambda: transport,
            channel=channel,
            runtime=runtime,
            accept=None,
            trust_on_first_use=False,
            timing=timing,
        )
        self._timing = timing
        self._lock = threading.Lock()
        self._known: dict[str, tuple[bytes, float, Policy]] = {}

    def refresh(self, model: str, network: DeviceNetwork) -> Policy:
        """Fetch the timestamp; where it is one that was checked, what came of it holds."""
        content = _timestamp(network.transport())
        now = self._timing.now()
        with self._lock:
            known = self._known.get(model)
            if known and known[0] == content and 0 <= now - known[1] < REFRESH_AFTER_S / 2:
                return known[2]
            policy = self._inner.refresh(model)
            self._known[model] = content, now, policy
            return policy

    def known_policy(self, model: str) -> Policy | None:
        """Return the policy last seen."""
        known = self._known.get(model)
        return known[2] if known else None

    def authorise(self, manifest: Manifest, *, floor: int) -> Authorisation:
        """Return what was signed for this release; see Verifier."""
        return self._inner.authorise(manifest, floor=floor)

    def authorise_patch(self, model: str, from_sha256: str, to_sha256: str) -> PatchTarget | None:
        """Return the signed patch; see Verifier."""
        return self._inner.authorise_patch(model, from_sha256, to_sha256)


class DeviceVerifier:
    """One installation's verifier: asks over its own network, and trusts what was checked."""

    def __init__(self, shared: SharedVerifier, network: DeviceNetwork) -> None:
        """Use these."""
        self._shared = shared
        self._network = network
        self.known_policy = shared.known_policy
        self.authorise = shared.authorise
        self.authorise_patch = shared.authorise_patch

    def refresh(self, model: str) -> Policy:
        """Bring the metadata up to date; see Verifier."""
        return self._shared.refresh(model, self._network)


def _timestamp(transport: Transport) -> bytes:
    url = f"{transport.server_url}{API}/metadata/timestamp.json"
    with transport.open_url(url, {}, 60) as reply:
        if reply.status != 200:  # noqa: PLR2004
            message = f"timestamp.json was answered with status {reply.status}."
            raise ServerUnreachableError(message)
        return reply.read_all(_MAX_TIMESTAMP_BYTES, time.monotonic() + 60)

"""What is on the device and which of it is in use: states, files and embedded models together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nightferry import log
from nightferry.cache import hash_file
from nightferry.embedded import UNNAMED_LABEL, manifest_path
from nightferry.errors import EmbeddedModelError, NoModelError
from nightferry.events import ALL_BP
from nightferry.files import storing, write_atomically
from nightferry.manifest import Kind
from nightferry.models import (
    CacheReport,
    Model,
    ModelState,
    ModelStatus,
    PruneReport,
    StoredFile,
)
from nightferry.state import Installed, State
from nightferry.store import StateStore, states_below

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightferry.cache import BlobCache
    from nightferry.embedded import EmbeddedModels
    from nightferry.manifest import Manifest


class Inventory:
    """The models of one server, channel and runtime that could be used now, offline."""

    def __init__(
        self,
        cache: BlobCache,
        states: StateStore,
        embedded: EmbeddedModels,
        now: Callable[[], float],
        known_revoked: Callable[[str], frozenset[str]] = lambda _name: frozenset(),
    ) -> None:
        """Use these parts; ``now`` returns seconds since 1970 (UTC).

        ``known_revoked`` says what is recalled where the state of a model does not know it.
        """
        self.cache = cache
        self.states = states
        self._embedded = embedded
        self._now = now
        self._known_revoked = known_revoked

    def names(self) -> list[str]:
        """Return every model that is remembered or embedded."""
        return sorted({*self.states.names(), *self._embedded.names()})

    def current(self, name: str) -> Model | None:
        """Return the model in use: the active release, unless the app ships a newer one.

        Raises EmbeddedModelError where only the embedded one is left and it is unusable.
        """
        state = self.states.load(name)
        for installed in (state.active, state.previous if state.active else None):
            if installed is None or not self.is_usable(installed, state):
                continue
            phase = ModelState.CONFIRMED if installed.confirmed else ModelState.ACTIVE
            newer = self._newer_embedded(name, installed.manifest, state)
            return newer or self.model(installed, phase, state)
        return self._embedded_unless_revoked(name, state)

    def required(self, name: str) -> Model:
        """Return the model in use; raise NoModelError where there is none."""
        model = self.current(name)
        if model is None:
            held_back = self.states.load(name).held_back(self._now(), has_model=False)
            because = f" Of the server's offer, {held_back}." if held_back else ""
            raise NoModelError(
                f"There is no model {name!r}: none installed, none embedded.{because}"
            )
        return model

    def has_model(self, name: str) -> bool:
        """Tell whether there is a model to use."""
        try:
            return self.current(name) is not None
        except EmbeddedModelError:
            return False

    def label(self, name: str) -> str:
        """Return the label to tell the server: empty for nothing, or for a file without one."""
        try:
            model = self.current(name)
        except EmbeddedModelError as error:
            log.warning("%s", error)
            return ""
        return "" if model is None or model.label == UNNAMED_LABEL else model.label

    def model(self, installed: Installed, phase: ModelState, state: State | None = None) -> Model:
        """Return a release as the app sees it."""
        manifest = installed.manifest
        artifact = manifest.required_artifact()
        return Model(
            name=manifest.model,
            label=manifest.label,
            version=manifest.version,
            path=self.cache.root / installed.path,
            size_bytes=artifact.size_bytes,
            sha256=artifact.sha256,
            runtime=artifact.runtime,
            precision=artifact.precision,
            labels=manifest.labels,
            preprocessing=manifest.preprocessing,
            signature=manifest.signature,
            is_embedded=False,
            state=phase,
            enrolment=_latest_word(manifest, state).enrolment,
        )

    def status(self, name: str) -> ModelStatus:
        """Return where one model stands."""
        state = self.states.load(name)
        return ModelStatus(
            name=name,
            phase=state.phase.value,
            current=self.current(name),
            staged=self.model(state.staged, ModelState.STAGED) if state.staged else None,
            previous_label=state.previous.manifest.label if state.previous else None,
            pinned_labels=tuple(installed.manifest.label for installed in state.pinned),
            offered_label=state.offered.label if state.offered else None,
            held_back=state.held_back(self._now(), has_model=self.has_model(name)),
            checked_at=state.checked_at,
            refreshed_at=state.refreshed_at,
            last_transfer=state.transfer,
        )

    def latency_limit_ms(self, name: str) -> float | None:
        """Return what one prediction may take, in milliseconds, as the release's self-test says."""
        active = self.states.load(name).active
        limit = _selftest_data(active.manifest).get("max_latency_ms") if active else None
        usable = isinstance(limit, int | float) and not isinstance(limit, bool) and limit > 0
        return float(limit) if usable else None  # type: ignore[arg-type]

    def sample_bp(self, name: str) -> int:
        """Return the share of installations that report samples, in basis points."""
        offered = self.states.load(name).offered
        return ALL_BP if offered is None or offered.sample_bp is None else offered.sample_bp

    def is_usable(self, installed: Installed, state: State) -> bool:
        """Tell whether a release may be used: its file is here, whole, and not revoked."""
        if installed.sha256 in state.revoked:
            return False
        return self.cache.has(installed.sha256, installed.size_bytes)

    def file_of(self, name: str, sha256: str) -> Path | None:
        """Return a file with this hash that is on the device: in the cache, or in the app."""
        path = self.cache.path_of(sha256)
        if path.is_file():
            return path
        try:
            embedded = self._embedded.get(name)
        except EmbeddedModelError:
            return None
        return embedded.path if embedded is not None and embedded.sha256 == sha256 else None

    def has_way_back(self, name: str, state: State) -> bool:
        """Tell whether a model would be left if the active release went out of use."""
        if state.previous is not None and self.is_usable(state.previous, state):
            return True
        try:
            return self._embedded_unless_revoked(name, state) is not None
        except EmbeddedModelError:
            return False

    def pin(self, name: str, label: str | None) -> None:
        """Keep the file of a release that is here. Raises NoModelError where it is not."""
        state = self.states.load(name)
        wanted = label or (state.active.manifest.label if state.active else "")
        known = (one for one in state.kept() if one.manifest.label == wanted)
        found = next((one for one in known if self.is_usable(one, state)), None)
        if found is None:
            raise NoModelError(f"{name} {wanted or 'as a release'} is not here to be pinned.")
        self.states.update(name, lambda state: state.with_pin(found))

    def unpin(self, name: str, label: str | None) -> None:
        """Let a pinned release go, or all; its file goes unless something else needs it."""
        before = self.states.load(name)
        after = self.states.update(name, lambda state: state.without_pin(label))
        self.remove_unreferenced(before.referenced() - after.referenced())

    def delete(self, name: str) -> None:
        """Forget a model, then delete its files. Raises StorageError."""
        hashes = self.states.load(name).referenced()
        self.states.forget(name)
        self.remove_unreferenced(hashes)

    def forget_missing(self, name: str, damaged: frozenset[str] = frozenset()) -> State:
        """Forget releases whose file is gone (systems clear caches) or known to be damaged."""
        return self.states.update(name, lambda state: state.without(self._gone(state) | damaged))

    def remove_unreferenced(self, hashes: frozenset[str]) -> None:
        """Delete files that no state of any server needs; none while a state cannot be read."""
        states = self._all_states() if hashes else None
        if states is None:
            return
        for sha256 in hashes.difference(*(state.referenced() for state in states)):
            self.cache.remove(sha256)
            self.cache.discard_partials(sha256)

    def scan(self) -> list[StoredFile]:
        """List every file in the cache with the release it belongs to, of all servers."""
        states = self._all_states() or []
        files = [_stored(sha256, path, states, "unused") for sha256, path in self.cache.stored()]
        partials = [
            _stored(sha256, path, states, "partial") for sha256, path in self.cache.partials()
        ]
        return [file for file in (*files, *partials) if file is not None]

    def prune(self, *, keep_previous: bool) -> PruneReport:
        """Delete what no release in use, staged, pinned or on its way in needs; see the client."""
        if not keep_previous:
            for name in self.states.names():
                self.states.update(name, State.without_previous)
        removed: list[Path] = []
        freed_bytes = 0
        if self._all_states() is not None:
            for file in self.scan():
                if file.role == "unused" and self.cache.remove(file.sha256):
                    removed.append(file.path)
                    freed_bytes += file.size_bytes
        self.cache.sweep()
        return PruneReport(removed=tuple(removed), freed_bytes=freed_bytes)

    def verify(self) -> CacheReport:
        """Hash every stored file; forget, then delete, the damaged ones."""
        damaged: dict[str, Path] = {}
        checked = size_bytes = 0
        for sha256, path in self.cache.stored():
            checked += 1
            if _hash_fits(path, sha256):
                size_bytes += path.stat().st_size
            else:
                damaged[sha256] = path
        for name in self.states.names():
            self.forget_missing(name, frozenset(damaged))
        for sha256 in damaged:
            self.cache.remove(sha256)
        self.cache.sweep()
        return CacheReport(checked=checked, damaged=tuple(damaged.values()), size_bytes=size_bytes)

    def export(self, name: str, path: Path) -> None:
        """Write the active release and its manifest to be embedded in an app.

        Raises NoModelError, StorageError.
        """
        model = self.required(name)
        active = self.states.load(name).active
        if active is None or active.sha256 != model.sha256:
            raise NoModelError(f"No release of {name!r} is installed that could be exported.")
        with storing(path):
            content = model.path.read_bytes()
        write_atomically(path, content)
        document = json.dumps(active.manifest.document, indent=1, ensure_ascii=False)
        write_atomically(manifest_path(path), document.encode())

    def _newer_embedded(self, name: str, active: Manifest, state: State) -> Model | None:
        """Return the embedded model if an update of the app brought a later release than is here.

        Labels are counted per channel, never compared by clock.
        """
        try:
            shipped = self._embedded.manifest(name)
        except EmbeddedModelError as error:
            log.warning("%s", error)
            return None
        if shipped is None or shipped.channel != active.channel:
            return None
        if shipped.release_number <= active.release_number:
            return None
        return self._embedded_unless_revoked(name, state)

    def _embedded_unless_revoked(self, name: str, state: State) -> Model | None:
        model = self._embedded.get(name)
        if model is None or model.sha256 in state.revoked:
            return None
        # A state that was lost knows of no recall; the signed policy lies in another folder.
        is_lost = state.refreshed_at is None and not state.revoked
        if is_lost and model.sha256 in self._known_revoked(name):
            return None
        return _as_control(model, state.offered)

    def _gone(self, state: State) -> frozenset[str]:
        return frozenset(
            i.sha256 for i in state.kept() if not self.cache.has(i.sha256, i.size_bytes)
        )

    def _all_states(self) -> list[State] | None:
        """Return the states of all servers, None where one of them cannot be read."""
        states = list(states_below(self.cache.root))
        known = [state for state in states if state is not None]
        return known if len(known) == len(states) else None


def _selftest_data(manifest: Manifest) -> dict[str, object]:
    """Return the self-test's data, which are signed; empty where there are none."""
    text = manifest.selftest.get("data")
    try:
        data = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _as_control(embedded: Model, offered: Manifest | None) -> Model:
    """Return the embedded model, in the arm where it is what a first release is compared with."""
    is_beside = offered is not None and offered.kind is Kind.NONE and offered.artifact is None
    return replace(embedded, enrolment=offered.enrolment) if offered and is_beside else embedded


def _latest_word(manifest: Manifest, state: State | None) -> Manifest:
    """Return the server's last manifest of the same release: a rollout may have ended since."""
    offered = state.offered if state else None
    return offered if offered and offered.label == manifest.label else manifest


def _stored(sha256: str, path: Path, states: list[State], role: str) -> StoredFile | None:
    """Return a file as ``scan`` shows it, None where it has just gone."""
    try:
        facts = path.stat()
    except OSError:
        return None
    manifest: Manifest | None = None
    if role != "partial":
        role, manifest = _role(sha256, states)
    return StoredFile(
        path=path,
        size_bytes=facts.st_size,
        sha256=sha256,
        name=manifest.model if manifest else "",
        label=manifest.label if manifest else "",
        version=manifest.version if manifest else 0,
        role=role,
        last_used_at=facts.st_mtime,
    )


def _role(sha256: str, states: list[State]) -> tuple[str, Manifest | None]:
    for role in ("active", "staged", "previous"):
        for state in states:
            installed: Installed | None = getattr(state, role)
            if installed is not None and installed.sha256 == sha256:
                return role, installed.manifest
    for state in states:
        for installed in state.pinned:
            if installed.sha256 == sha256:
                return "pinned", installed.manifest
        if sha256 in state.awaited():
            return "awaited", state.offered
    return "unused", None


def _hash_fits(path: Path, sha256: str) -> bool:
    try:
        return hash_file(path) == sha256
    except OSError:
        return False

"""The client: one object that keeps the models of an app fresh.

``ModelClient`` decides what to ask and when; ``state`` knows what follows from an answer,
``trust`` what may be installed, ``download`` and ``cache`` bring it in whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, urlsplit

from nightferry import __version__, environment
from nightferry.cache import BlobCache, hash_file
from nightferry.device import SystemProbe, check_conditions, installation_id, platform_facts
from nightferry.embedded import UNNAMED_LABEL, EmbeddedModels, manifest_path
from nightferry.errors import (
    ArtifactGoneError,
    ConfigurationError,
    EmbeddedModelError,
    IntegrityError,
    InvalidManifestError,
    NetworkError,
    NightferryError,
    NoModelError,
)
from nightferry.events import EventQueue
from nightferry.files import storing, write_atomically
from nightferry.flight import Flights
from nightferry.manifest import Kind, Manifest, parse_manifest
from nightferry.models import (
    CacheReport,
    DownloadConditions,
    DownloadType,
    Model,
    ModelState,
    ModelStatus,
    Update,
)
from nightferry.polling import Poller
from nightferry.state import Installed, State, StateStore, states_below
from nightferry.timing import MAX_RETRY_AFTER_S, Timing
from nightferry.trust import ManifestVerifier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from nightferry.device import DeviceProbe
    from nightferry.download import Downloader
    from nightferry.manifest import Document
    from nightferry.prediction import Predictor
    from nightferry.transport import Transport
    from nightferry.trust import Verifier

Progress = Callable[[int, int], object]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_ANYTHING_GOES = DownloadConditions()
_STOP_WAIT_S = 5.0

logger = logging.getLogger("nightferry")


class ModelClient:
    """Checks for, downloads, verifies and hands out the models of one server, channel and runtime.

    Construction touches neither network nor disk. All methods may be called from any thread.

    Args:
        server_url: address of the server; NIGHTFERRY_ENDPOINT if None.
        app_key: the application key, sent to that server only.
        app_version: the app's own version, by which releases may be targeted.
        channel: the stream of releases to follow.
        runtime: ``tflite`` or ``coreml``: what the app can run.
        cache_dir: where models are kept; NIGHTFERRY_HOME, else the platform's cache folder.
        embedded: model files shipped with the app, by name (see ``nightferry.embedded``).
        trusted_root: reserved for signed metadata; anything but None is refused until then.
        telemetry: whether to record and send events.
        accept: precisions the app can run, in the order of its preference; None for any.
        device_class: the app's own name for this kind of device, for targeting; sent as it is.
        device_probe: tells about power and network (see ``DownloadConditions``).
        verifier: decides what may be installed.
        timing: intervals, limits and chance.

    Raises:
        ConfigurationError: an argument is unusable; the sentence names it.

    """

    def __init__(  # noqa: PLR0917 - the public interface; every argument has a default
        self,
        server_url: str | None = None,
        app_key: str | None = None,
        app_version: str = "0",
        channel: str = "production",
        runtime: str = "tflite",
        cache_dir: str | Path | None = None,
        embedded: Mapping[str, str | Path] | None = None,
        trusted_root: object = None,
        telemetry: bool = True,  # noqa: FBT001, FBT002 - named by the public contract
        *,
        accept: Sequence[str] | None = None,
        device_class: str | None = None,
        device_probe: DeviceProbe | None = None,
        verifier: Verifier | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Check the arguments; see the class."""
        _refuse_trusted_root(trusted_root)
        self._server_url = _usable_server_url(server_url)
        self._channel = _checked_name("channel", channel)
        self._runtime = _checked_name("runtime", runtime)
        self._app_key = app_key
        self._facts = {"app_version": app_version, "sdk_version": __version__}
        if device_class:
            self._facts["device_class"] = device_class
        if accept is not None:
            self._facts["accept"] = ",".join(accept)
        self.cache_dir = Path(cache_dir or environment.default_cache_dir()).expanduser()
        self._timing = timing or Timing()
        self._probe = device_probe or SystemProbe()
        self._verifier = verifier or ManifestVerifier(runtime=runtime)
        self._cache = BlobCache(self.cache_dir)
        scope = self.cache_dir / "servers" / _scope(self._server_url)
        self._id_path = scope / "installation-id"
        self._states = StateStore(scope / "models", channel=channel, runtime=runtime)
        self._embedded = EmbeddedModels(
            {_checked_name("model", n): Path(p) for n, p in (embedded or {}).items()},
            runtime=runtime,
        )
        self._events = EventQueue(
            scope / "events.jsonl",
            channel=channel,
            device=self._installation_id,
            enabled=telemetry and not environment.telemetry_disabled(),
        )
        self._checks: Flights[State] = Flights()
        self._updates: Flights[bool] = Flights()
        self._lock = threading.RLock()
        self._parts: tuple[Transport, Downloader] | None = None
        self._device: str | None = None
        self._poller: Poller | None = None
        self._failed_polls = 0

    # Models

    def get_model(
        self,
        name: str,
        download_type: DownloadType = DownloadType.LOCAL_MODEL_UPDATE_IN_BACKGROUND,
        conditions: DownloadConditions | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Return the model to run now.

        With a local download type and a model on the device this neither waits nor touches the
        network. With LATEST_MODEL it asks the server and downloads; if that fails and there is a
        model on the device, that one is returned and the reason is logged.

        Args:
            name: the model's slug.
            download_type: what to do when there is, and is not, a model on the device.
            conditions: when a download may start.
            progress: called with bytes done and bytes in total, from the downloading thread.

        Raises:
            NightferryError: there is no model on the device, and this is why none could be had.

        """
        _checked_name("model", name)
        if download_type is not DownloadType.LATEST_MODEL:
            model = self._current(name)
            if model is not None:
                if download_type is DownloadType.LOCAL_MODEL_UPDATE_IN_BACKGROUND:
                    self._update_in_background(name, conditions)
                return model
        try:
            self._update(name, conditions, progress)
        except NightferryError as error:
            model = self._current(name)
            if model is None:
                raise
            logger.warning("%s stays at %s. %s", name, model.label, error)
            return model
        return self._required(name)

    def load(self, name: str, *, num_threads: int | None = None) -> Predictor:
        """Return the current model ready to run (needs ``pip install nightferry[tflite]``).

        What is on the device is used; only where there is nothing, it is downloaded.

        Raises:
            RuntimeMissingError, PredictionError: the model cannot be run.
            NightferryError: there is no model, and this is why.

        """
        from nightferry.prediction import Predictor

        model = self.get_model(name, DownloadType.LOCAL_MODEL)
        return Predictor(model, num_threads=num_threads, on_first=self._first_inference(model))

    def list_models(self) -> list[Model]:
        """Return the models that could be used now, offline, by name."""
        names = {*self._states.names(), *self._embedded.names()}
        models = (self._current(name) for name in sorted(names))
        return [model for model in models if model is not None]

    def status(self, name: str) -> ModelStatus:
        """Return where one model stands, without asking the server."""
        state = self._states.load(_checked_name("model", name))
        return ModelStatus(
            name=name,
            phase=state.phase.value,
            current=self._current(name),
            staged=self._model(state.staged, ModelState.STAGED) if state.staged else None,
            previous_label=state.previous.manifest.label if state.previous else None,
            offered_label=state.offered.label if state.offered else None,
            held_back=state.held_back(self._timing.now()),
            checked_at=state.checked_at,
        )

    def delete_model(self, name: str) -> None:
        """Remove a model from the device: first what is remembered, then its files.

        An embedded model is part of the app and stays. Raises StorageError.
        """
        hashes = self._states.load(_checked_name("model", name)).referenced()
        self._states.forget(name)
        self._remove_unreferenced(hashes)

    def verify_cache(self) -> CacheReport:
        """Hash every stored file again; remove damaged ones and fall back where one was in use."""
        damaged, checked, size_bytes = {}, 0, 0
        for sha256, path in self._cache.stored():
            checked += 1
            size_bytes += path.stat().st_size
            if not _hash_fits(path, sha256):
                damaged[sha256] = path
        for name in self._states.names():
            self._states.update(name, lambda state: state.without(self._unusable(state, damaged)))
        for sha256 in damaged:
            self._cache.remove(sha256)
        self._cache.sweep()
        return CacheReport(checked=checked, damaged=tuple(damaged.values()), size_bytes=size_bytes)

    def export_model(self, name: str, path: str | Path) -> Path:
        """Write what an app embeds: the model file at ``path`` and its manifest at ``path.json``.

        Raises NoModelError (only an installed release can be exported), StorageError.
        """
        target = Path(path)
        model = self._required(_checked_name("model", name))
        active = self._states.load(name).active
        if active is None or active.sha256 != model.sha256:
            raise NoModelError(f"No release of {name!r} is installed that could be exported.")
        with storing(target):
            content = model.path.read_bytes()
        write_atomically(target, content)
        document = json.dumps(active.manifest.document, indent=1, ensure_ascii=False)
        write_atomically(manifest_path(target), document.encode())
        return target

    # Updates, step by step

    def check_for_update(self, name: str) -> Update | None:
        """Ask the server what to run; return it if it is something else than what runs, else None.

        Raises NetworkError, RequestRefusedError, ProtocolError.
        """
        state = self._check(_checked_name("model", name))
        manifest = state.pending()
        return self._as_update(manifest, state) if manifest else None

    def fetch_update(
        self,
        name: str,
        conditions: DownloadConditions | None = None,
        progress: Progress | None = None,
    ) -> Model | None:
        """Ask, download and verify, without putting in use; return the staged model.

        Returns None where nothing is to be downloaded: up to date, or the server wants the
        embedded model (``activate`` obeys).

        Raises:
            NightferryError: why it could not be had. What arrived is kept for the next try.

        """
        _checked_name("model", name)
        self._updates.run(
            ("fetch", name, conditions),
            lambda report: self._check_and_stage(name, conditions, report),
            progress,
        )
        staged = self._states.load(name).staged
        return self._model(staged, ModelState.STAGED) if staged else None

    def activate(self, name: str) -> Model:
        """Put the staged model in use, or the embedded one if the server wants that.

        Without either, what is in use stays and is returned.

        Raises:
            NoModelError: there is nothing to put in use.

        """
        before = self._states.load(_checked_name("model", name))
        state = self._states.update(name, self._next_active)
        if state.active != before.active:
            self._tell_activation(name, before, state)
            self._remove_unreferenced(before.referenced())
        return self._required(name)

    def sync(self, name: str) -> Model | None:
        """Ask, download, put in use, and send waiting events; return the model now in use.

        Returns None where the server has nothing for this device and nothing is embedded.
        Raises the same errors as ``fetch_update``; undelivered events wait and raise nothing.
        """
        self._update(_checked_name("model", name), None, None)
        self._try_flush()
        return self._current(name)

    def notify_ready(self, name: str) -> None:
        """Tell that the app works with the model in use; the release counts as confirmed."""
        state = self._states.load(_checked_name("model", name))
        if state.active is not None and not state.active.confirmed:
            state = self._states.update(name, State.confirmed)
            self._record("confirmed", state.active)

    def report_failure(self, name: str, reason: str) -> Model | None:
        """Leave the model in use, which the app finds broken, for the one before it.

        That is the previous release, else the embedded model, else none. The broken release is
        not installed again by itself for a day, once at most. With the embedded model in use only
        the event is recorded.

        Args:
            name: the model's slug.
            reason: a short word or sentence for the operators; no personal data.

        Returns:
            The model now in use, None if there is none left.

        """
        before = self._states.load(_checked_name("model", name))
        now = self._timing.now()
        state = self._states.update(name, lambda state: state.fallen_back("reported", now))
        if before.active is None:
            current = self._current(name)
            if current is not None:
                self._events.record("failed", current, {"code": "reported", "reason": reason})
            return current
        self._record("failed", before.active, code="reported", reason=reason)
        self._record("rolled_back", before.active, to=self._label(name), reason="reported")
        logger.warning("%s %s was reported broken.", name, before.active.manifest.label)
        self._remove_unreferenced(before.referenced() - state.referenced())
        return self._current(name)

    def report_feedback(self, name: str, *, correct: bool) -> None:
        """Record whether a prediction of the model in use was right, as its user says."""
        self._events.record("feedback", self._required(name), {"correct": correct})

    def flush_events(self) -> int:
        """Send the waiting events now; return how many are done with.

        Raises NetworkError, UnauthorizedError, ProtocolError: what was not taken stays queued.
        """
        return self._events.flush(self._transport().post)

    # Polling

    def start_polling(
        self,
        on_update: Callable[[Model], object] | None = None,
        models: Sequence[str] | None = None,
    ) -> None:
        """Look for updates from time to time in a thread of its own; returns at once.

        Args:
            on_update: called in that thread with each model newly in use.
            models: names to look after; by default the embedded ones and all seen so far.

        """
        for name in models or ():
            _checked_name("model", name)
        with self._lock:
            if self._poller is not None:
                return
            names = list(models) if models is not None else None
            self._poller = Poller(
                lambda: self._poll(names, on_update), self._first_poll_delay_s(names)
            )
            self._poller.start()

    def stop_polling(self) -> None:
        """End the polling thread; a download under way is continued some other time."""
        with self._lock:
            poller, self._poller = self._poller, None
        if poller is not None:
            poller.stop(_STOP_WAIT_S)

    def close(self) -> None:
        """Stop polling. The client may be used again."""
        self.stop_polling()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the client."""
        self.close()

    # What is in use

    def _current(self, name: str) -> Model | None:
        """Return the model in use: the active release unless the app ships a newer one."""
        state = self._states.load(name)
        for installed in (state.active, state.previous if state.active else None):
            if installed is None or not self._usable(installed, state):
                continue
            embedded = self._newer_embedded(name, installed.manifest, state)
            phase = ModelState.CONFIRMED if installed.confirmed else ModelState.ACTIVE
            return embedded or self._model(installed, phase, state)
        return self._embedded_unless_revoked(name, state)

    def _usable(self, installed: Installed, state: State) -> bool:
        if installed.sha256 in state.revoked:
            return False
        return self._cache.has(installed.sha256, installed.size_bytes)

    def _newer_embedded(self, name: str, active: Manifest, state: State) -> Model | None:
        """Return the embedded model if an update of the app brought a later release than is here.

        Labels are counted per channel, never compared by clock.
        """
        try:
            shipped = self._embedded.manifest(name)
        except EmbeddedModelError as error:
            logger.warning("%s", error)
            return None
        if shipped is None or shipped.channel != active.channel:
            return None
        if shipped.release_number <= active.release_number:
            return None
        return self._embedded_unless_revoked(name, state)

    def _embedded_unless_revoked(self, name: str, state: State) -> Model | None:
        model = self._embedded.get(name)
        return None if model is None or model.sha256 in state.revoked else model

    def _required(self, name: str) -> Model:
        model = self._current(name)
        if model is None:
            message = f"There is no model {name!r}: none installed, none embedded."
            held_back = self._states.load(name).held_back(self._timing.now())
            message += f" Of the server's offer, {held_back}." if held_back else ""
            raise NoModelError(message)
        return model

    def _model(self, installed: Installed, phase: ModelState, state: State | None = None) -> Model:
        manifest = installed.manifest
        artifact = manifest.required_artifact()
        return Model(
            name=manifest.model,
            label=manifest.label,
            version=manifest.version,
            path=self.cache_dir / installed.path,
            size_bytes=artifact.size_bytes,
            sha256=artifact.sha256,
            runtime=artifact.runtime,
            precision=artifact.precision,
            labels=manifest.labels,
            preprocessing=manifest.preprocessing,
            is_embedded=False,
            state=phase,
            enrolment=_freshest(manifest, state).enrolment,
        )

    def _label(self, name: str) -> str:
        """Return the label to tell the server: empty for nothing, or for a file without one."""
        try:
            model = self._current(name)
        except EmbeddedModelError as error:
            logger.warning("%s", error)
            return ""
        return "" if model is None or model.label == UNNAMED_LABEL else model.label

    # Asking

    def _check(self, name: str) -> State:
        return self._checks.run(name, lambda _report: self._ask(name))

    def _ask(self, name: str, *, afresh: bool = False) -> State:
        before = self._states.load(name)
        current = self._label(name)
        etag = "" if afresh else _usable_etag(before, current)
        try:
            answer = self._transport().get(
                f"/models/{quote(name)}/update", self._query(before, current), etag
            )
        except NetworkError as error:
            if error.retry_after_s:
                until = self._timing.now() + error.retry_after_s
                self._states.update(name, lambda state: state.sent_away(until))
            raise
        now = self._timing.now()
        if answer.status == 304:  # noqa: PLR2004
            return self._states.update(name, lambda state: state.unchanged(now))
        if answer.status == 204:  # noqa: PLR2004
            return self._states.update(name, lambda state: state.nothing_offered(now))
        manifest = self._read_manifest(name, answer.document)
        state = self._states.update(name, lambda state: state.answered(manifest, answer.etag, now))
        self._obey_revocations(name, before, state)
        self._tell_assignment(before, state)
        return state

    def _read_manifest(self, name: str, document: Document) -> Manifest:
        manifest = parse_manifest(document)
        if manifest.model != name:
            message = f"The server answered for {manifest.model!r} when asked for {name!r}."
            raise InvalidManifestError(message)
        return manifest

    def _as_update(self, manifest: Manifest, state: State) -> Update:
        artifact = manifest.artifact if manifest.kind is Kind.UPDATE else None
        size_bytes = artifact.size_bytes if artifact else 0
        cached = artifact is None or self._cache.has(artifact.sha256, size_bytes)
        return Update(
            name=manifest.model,
            label=manifest.label,
            version=manifest.version,
            kind=manifest.kind.value,
            reason=manifest.reason,
            notes=manifest.notes,
            mandatory=manifest.mandatory,
            size_bytes=size_bytes,
            download_bytes=0 if cached else size_bytes,
            held_back=state.held_back(self._timing.now()),
        )

    def _query(self, state: State, current: str) -> dict[str, str]:
        query = {
            "device": self._installation_id(),
            "runtime": self._runtime,
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

    def _obey_revocations(self, name: str, before: State, state: State) -> None:
        """Delete revoked files; the state that no longer names them is on disk already."""
        if before.active and before.active.sha256 in state.revoked:
            logger.warning("%s %s is revoked.", name, before.active.manifest.label)
            self._record("rolled_back", before.active, to=self._label(name), reason="revoked")
        self._remove_unreferenced(before.referenced() - state.referenced())
        self._remove_unreferenced(state.revoked)

    def _tell_assignment(self, before: State, state: State) -> None:
        offered = state.offered
        if offered is None or offered.artifact is None or offered.kind is not Kind.UPDATE:
            return
        known = before.offered
        if known and (known.label, known.enrolment) == (offered.label, offered.enrolment):
            return
        path = self._cache.relative_path_of(offered.artifact.sha256)
        self._record("assigned", Installed(offered, path), reason=offered.reason)

    # Bringing in

    def _update(
        self,
        name: str,
        conditions: DownloadConditions | None,
        progress: Progress | None,
    ) -> bool:
        """Ask, bring in and put in use what is not held back; tell whether something changed."""
        return self._updates.run(
            ("update", name, conditions),
            lambda report: self._update_alone(name, conditions, report),
            progress,
        )

    def _update_alone(
        self, name: str, conditions: DownloadConditions | None, report: Progress
    ) -> bool:
        state = self._check(name)
        if state.pending() is None:
            return False
        held_back = state.held_back(self._timing.now())
        if held_back is not None:
            logger.info("%s: not installed, since %s.", name, held_back)
            return False
        before = self._label(name)
        self._stage(name, state, conditions, report)
        self.activate(name)
        return self._label(name) != before

    def _check_and_stage(
        self, name: str, conditions: DownloadConditions | None, report: Progress
    ) -> bool:
        state = self._check(name)
        if state.pending() is None:
            return False
        self._stage(name, state, conditions, report)
        return True

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
            renewed = self._ask(name, afresh=True).pending()
            if renewed is None or renewed.kind is Kind.ROLLBACK_TO_EMBEDDED:
                return
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
                receipt = self._downloader().fetch(target, f"{name} {manifest.label}", report)
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
        if state.staged is not None and self._usable(state.staged, state):
            return state.activated()
        return replace(state, staged=None)

    def _tell_activation(self, name: str, before: State, state: State) -> None:
        if state.active is not None:
            logger.info("%s %s is in use now.", name, state.active.manifest.label)
            self._record("activated", state.active)
        elif before.active is not None:
            logger.info("%s is back to the embedded model.", name)
            reason = state.offered.reason if state.offered else ""
            self._record("rolled_back", before.active, to=self._label(name), reason=reason)

    def _unusable(self, state: State, damaged: Mapping[str, Path]) -> frozenset[str]:
        kept = [i for i in (state.staged, state.active, state.previous) if i is not None]
        gone = {i.sha256 for i in kept if not self._cache.has(i.sha256, i.size_bytes)}
        return frozenset(gone | damaged.keys())

    def _remove_unreferenced(self, hashes: frozenset[str]) -> None:
        """Delete files that no state of any server needs; none while a state cannot be read."""
        if not hashes:
            return
        needed: set[str] = set()
        for state in states_below(self.cache_dir):
            if state is None:
                return
            needed |= state.referenced()
        for sha256 in hashes - needed:
            self._cache.remove(sha256)
            self._cache.discard_partials(sha256)

    # Events

    def _record(self, kind: str, installed: Installed | None, **data: object) -> None:
        if installed is not None:
            self._events.record(kind, self._model(installed, ModelState.ACTIVE), data)

    def _first_inference(self, model: Model) -> Callable[[float], None]:
        return lambda latency_ms: self._events.record(
            "first_inference", model, {"latency_ms": round(latency_ms, 3)}
        )

    def _try_flush(self) -> None:
        try:
            self.flush_events()
        except NightferryError as error:
            logger.debug("Events wait: %s", error)

    # In the background

    def _update_in_background(self, name: str, conditions: DownloadConditions | None) -> None:
        if environment.offline() or self._sent_away_s(name) > 0:
            return
        threading.Thread(
            target=self._update_quietly,
            args=(name, conditions),
            name=f"nightferry-update-{name}",
            daemon=True,
        ).start()

    def _update_quietly(self, name: str, conditions: DownloadConditions | None) -> None:
        try:
            self._update(name, conditions, None)
        except NightferryError as error:
            logger.info("%s was not updated. %s", name, error)
        self._try_flush()

    def _poll(
        self, models: Sequence[str] | None, on_update: Callable[[Model], object] | None
    ) -> float:
        """Update every model once; return the seconds until the next poll."""
        failure: NightferryError | None = None
        for name in self._polled(models):
            try:
                changed = self._update(name, None, None)
            except NightferryError as error:
                logger.info("%s was not updated. %s", name, error)
                failure = error if isinstance(error, NetworkError) else failure
                continue
            model = self._current(name)
            if changed and model is not None and on_update is not None:
                _call_safely(on_update, model)
        self._try_flush()
        if failure is None:
            self._failed_polls = 0
            return self._timing.poll_delay_s(*self._poll_wish(models))
        self._failed_polls += 1
        return self._timing.backoff_s(self._failed_polls, failure.retry_after_s)

    def _polled(self, models: Sequence[str] | None) -> list[str]:
        if models is not None:
            return list(models)
        return sorted({*self._states.names(), *self._embedded.names()})

    def _poll_wish(self, models: Sequence[str] | None) -> tuple[float | None, float | None]:
        """Return the shortest interval the server asks for, in seconds, and its jitter."""
        offers = [self._states.load(name).offered for name in self._polled(models)]
        wishes = [
            (offer.poll_interval_s, offer.poll_jitter)
            for offer in offers
            if offer is not None and offer.poll_interval_s is not None
        ]
        return min(wishes, key=lambda wish: wish[0]) if wishes else (None, None)

    def _first_poll_delay_s(self, models: Sequence[str] | None) -> float:
        waits = [self._sent_away_s(name) for name in self._polled(models)]
        return self._timing.first_poll_delay_s() + max(waits, default=0.0)

    def _sent_away_s(self, name: str) -> float:
        """Return how long the server's last Retry-After still holds, in seconds."""
        until = self._states.load(name).retry_at
        left = 0.0 if until is None else until - self._timing.now()
        # A clock that jumped must not silence the device: a day is the most a server may ask.
        return left if 0 < left <= MAX_RETRY_AFTER_S else 0.0

    # Parts made on first use

    def _transport(self) -> Transport:
        return self._network()[0]

    def _downloader(self) -> Downloader:
        return self._network()[1]

    def _network(self) -> tuple[Transport, Downloader]:
        with self._lock:
            if self._parts is None:
                from nightferry.download import Downloader
                from nightferry.transport import Transport

                transport = Transport(
                    self._server_url,
                    app_key=self._app_key,
                    user_agent=f"nightferry/{__version__}",
                    request_timeout_s=self._timing.request_timeout_s,
                    stall_timeout_s=self._timing.stall_timeout_s,
                    offline=environment.offline(),
                )
                self._parts = transport, Downloader(transport, self._cache, self._timing)
            return self._parts

    def _installation_id(self) -> str:
        with self._lock:
            if self._device is None:
                self._device = installation_id(self._id_path)
            return self._device


def _refuse_trusted_root(trusted_root: object) -> None:
    if trusted_root is not None:
        message = (
            "This version of the SDK cannot check signed metadata, so trusted_root must be None. "
            "It installs what the configured server states, verified by hash and size."
        )
        raise ConfigurationError(message)


def _usable_server_url(url: str | None) -> str:
    """Return the address without a trailing slash."""
    address = (url or environment.endpoint() or "").strip().rstrip("/")
    if not address:
        message = "No server address: pass server_url, or set NIGHTFERRY_ENDPOINT."
        raise ConfigurationError(message)
    try:
        parts = urlsplit(address)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or "@" in parts.netloc:
        message = f"The server address {address!r} is not of the form https://host[:port][/path]."
        raise ConfigurationError(message)
    return address


def _checked_name(what: str, name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = f"{name!r} is not a possible {what}: letters, digits, hyphens and underscores."
        raise ConfigurationError(message)
    return name


def _scope(server_url: str) -> str:
    """Name the folder of a server: readable, and different for any two addresses."""
    host = re.sub(r"[^a-z0-9.-]", "_", urlsplit(server_url).netloc.lower())[:60]
    return f"{host}-{hashlib.sha256(server_url.encode()).hexdigest()[:8]}"


def _usable_etag(state: State, current: str) -> str:
    """Return the validator, unless a 304 would leave us without anything to act on.

    "none" means: what you reported is right. Where that is no longer what is here, ask in full.
    """
    offered = state.offered
    if offered is None or (offered.kind is Kind.NONE and offered.label != current):
        return ""
    return state.etag


def _freshest(manifest: Manifest, state: State | None) -> Manifest:
    """Return the server's latest word on the same release: a rollout may have ended since."""
    offered = state.offered if state else None
    return offered if offered and offered.label == manifest.label else manifest


def _hash_fits(path: Path, sha256: str) -> bool:
    try:
        return hash_file(path) == sha256
    except OSError:
        return False


def _call_safely(callback: Callable[[Model], object], model: Model) -> None:
    try:
        callback(model)
    except Exception:
        logger.exception("The on_update callback failed for %s.", model.name)

"""The client: one object that keeps the models of an app fresh.

``inventory`` knows what is here and in use, ``updates`` how a release gets in, ``trial`` how it
comes into use and out again, ``state`` what follows from what, ``trust`` what may be installed;
``acquisition``, ``download`` and ``cache`` bring it in whole. The client puts them together and
keeps two callers from doing one thing twice.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from nightferry import __version__, environment, log
from nightferry.cache import BlobCache
from nightferry.compiled import Compiler
from nightferry.device import SystemProbe, installation_id
from nightferry.embedded import EmbeddedModels
from nightferry.errors import (
    CompileFailedError,
    ConfigurationError,
    IntegrityError,
    NightferryError,
    PredictionError,
    RuntimeMissingError,
)
from nightferry.events import EventFile, EventQueue
from nightferry.flight import Flights
from nightferry.inventory import Inventory
from nightferry.models import (
    ActivationMode,
    CacheReport,
    DownloadType,
    Model,
    ModelState,
    ModelStatus,
    PruneReport,
    StoredFile,
    Update,
)
from nightferry.network import Network
from nightferry.polling import Poller, PollingRound, sent_away_s
from nightferry.state import State
from nightferry.store import StateStore
from nightferry.timing import Timing
from nightferry.trial import Trial
from nightferry.trust import TufVerifier, read_root
from nightferry.updates import Collaborators, Updates, Wish

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from nightferry.benchmark import BenchmarkReport
    from nightferry.compiled import Compile
    from nightferry.device import DeviceProbe
    from nightferry.models import DownloadConditions
    from nightferry.prediction import Predictor
    from nightferry.trust import Verifier

Progress = Callable[[int, int], object]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_ADDRESS = re.compile(
    r"https?://([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[1-9]\d{0,4})?(/[A-Za-z0-9._~%/-]*)?"
)
_STOP_WAIT_S = 5.0
_MAX_FALLS = 3  # the release in use, the one before it, the embedded model


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
        trusted_root: the server's ``root.json``, as bytes or as a path; only what is signed below
            it is ever installed. Without one, what is installed and embedded is served, and
            whatever would install raises NoTrustedRootError. A file is read when it is needed;
            where it cannot be, whatever would install raises ConfigurationError.
        telemetry: whether to record and send events.
        accept: precisions the app can run, in the order of its preference; None for any.
        device_class: the app's own name for this kind of device, for targeting; sent as it is.
        device_probe: tells about power and network (see ``DownloadConditions``).
        trust_on_first_use: without a ``trusted_root``, believe the first root that the server
            hands out: whoever controls the network at that moment chooses the models.
        activation: when a release that came in the background is used.
        verifier: decides what may be installed, in place of the signed metadata.
        timing: intervals, limits and chance.
        compile: called with a model file and an empty folder, once a release is verified and
            tested and before it comes into use, and again when the system's version changes;
            makes in the folder what the app runs, and returns its path (see ``compiled_path``).

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
        trusted_root: bytes | str | Path | None = None,
        telemetry: bool = True,  # noqa: FBT001, FBT002 - named by the public contract
        *,
        accept: Sequence[str] | None = None,
        device_class: str | None = None,
        device_probe: DeviceProbe | None = None,
        trust_on_first_use: bool = False,
        activation: ActivationMode = ActivationMode.NEXT_LOAD,
        verifier: Verifier | None = None,
        timing: Timing | None = None,
        compile: Compile | None = None,  # noqa: A002 - what it does
    ) -> None:
        """Check the arguments and put the parts together; see the class."""
        url = _usable_server_url(server_url)
        _checked("channel", channel)
        _checked("runtime", runtime)
        self.cache_dir = Path(cache_dir or environment.default_cache_dir()).expanduser()
        scope = self.cache_dir / "servers" / _scope(url)
        self._timing = timing or Timing()
        self._id_path = scope / "installation-id"
        self._inventory = Inventory(
            BlobCache(self.cache_dir),
            StateStore(scope / "models", channel=channel, runtime=runtime),
            EmbeddedModels(
                {_checked("model", name): Path(path) for name, path in (embedded or {}).items()},
                runtime=runtime,
            ),
            self._timing.now,
            known_revoked=self._known_revoked,
        )
        self._compiler = Compiler(compile, self._inventory.cache) if compile else None
        self._network = Network(url, app_key, self._inventory.cache, self._timing)
        self._events = EventQueue(
            EventFile(scope / "events.jsonl"),
            channel=channel,
            device=self._installation_id,
            enabled=telemetry and not environment.telemetry_disabled(),
            device_class=device_class,
            sample_bp=self._inventory.sample_bp,
            now=self._timing.now,
        )
        self._trial = Trial(self._inventory, self._events, self._timing, ActivationMode(activation))
        self._updates = Updates(
            Collaborators(
                inventory=self._inventory,
                network=self._network,
                verifier=verifier
                or TufVerifier(
                    root=trusted_root
                    if isinstance(trusted_root, str | Path)
                    else read_root(trusted_root),
                    folder=scope / "metadata",
                    transport=self._network.transport,
                    channel=channel,
                    runtime=runtime,
                    accept=accept,
                    trust_on_first_use=trust_on_first_use,
                    timing=self._timing,
                ),
                events=self._events,
                trial=self._trial,
                probe=device_probe or SystemProbe(),
                timing=self._timing,
                compiler=self._compiler,
            ),
            channel=channel,
            runtime=runtime,
            facts=_facts(runtime, app_version, accept, device_class),
            device=self._installation_id,
        )
        self._checks_under_way: Flights[State] = Flights()
        self._updates_under_way: Flights[bool] = Flights()
        self._lock = threading.RLock()
        self._background = threading.Event()  # set: what runs in the background is to end
        self._device: str | None = None
        self._poller: Poller | None = None

    # Models

    def get_model(
        self,
        name: str,
        download_type: DownloadType = DownloadType.LOCAL_MODEL_UPDATE_IN_BACKGROUND,
        conditions: DownloadConditions | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Return the model to run now.

        What a background update has made ready is in use from here on. A release that is new in
        use is on trial: confirm it with ``notify_ready``, or run it with ``load``, whose good
        predictions confirm it; so do three processes that take it and end in order. If two
        in a row are killed or crash without a good prediction, it is left again.

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
        wanted = DownloadType(download_type)
        _checked("model", name)
        if wanted is not DownloadType.LATEST_MODEL:
            model = self._trial.take(name)
            if model is not None:
                if wanted is DownloadType.LOCAL_MODEL_UPDATE_IN_BACKGROUND:
                    self._update_in_background(name, conditions)
                return model
        try:
            self._update(name, conditions, progress)
        except NightferryError as error:
            model = self._trial.take(name)
            if model is None:
                raise
            log.warning("%s stays at %s. %s", name, model.label, error)
            return model
        return self._trial.take(name) or self._inventory.required(name)

    def load(self, name: str, *, num_threads: int | None = None) -> Predictor:
        """Return the current model ready to run (needs ``pip install nightferry[tflite]``).

        What is on the device is used; only where there is nothing, it is downloaded. Ten good
        predictions, over all processes, confirm a release that is on trial.

        Raises:
            RuntimeMissingError, PredictionError: the model cannot be run.
            NightferryError: there is no model, and this is why.

        """
        from nightferry.prediction import Predictor
        from nightferry.usage import Usage

        model = self.get_model(name, DownloadType.LOCAL_MODEL)
        usage = Usage(
            model,
            self._events,
            self._trial,
            current=lambda: self._inventory.current(name),
            limit_ms=self._inventory.latency_limit_ms(name),
        )
        try:
            return Predictor(model, num_threads=num_threads, usage=usage)
        except RuntimeMissingError:
            raise
        except (PredictionError, IntegrityError) as error:
            usage.failed(error, code="load")
            raise

    def benchmark(self, name: str, max_s: float = 5.0) -> BenchmarkReport:
        """Time the model in use for at most ``max_s`` seconds, and tell the server what came of it.

        Only ever where the app calls it, for people who allow it: it heats the device. The event
        names the file, the device class and the times, nothing else.

        Raises:
            ConfigurationError: ``max_s`` is not above 0 and at most 60.
            ConditionsNotMetError: the model is on trial, and is timed once it is confirmed.
            RuntimeMissingError, PredictionError: the model cannot be run.
            NoModelError: there is no model on the device.

        """
        from nightferry.benchmark import check_allowed, measure
        from nightferry.prediction import Predictor

        model = self._inventory.required(_checked("model", name))
        check_allowed(model, max_s)
        report = measure(Predictor(model, num_threads=1), max_s)
        self._events.record("benchmark", model, report.data)
        return report

    def compiled_path(self, name: str) -> Path:
        """Return what the app's ``compile`` made of the model to run now.

        Made already for a release that came with an update; here for an embedded model, and after
        the system was updated. A release that cannot be compiled goes out of use, as after
        ``report_failure``, and the one before it is compiled instead.

        Raises:
            ConfigurationError: no ``compile`` was passed.
            CompileFailedError: there is nothing left that can be compiled.
            NightferryError: there is no model, and this is why.

        """
        if self._compiler is None:
            raise ConfigurationError("Nothing was passed to compile with: ModelClient(compile=…).")
        for _ in range(_MAX_FALLS):
            model = self.get_model(name, DownloadType.LOCAL_MODEL)
            try:
                return self._compiler.make(model.path, model.sha256)
            except CompileFailedError as error:
                if model.is_embedded:
                    raise
                self._trial.fall_back(name, error.code, str(error))
                if self._inventory.current(name) is None:
                    raise
        raise CompileFailedError(f"No release of {name} that is here can be compiled.")

    def list_models(self) -> list[Model]:
        """Return the models that could be used now, offline, by name."""
        models = map(self._inventory.current, self._inventory.names())
        return [model for model in models if model is not None]

    def status(self, name: str) -> ModelStatus:
        """Return where one model stands, without asking the server."""
        return self._inventory.status(_checked("model", name))

    def delete_model(self, name: str) -> None:
        """Remove a model from the device: first what is remembered, then its files.

        An embedded model is part of the app and stays. Raises StorageError.
        """
        self._inventory.delete(_checked("model", name))

    def verify_cache(self) -> CacheReport:
        """Hash every stored file again; remove damaged ones and fall back where one was in use."""
        return self._inventory.verify()

    def scan(self) -> list[StoredFile]:
        """List every file in the cache: which release it belongs to, its size, its last use."""
        return self._inventory.scan()

    def prune(self, *, keep_previous: bool = True) -> PruneReport:
        """Delete files that no model needs: not in use, staged, pinned, nor on their way in.

        Args:
            keep_previous: False gives up the way back to the release before, too.

        """
        return self._inventory.prune(keep_previous=keep_previous)

    def pin(self, name: str, label: str | None = None) -> None:
        """Keep the file of a release that is here, by default the one in use, until ``unpin``.

        A pinned release costs no download when the server rolls back to it. Raises NoModelError.
        """
        self._inventory.pin(_checked("model", name), label)

    def unpin(self, name: str, label: str | None = None) -> None:
        """Let a pinned release go, by default all of the model."""
        self._inventory.unpin(_checked("model", name), label)

    def export_model(self, name: str, path: str | Path) -> None:
        """Write what an app embeds: the model file at ``path`` and its manifest at ``path.json``.

        Raises NoModelError (only an installed release can be exported), StorageError.
        """
        self._inventory.export(_checked("model", name), Path(path))

    # Updates, step by step

    def check_for_update(self, name: str) -> Update | None:
        """Ask the server what to run; return it if it is something else than what runs, else None.

        Brings the signed metadata up to date where the answer is new, and every 12 hours, and
        obeys them: what is revoked is out of use. Raises NetworkError, RequestRefusedError,
        ProtocolError, TrustError; NoTrustedRootError without asking.
        """
        _checked("model", name)
        state = self._checks_under_way.run(name, lambda _report: self._updates.ask(name))
        return self._updates.describe(state)

    def fetch_update(
        self,
        name: str,
        conditions: DownloadConditions | None = None,
        progress: Progress | None = None,
    ) -> Model | None:
        """Ask, download, verify and test, without putting in use; return the staged model.

        ``activate`` puts it in use; but in the mode MANUAL, so does the next ``get_model``.

        Returns None where nothing is to be downloaded: up to date, or the server wants the
        embedded model (``activate`` obeys). A release that failed here before is tried again.

        Raises:
            NightferryError: why it could not be had. What arrived is kept for the next try.

        """
        _checked("model", name)
        self._updates_under_way.run(
            ("fetch", name, conditions),
            lambda report: self._updates.fetch(name, Wish(conditions, _never, report)),
            progress,
        )
        staged = self._inventory.states.load(name).staged
        return self._inventory.model(staged, ModelState.STAGED) if staged else None

    def activate(self, name: str) -> Model:
        """Put the staged model in use, or the embedded one if the server wants that.

        Without either, what is in use stays and is returned; also where the signed metadata are
        older than 12 hours and cannot be brought up to date. Raises NoModelError where there is
        nothing to use.
        """
        state = self._inventory.states.load(_checked("model", name))
        if state.staged is None or self._updates.bring_policy_in(name):
            self._trial.activate(name)
        return self._inventory.required(name)

    def sync(self, name: str) -> Model | None:
        """Ask, download, put in use, and send waiting events; return the model now in use.

        In the mode MANUAL nothing is put in use but the first model there is. Returns None where
        the server has nothing for this device and nothing is embedded.
        Raises the same errors as ``fetch_update``; undelivered events wait and raise nothing.
        """
        self._update(_checked("model", name), None, None)
        self._try_flush()
        return self._inventory.current(name)

    def notify_ready(self, name: str) -> None:
        """Tell that the app works with the model in use; the release counts as confirmed."""
        self._trial.confirm(_checked("model", name))

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
        self._trial.fall_back(_checked("model", name), "reported", reason)
        return self._inventory.current(name)

    def report_feedback(self, name: str, *, correct: bool) -> None:
        """Record whether a prediction of the model in use was right, as its user says."""
        model = self._inventory.required(_checked("model", name))
        self._events.record("feedback", model, {"correct": bool(correct)})

    def flush_events(self) -> int:
        """Send the waiting events now; return how many are done with.

        Raises NetworkError, UnauthorizedError, ProtocolError: what was not taken stays queued.
        """
        return self._events.flush(lambda path, body: self._network.transport().post(path, body))

    # Polling

    def start_polling(
        self,
        on_update: Callable[[Model], object] | None = None,
        models: Sequence[str] | None = None,
    ) -> None:
        """Look for updates from time to time in a thread of its own; returns at once.

        Args:
            on_update: called in that thread with each model that is newly in use, or newly ready
                (its ``state`` is STAGED) where it waits to be activated.
            models: names to look after; by default the embedded ones and all seen so far.

        """
        names = None if models is None else [_checked("model", name) for name in models]
        look = PollingRound(
            self._inventory,
            self._timing,
            lambda name: self._update(name, None, None, in_background=True),
            names,
            on_update,
        )

        def run() -> float:
            delay_s = look.run()
            self._try_flush()
            return delay_s

        with self._lock:
            if self._poller is None:
                self._poller = Poller(run, look.first_delay_s())
                self._poller.start()

    def stop_polling(self) -> None:
        """End the polling thread and pause what it downloads; that is continued some other time.

        Also pauses the downloads that ``get_model`` left in the background.
        """
        with self._lock:
            poller, self._poller = self._poller, None
            stopped, self._background = self._background, threading.Event()
        stopped.set()
        if poller is not None:
            poller.stop(_STOP_WAIT_S)

    def close(self) -> None:
        """Stop polling, keep what was timed for the next batch, and be done with the models.

        A release on trial has then not taken the app down. The client may be used again.
        """
        self._stop()
        self._trial.end()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the client; an app that is on its way down with an error does not end in order."""
        if isinstance(error, Exception):
            self._stop()
        else:
            self.close()

    def _stop(self) -> None:
        self.stop_polling()
        self._events.record_latencies()

    def _update(
        self,
        name: str,
        conditions: DownloadConditions | None,
        progress: Progress | None,
        *,
        in_background: bool = False,
    ) -> Model | None:
        """Bring in what the server wants and use it if it is time; return a model that is news."""
        before = self._inventory.label(name)
        stopped = self._background.is_set if in_background else _never
        is_newly_ready = self._updates_under_way.run(
            ("update", name, conditions),
            lambda report: self._updates.bring_in(name, Wish(conditions, stopped, report)),
            progress,
        )
        self._trial.settle(name, at_once=not in_background)
        if self._inventory.label(name) != before:
            return self._inventory.current(name)
        staged = self._inventory.states.load(name).staged
        if is_newly_ready and staged is not None:
            return self._inventory.model(staged, ModelState.STAGED)
        return None

    def _update_in_background(self, name: str, conditions: DownloadConditions | None) -> None:
        if environment.offline() or sent_away_s(self._inventory, self._timing, name) > 0:
            return
        threading.Thread(
            target=self._update_quietly,
            args=(name, conditions),
            name=f"nightferry-update-{name}",
            daemon=True,
        ).start()

    def _update_quietly(self, name: str, conditions: DownloadConditions | None) -> None:
        try:
            self._update(name, conditions, None, in_background=True)
        except NightferryError as error:
            log.info("%s was not updated. %s", name, error)
        self._try_flush()

    def _try_flush(self) -> None:
        try:
            self.flush_events()
        except NightferryError as error:
            log.debug("Events wait: %s", error)

    def _known_revoked(self, name: str) -> frozenset[str]:
        return self._updates.known_revoked(name)

    def _installation_id(self) -> str:
        with self._lock:
            if self._device is None:
                self._device = installation_id(self._id_path)
            return self._device


def _never() -> bool:
    return False


def _usable_server_url(url: str | None) -> str:
    """Return the address without a trailing slash."""
    address = (url or environment.endpoint() or "").strip().rstrip("/")
    if not address:
        raise ConfigurationError("No server address: pass server_url, or set NIGHTFERRY_ENDPOINT.")
    if not _ADDRESS.fullmatch(address):
        raise ConfigurationError(
            f"The server address {address!r} is not of the form https://host[:port][/path]."
        )
    return address


def _checked(what: str, name: str) -> str:
    """Return a name that is safe in a path; raise ConfigurationError for any other."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is not a possible {what}: letters, digits, hyphens and underscores."
        )
    return name


def _scope(server_url: str) -> str:
    """Name the folder of a server: readable, and different for any two addresses."""
    checksum = zlib.crc32(server_url.encode())
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', server_url)[:80]}-{checksum:08x}"


def _facts(
    runtime: str, app_version: str, accept: Sequence[str] | None, device_class: str | None
) -> dict[str, str]:
    """Return what every update check says about the app."""
    facts = {"runtime": runtime, "app_version": app_version, "sdk_version": __version__}
    if accept is not None:
        facts["accept"] = ",".join(accept)
    if device_class:
        facts["device_class"] = device_class
    return facts

"""How an authorised file gets into the cache: it is there, or a patch leads to it, or whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

from nightferry import log
from nightferry.device import check_conditions
from nightferry.errors import (
    ConditionsNotMetError,
    NetworkError,
    NightferryError,
    PatchError,
    ServerError,
    StorageError,
)
from nightferry.models import DownloadConditions, Transfer
from nightferry.trust import Target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nightferry.cache import Partial
    from nightferry.device import DeviceProbe
    from nightferry.inventory import Inventory
    from nightferry.manifest import Manifest, Patch
    from nightferry.network import Network
    from nightferry.trust import Verifier

_ALGORITHM = "nfp1"
_ANYTHING_GOES = DownloadConditions()


@dataclass(frozen=True)
class Leave:
    """What a transfer asks before it begins and at every piece: whether it may go on.

    ``stopped`` tells that the app asked for an end; ``report`` hears of bytes done and in total.
    """

    conditions: DownloadConditions | None
    probe: DeviceProbe
    stopped: Callable[[], bool]
    report: Callable[[int, int], object]

    def check(self, size_bytes: int) -> None:
        """Raise ConditionsNotMetError if so many bytes may not be fetched now."""
        if self.stopped():
            raise ConditionsNotMetError("The app asked to stop; what has arrived is kept.")
        check_conditions(self.conditions or _ANYTHING_GOES, self.probe, size_bytes)

    def go_on(self, done_bytes: int, total_bytes: int) -> None:
        """Report progress; raise ConditionsNotMetError where the transfer has to wait."""
        self.report(done_bytes, total_bytes)
        if done_bytes < total_bytes:
            self.check(total_bytes)


@dataclass(frozen=True)
class Phases:
    """Whom to tell how far it has come: each writes the state before it returns."""

    downloading: Callable[[], object]
    verifying: Callable[[], object]


class Acquisition:
    """Brings in one file after another. Callers keep two of one model from overlapping."""

    def __init__(self, inventory: Inventory, network: Network, verifier: Verifier) -> None:
        """Use these parts; nothing is touched yet."""
        self._inventory = inventory
        self._cache = inventory.cache
        self._network = network
        self._verifier = verifier

    def acquire(self, manifest: Manifest, target: Target, leave: Leave, phases: Phases) -> Transfer:
        """Make sure that the file is in the cache, verified; return what that cost.

        Raises NetworkError, ConditionsNotMetError (what arrived is kept), ArtifactGoneError,
        ProtocolError, IntegrityError, StorageError.
        """
        if self._cache.has(target.sha256, target.size_bytes):
            return Transfer(
                label=manifest.label,
                received_bytes=0,
                resumed_bytes=0,
                size_bytes=target.size_bytes,
            )
        patch_error = ""
        found = self.usable_patch(manifest)
        if found is not None:
            try:
                return self._by_patch(manifest, target, *found, leave, phases)
            except NightferryError as error:
                if not _leads_to_whole_file(error):
                    raise
                patch_error = _code(error)
                log.info("%s comes whole: %s", manifest.label, error)
        return self._whole(manifest, target, leave, phases, patch_error)

    def usable_patch(self, manifest: Manifest) -> tuple[Patch, Path] | None:
        """Return the smallest patch on offer from a file that is here, and that file."""
        artifact = manifest.required_artifact()
        known = (
            patch
            for patch in manifest.patches
            if patch.algorithm == _ALGORITHM and patch.size_bytes < artifact.size_bytes
        )
        for patch in sorted(known, key=lambda patch: patch.size_bytes):
            base = self._inventory.file_of(manifest.model, patch.from_sha256)
            if base is not None:
                return patch, base
        return None

    def _whole(
        self, manifest: Manifest, target: Target, leave: Leave, phases: Phases, patch_error: str
    ) -> Transfer:
        leave.check(target.size_bytes)
        phases.downloading()
        receipt = self._network.downloader().fetch(
            target, f"{manifest.model} {manifest.label}", leave.go_on, phases.verifying
        )
        return Transfer(
            label=manifest.label,
            received_bytes=receipt.received_bytes,
            resumed_bytes=receipt.resumed_bytes,
            size_bytes=target.size_bytes,
            patch_error=patch_error,
        )

    def _by_patch(
        self,
        manifest: Manifest,
        target: Target,
        patch: Patch,
        base: Path,
        leave: Leave,
        phases: Phases,
    ) -> Transfer:
        signed = self._verifier.authorise_patch(manifest.model, patch.from_sha256, target.sha256)
        if signed is None or signed.algorithm != _ALGORITHM:
            raise PatchError("The patch on offer is not a signed one.", reason="unlisted")
        leave.check(signed.target.size_bytes)
        self._cache.check_space(target.size_bytes)
        phases.downloading()
        name = f"the patch to {manifest.model} {manifest.label}"
        receipt = self._network.downloader().fetch(signed.target, name, leave.go_on)
        phases.verifying()
        try:
            self._apply(base, signed.target, target, f"{manifest.model} {manifest.label}")
        finally:
            self._cache.remove(signed.target.sha256)
        self._cache.discard_partials(target.sha256)
        return Transfer(
            label=manifest.label,
            received_bytes=receipt.received_bytes,
            resumed_bytes=receipt.resumed_bytes,
            size_bytes=target.size_bytes,
            by_patch=True,
        )

    def _apply(self, base: Path, patch: Target, target: Target, name: str) -> None:
        from nightferry.patches import apply_patch

        partial = self._cache.begin_patched(target)
        try:
            apply_patch(
                base,
                self._cache.path_of(patch.sha256),
                cast("BinaryIO", _Writer(partial)),
                size_bytes=target.size_bytes,
                sha256=target.sha256,
            )
            partial.commit(name)
        except OSError as error:  # what is written raises StorageError
            message = f"The installed file cannot be read: {error.strerror}."
            raise PatchError(message, reason="other_base") from error
        finally:
            partial.abandon()


class _Writer:
    """The part of a binary file that writing a patched one needs."""

    def __init__(self, partial: Partial) -> None:
        self._partial = partial

    def write(self, content: bytes) -> int:
        self._partial.append(content)
        return len(content)


def _leads_to_whole_file(error: NightferryError) -> bool:
    """Tell whether the whole file is worth asking for, now that the patch is not to be had."""
    if isinstance(error, ConditionsNotMetError | StorageError):
        return False
    return isinstance(error, ServerError) or not isinstance(error, NetworkError)


def _code(error: NightferryError) -> str:
    return f"{error.code}:{error.reason}" if isinstance(error, PatchError) else error.code

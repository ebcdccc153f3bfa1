"""Where pretrained weights come from: a folder, or Keras's own download; never unchecked.

In the folder (``NIGHTFERRY_WEIGHTS``) these count, in this order:

* files that the architecture knows by name and SHA-256;
* Keras's own file, which has to have the MD5 that Keras publishes, where it publishes one;
* ``<architecture>.weights.h5``, written by Keras's ``save_weights``, whose SHA-256 has to stand
  in the folder's ``SHA256SUMS`` (lines as ``sha256sum`` prints them).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from worker.ml.architectures import find_architecture
from worker.ml.errors import ArchitectureUnknown, WeightsUnavailable

if TYPE_CHECKING:
    from worker.ml.architectures import Architecture
    from worker.ml.architectures.base import KerasFile

CHECKSUMS: Final = "SHA256SUMS"

_DOWNLOAD_TIMEOUT_S: Final = 15.0
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Weights:
    """Pretrained weights of one backbone; ``path`` is None for a network trained from nothing."""

    path: Path | None
    origin: Literal["folder", "download", "none"]
    sha256: str


NO_WEIGHTS: Final = Weights(path=None, origin="none", sha256="")


def find_weights(
    backbone_name: str, folder: Path | None, *, allow_download: bool = True
) -> Weights:
    """Return checked weights of the backbone, from ``folder`` first, else from the network.

    Raises :class:`WeightsUnavailable` with a sentence that says what to do.
    """
    try:
        architecture = find_architecture(backbone_name)
    except ArchitectureUnknown as error:
        message = f"no pretrained weights are known for '{backbone_name}'"
        raise WeightsUnavailable(message) from error
    found = None if folder is None else _find_in_folder(architecture, folder)
    if found is not None:
        return found
    lent = _find_lent(architecture, folder)
    if lent is not None and not allow_download:
        return lent
    if architecture.keras_file is None:
        raise WeightsUnavailable(_sentence(architecture, folder, "nobody publishes them for Keras"))
    if not allow_download:
        raise WeightsUnavailable(_sentence(architecture, folder, "downloads are off"))
    try:
        path = _download(architecture.keras_file)
    except Exception as error:
        if lent is not None:
            return lent
        reason = f"the download failed ({_first_line(error)})"
        raise WeightsUnavailable(_sentence(architecture, folder, reason)) from error
    return Weights(path=path, origin="download", sha256=file_sha256(path))


def file_sha256(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    return _file_digest(path, "sha256")


def _file_digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _find_in_folder(architecture: Architecture, folder: Path) -> Weights | None:
    for name, expected in architecture.weight_files.items():
        if (folder / name).is_file():
            return _checked(folder / name, "sha256", expected)
    keras_file = architecture.keras_file
    if keras_file is not None and (folder / keras_file.name).is_file():
        # Where Keras publishes no hash, the file is taken for what its name says, and loading it
        # into the network shows whether it is; its own hash is recorded with every version.
        return _checked(folder / keras_file.name, "md5", keras_file.md5)
    own = folder / _own_name(architecture)
    if own.is_file():
        return _checked(own, "sha256", _listed_sha256(own))
    return None


def _find_lent(architecture: Architecture, folder: Path | None) -> Weights | None:
    """Return weights of another size of the network, which its own are better than."""
    if folder is None or not architecture.lender:
        return None
    return _find_in_folder(find_architecture(architecture.lender), folder)


def _checked(path: Path, kind: str, expected: str) -> Weights:
    actual = _file_digest(path, kind)
    if expected and actual != expected:
        message = (
            f"{path.name} in {path.parent} is damaged or not the known file: its"
            f" {_HASHES[kind]} is {actual[:12]}…, not {expected[:12]}…; replace it"
        )
        raise WeightsUnavailable(message, code="weights_wrong")
    return Weights(path=path, origin="folder", sha256=file_sha256(path))


_HASHES: Final = {"sha256": "SHA-256", "md5": "MD5"}


def _own_name(architecture: Architecture) -> str:
    return f"{architecture.name}.weights.h5"


def _listed_sha256(path: Path) -> str:
    """Return what the folder's list says of the file; raises :class:`WeightsUnavailable`."""
    checksums = path.parent / CHECKSUMS
    lines = checksums.read_text(encoding="utf-8").splitlines() if checksums.is_file() else []
    for line in lines:
        digest, _, name = line.partition(" ")
        if name.lstrip(" *") == path.name:
            return digest.lower()
    message = (
        f"{path.name} lies in {path.parent}, but no line of its {CHECKSUMS} vouches for it; add"
        f" what 'sha256sum {path.name}' prints where the file is known to be right"
    )
    raise WeightsUnavailable(message, code="weights_unchecked")


def _download(file: KerasFile) -> Path:
    """Fetch Keras's own file into Keras's own cache, or take it from there."""
    import keras

    module = importlib.import_module(f"keras.src.applications.{file.module}")
    address: str = getattr(module, file.address)
    with _socket_timeout(_DOWNLOAD_TIMEOUT_S):
        got = keras.utils.get_file(
            file.name,
            address + file.name if address.endswith("/") else address,
            cache_subdir="models",
            file_hash=file.md5 or None,
        )
    return Path(os.fspath(got))


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Keras sets no timeout of its own; without one a silent network would hang the night."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _sentence(architecture: Architecture, folder: Path | None, reason: str) -> str:
    where = "no folder of weights is set" if folder is None else f"they are not in {folder}"
    known = [architecture.keras_file.name] if architecture.keras_file else []
    names = " or ".join([*architecture.weight_files, *known, _own_name(architecture)])
    return (
        f"Pretrained weights of {architecture.name} are not available: {where}, and {reason}. "
        f"Set NIGHTFERRY_WEIGHTS to a folder that holds {names}."
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

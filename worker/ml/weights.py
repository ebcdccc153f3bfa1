"""Where pretrained weights come from: a folder, or Keras's own download; never unchecked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from worker.ml.errors import WeightsUnavailable

_DOWNLOAD_TIMEOUT_S: Final = 15.0
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Weights:
    """Pretrained weights of one backbone; ``path`` is None for a network trained from nothing."""

    path: Path | None
    origin: Literal["folder", "download", "none"]
    sha256: str


NO_WEIGHTS: Final = Weights(path=None, origin="none", sha256="")


@dataclass(frozen=True)
class _Known:
    """The names a backbone's weights go by, and what they must hash to.

    ``files`` maps names in a folder to SHA-256; ``keras_name`` is Keras's own file, for which
    Keras publishes no hash: it comes over a verified connection, and its hash is recorded.
    """

    files: Mapping[str, str]
    keras_name: str


_KERAS: Final = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5"
_KNOWN: Final[Mapping[str, _Known]] = {
    "mobilenet_v2_0.35_224": _Known(
        files={
            "mobilenet_v2_0.35_224_no_top.weights.h5": (
                "04af0032331eca800a501cbd14b1861ef1d07bfa5728325084bbe295e7ffaecb"
            )
        },
        keras_name=_KERAS.format(alpha="0.35"),
    ),
    "mobilenet_v2_1.0_224": _Known(
        files={
            "mobilenet_v2_1.0_224_dequantised.weights.h5": (
                "554ec3ed02d35a89b8e385b193ceeda2b29828020904dc70086a1c3914d0828d"
            )
        },
        keras_name=_KERAS.format(alpha="1.0"),
    ),
}


def find_weights(
    backbone_name: str, folder: Path | None, *, allow_download: bool = True
) -> Weights:
    """Return checked weights of the backbone, from ``folder`` first, else from the network.

    Raises :class:`WeightsUnavailable` with a sentence that says what to do.
    """
    known = _KNOWN.get(backbone_name)
    if known is None:
        message = f"no pretrained weights are known for '{backbone_name}'"
        raise WeightsUnavailable(message)
    found = None if folder is None else _find_in_folder(known, folder)
    if found is not None:
        return found
    if not allow_download:
        raise WeightsUnavailable(_sentence(backbone_name, known, folder, "downloads are off"))
    try:
        path = _download(known)
    except Exception as error:
        reason = f"the download failed ({_first_line(error)})"
        raise WeightsUnavailable(_sentence(backbone_name, known, folder, reason)) from error
    return Weights(path=path, origin="download", sha256=file_sha256(path))


def file_sha256(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _find_in_folder(known: _Known, folder: Path) -> Weights | None:
    for name, expected in known.files.items():
        path = folder / name
        if path.is_file():
            actual = file_sha256(path)
            if actual != expected:
                message = (
                    f"{name} in {folder} is damaged or not the known file: its SHA-256 is "
                    f"{actual[:12]}…, not {expected[:12]}…; replace it"
                )
                raise WeightsUnavailable(message, code="weights_wrong")
            return Weights(path=path, origin="folder", sha256=actual)
    path = folder / known.keras_name
    if path.is_file():
        return Weights(path=path, origin="folder", sha256=file_sha256(path))
    return None


def _download(known: _Known) -> Path:
    """Fetch Keras's own file into Keras's own cache, or take it from there."""
    import keras
    from keras.src.applications.mobilenet_v2 import BASE_WEIGHT_PATH

    with _socket_timeout(_DOWNLOAD_TIMEOUT_S):
        got = keras.utils.get_file(
            known.keras_name, BASE_WEIGHT_PATH + known.keras_name, cache_subdir="models"
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


def _sentence(name: str, known: _Known, folder: Path | None, reason: str) -> str:
    where = "no folder of weights is set" if folder is None else f"they are not in {folder}"
    names = " or ".join([*known.files, known.keras_name])
    return (
        f"Pretrained weights of {name} are not available: {where}, and {reason}. "
        f"Set NIGHTFERRY_WEIGHTS to a folder that holds {names}."
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

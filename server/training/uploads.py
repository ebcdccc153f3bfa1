"""Looks at an uploaded network's outside: that it is what its name says, whole and not too big.

Nothing here loads a network: the web process knows no machine learning. What a network computes,
and whether its labels fit, the worker finds out; these checks only spare a person the wait where
the answer is plain from the first bytes.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from django.conf import settings

from server.domain.errors import TooLarge, Unprocessable, UnsupportedMediaType

# What a form adds around its file.
FORM_BYTES = 2**20
MAX_ENTRIES = 10_000
MAX_JSON_BYTES = 16 * 2**20
# Weights hardly shrink; an archive that grows more than this was made to.
MAX_EXPANSION = 20
# What a network may be said to be for; unsaid, the worker finds out.
TASKS = ("classification", "other")
_SUFFIXES = ".keras, .tflite, .mlmodel or a zipped .mlpackage"


def max_body_bytes() -> int:
    """Return the most that a form with one trained file may hold."""
    return int(settings.MAX_MODEL_BYTES) + FORM_BYTES


def check_upload(file: BinaryIO, filename: str, *, max_bytes: int) -> str:
    """Return the kind of the file: ``keras``, ``tflite``, ``mlmodel`` or ``mlpackage``.

    Raises:
        TooLarge: ``model_too_large``.
        UnsupportedMediaType: ``unsupported_model_format``: the name's ending is none of ours.
        Unprocessable: ``damaged_model_file``: the bytes are not what the name says.

    """
    size_bytes = file.seek(0, 2)
    file.seek(0)
    if size_bytes > max_bytes:
        raise TooLarge(
            f"The file has {size_bytes / 2**20:.0f} MiB;"
            f" this server takes {max_bytes / 2**20:.0f}.",
            code="model_too_large",
        )
    kind = _kind(filename)
    _CHECKS[kind](file, filename)
    file.seek(0)
    return kind


def _kind(filename: str) -> str:
    suffix = PurePosixPath(filename.lower()).suffix
    kinds = {
        ".keras": "keras",
        ".tflite": "tflite",
        ".mlmodel": "mlmodel",
        ".mlpackage": "mlpackage",
        ".zip": "mlpackage",
    }
    if suffix not in kinds:
        raise UnsupportedMediaType(
            f"A file called {filename[-60:]!r} is not taken; send {_SUFFIXES}.",
            code="unsupported_model_format",
        )
    return kinds[suffix]


def _check_keras(file: BinaryIO, filename: str) -> None:
    with _open_archive(file, filename) as archive:
        names = set(archive.namelist())
        missing = {"config.json", "metadata.json", "model.weights.h5"} - names
        if missing:
            raise _damaged(filename, f"it has no {', '.join(sorted(missing))}")
        config = _read_json(archive, "config.json", filename)
        if "class_name" not in config:
            raise _damaged(filename, "its config.json describes no network")


def _check_mlpackage(file: BinaryIO, filename: str) -> None:
    with _open_archive(file, filename) as archive:
        names = archive.namelist()
        manifests = [name for name in names if PurePosixPath(name).name == "Manifest.json"]
        if len(manifests) != 1:
            raise _damaged(filename, "an .mlpackage has one Manifest.json")
        manifest = _read_json(archive, manifests[0], filename)
        if not isinstance(manifest.get("itemInfoEntries"), dict):
            raise _damaged(filename, "its Manifest.json lists no items")
        if not any(name.endswith(".mlmodel") for name in names):
            raise _damaged(filename, "there is no .mlmodel inside")


def _check_tflite(file: BinaryIO, filename: str) -> None:
    if file.read(8)[4:] != b"TFL3":
        raise _damaged(filename, "a TFLite file has TFL3 in its first bytes")


def _check_mlmodel(file: BinaryIO, filename: str) -> None:
    # Field 1 of the message is the specification's version, a small number.
    start = file.read(2)
    if len(start) < 2 or start[0] != 0x08 or not 1 <= start[1] <= 32:  # noqa: PLR2004
        raise _damaged(filename, "a Core ML model begins with its specification's version")


_CHECKS: Mapping[str, Callable[[BinaryIO, str], None]] = {
    "keras": _check_keras,
    "mlpackage": _check_mlpackage,
    "tflite": _check_tflite,
    "mlmodel": _check_mlmodel,
}


def _open_archive(file: BinaryIO, filename: str) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(filename, "it is no zip archive, or was cut off") from error
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise _damaged(filename, f"it holds more than {MAX_ENTRIES} files")
    unpacked = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if unpacked > MAX_EXPANSION * packed + MAX_JSON_BYTES:
        raise _damaged(filename, f"it would unpack to {unpacked / 2**20:.0f} MiB")
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in entry.filename:
            raise _damaged(filename, "it holds a path that leads outside the archive")
    return archive


def _read_json(archive: zipfile.ZipFile, name: str, filename: str) -> dict[str, Any]:
    try:
        with archive.open(name) as entry:
            content = json.loads(entry.read(MAX_JSON_BYTES + 1))
    except (ValueError, RecursionError, zipfile.BadZipFile, zlib.error, EOFError, OSError,
            RuntimeError, NotImplementedError) as error:  # fmt: skip
        raise _damaged(filename, f"its {name} cannot be read") from error
    if not isinstance(content, dict):
        raise _damaged(filename, f"its {name} is not what it should be")
    return content


def _damaged(filename: str, fact: str) -> Unprocessable:
    return Unprocessable(
        f"{filename[-60:]} is not the file its name says: {fact}. Save it again and send it whole.",
        code="damaged_model_file",
    )

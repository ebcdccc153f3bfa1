"""An ``.mlpackage`` as one file: a zip archive that is the same bytes for the same content.

A package is a folder: ``Manifest.json`` names the items under ``Data/``, each with a random id.
Ids here follow from the item's path, files stand in a fixed order, uncompressed (patches between
versions stay small), without dates.
"""

from __future__ import annotations

import io
import json
import posixpath
import stat
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from worker.ml.errors import MLError

MANIFEST: Final = "Manifest.json"
DATA: Final = "Data/"
MODEL_PATH: Final = "com.apple.CoreML/model.mlmodel"
WEIGHTS_PATH: Final = "com.apple.CoreML/weights/weight.bin"

_AUTHOR: Final = "com.apple.CoreML"
_ITEM_IDS: Final = uuid.UUID("7d3c2c9a-5a0e-5b64-9a53-6d7fb4e1c0de")
_NO_DATE: Final = (1980, 1, 1, 0, 0, 0)
_MODE: Final = 0o644
_MAX_FILES: Final = 1000
_MAX_RATIO: Final = 1000
_MAX_BYTES: Final = 2 << 30


class PackageInvalid(MLError):
    """The bytes are no usable package; ``code`` says in which way."""

    code = "package_invalid"


@dataclass(frozen=True)
class Package:
    """The content of a package: the file with the network, and all files under ``Data/``."""

    root: str
    """Path of the specification below ``Data/``."""
    files: Mapping[str, bytes]
    """By path below ``Data/``."""
    items: Mapping[str, Mapping[str, Any]]
    """Manifest entries by path below ``Data/``; an item may be a folder."""

    @property
    def specification(self) -> bytes:
        """Return the serialised Core ML specification."""
        return self.files[self.root]

    def write(self, folder: Path) -> Path:
        """Write it as a folder that Core ML Tools can load; return the folder of weights."""
        for path, content in self.files.items():
            target = folder / DATA / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return folder / DATA / posixpath.dirname(self.root) / "weights"


def make_package(specification: bytes, weights: bytes | None) -> Package:
    """Return the usual package of one specification and one file of weights."""
    items = {MODEL_PATH: _item("model.mlmodel", "CoreML Model Specification")}
    files = {MODEL_PATH: specification}
    if weights is not None:
        files[WEIGHTS_PATH] = weights
        items[posixpath.dirname(WEIGHTS_PATH)] = _item("weights", "CoreML Model Weights")
    return Package(MODEL_PATH, files, items)


def pack(package: Package, name: str) -> bytes:
    """Return the package as a zip archive of the folder ``{name}.mlpackage``."""
    ids = {path: str(uuid.uuid5(_ITEM_IDS, path)) for path in sorted(package.items)}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {ids[path]: {**package.items[path], "path": path} for path in ids},
        "rootModelIdentifier": ids[package.root],
    }
    text = json.dumps(manifest, indent=4, sort_keys=True).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, f"{name}.mlpackage/{MANIFEST}", text)
        for path in sorted(package.files):
            _add(archive, f"{name}.mlpackage/{DATA}{path}", package.files[path])
    return file.getvalue()


def unpack(source: bytes | Path, *, max_bytes: int = _MAX_BYTES) -> Package:
    """Read a zipped package, ours or another's; nothing is written to disk.

    Raises :class:`PackageInvalid` for what is no zip archive, lies about its sizes, unpacks to
    more than ``max_bytes`` or a thousand times its size, leaves its folder, or lacks a part.
    """
    opened: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with zipfile.ZipFile(opened) as archive:
            content = _read_all(archive, max_bytes)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, ValueError) as error:
        _invalid("archive_damaged", f"the archive cannot be read: {error}")
    except RuntimeError as error:  # zipfile's word for "encrypted"
        _invalid("archive_encrypted", f"the archive cannot be read: {error}")
    return _from_files(content)


def check_entry(entry: zipfile.ZipInfo) -> None:
    """Raise :class:`PackageInvalid` where an entry's name leaves the folder, or is a link."""
    path = entry.filename.replace("\\", "/")
    if path.startswith("/") or ".." in path.split("/") or "\0" in path or ":" in path[:2]:
        _invalid("archive_path_unsafe", f"the archive holds the path {entry.filename!r}")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        _invalid("archive_path_unsafe", f"the archive holds a link: {entry.filename!r}")


def check_sizes(entries: list[zipfile.ZipInfo], max_bytes: int) -> None:
    """Raise :class:`PackageInvalid` where unpacking would take too much."""
    if len(entries) > _MAX_FILES:
        _invalid("archive_too_large", f"the archive holds {len(entries)} files")
    total = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if total > max_bytes or total > max(_MAX_RATIO * packed, 1 << 20):
        _invalid("archive_too_large", f"unpacked, the archive's {packed} bytes would be {total}")


def _read_all(archive: zipfile.ZipFile, max_bytes: int) -> dict[str, bytes]:
    entries = archive.infolist()
    for entry in entries:
        check_entry(entry)
    check_sizes(entries, max_bytes)
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        _invalid("archive_damaged", "the archive holds two files of one name")
    # What a Mac's archiver adds is no part of the package.
    wanted = [
        entry
        for entry in entries
        if not entry.is_dir() and "__MACOSX" not in entry.filename
        and not entry.filename.endswith(".DS_Store")
    ]  # fmt: skip
    content = {}
    for entry in wanted:
        with archive.open(entry) as file:
            # The size in the directory may lie.
            data = file.read(entry.file_size + 1)
        if len(data) != entry.file_size:
            _invalid("archive_damaged", f"{entry.filename} is not as long as the archive says")
        content[entry.filename] = data
    return content


def _from_files(content: dict[str, bytes]) -> Package:
    manifests = [path for path in content if posixpath.basename(path) == MANIFEST]
    if len(manifests) != 1:
        _invalid(
            "package_incomplete", f"the archive holds {len(manifests)} {MANIFEST} files, not 1"
        )
    prefix = manifests[0][: -len(MANIFEST)] + DATA
    files = {path[len(prefix) :]: data for path, data in content.items() if path.startswith(prefix)}
    try:
        manifest = json.loads(content[manifests[0]])
        entries = manifest["itemInfoEntries"]
        items = {
            str(entry["path"]): {key: str(entry[key]) for key in ("author", "description", "name")}
            for entry in entries.values()
        }
        root = str(entries[manifest["rootModelIdentifier"]]["path"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _invalid("package_incomplete", f"{MANIFEST} is not a package's manifest: {error!r}")
    if root not in files:
        _invalid("package_incomplete", f"the package lacks its model file {root!r}")
    return Package(root, files, items)


def _item(name: str, description: str) -> dict[str, str]:
    return {"author": _AUTHOR, "description": description, "name": name}


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, date_time=_NO_DATE)
    entry.create_system, entry.external_attr = 3, (stat.S_IFREG | _MODE) << 16
    archive.writestr(entry, content)


def _invalid(code: str, sentence: str) -> NoReturn:
    raise PackageInvalid(sentence[:1].upper() + sentence[1:], code=code)

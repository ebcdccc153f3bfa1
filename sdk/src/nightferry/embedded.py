"""Models shipped inside the app: what runs on the first start, offline, and after the last fall.

Beside the model file may lie ``<file>.json``, the manifest as ``nightferry fetch --output`` writes
it. With it the embedded model has labels, preprocessing and a checked hash, and a release older
than it is not preferred to it. Without it only the file itself is known.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from nightferry.cache import hash_file
from nightferry.errors import EmbeddedModelError, InvalidManifestError
from nightferry.manifest import Manifest, parse_json, parse_manifest
from nightferry.models import Model, ModelState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

UNNAMED_LABEL = "embedded"


class EmbeddedModels:
    """The app's own models by name, each hashed once per process."""

    def __init__(self, paths: Mapping[str, Path], *, runtime: str) -> None:
        """Remember the paths; the files are read when a model is asked for."""
        self._paths = dict(paths)
        self._runtime = runtime
        self._loaded: dict[str, tuple[Model, Manifest | None]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the names of the embedded models."""
        return sorted(self._paths)

    def get(self, name: str) -> Model | None:
        """Return the embedded model, None where there is none. Raises EmbeddedModelError."""
        return self._load(name)[0] if name in self._paths else None

    def manifest(self, name: str) -> Manifest | None:
        """Return the manifest beside the embedded model, if there is one."""
        return self._load(name)[1] if name in self._paths else None

    def _load(self, name: str) -> tuple[Model, Manifest | None]:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = _read(name, self._paths[name], self._runtime)
            return self._loaded[name]


def manifest_path(path: Path) -> Path:
    """Return where the manifest of an embedded file lies: ``model.tflite.json``."""
    return path.with_name(path.name + ".json")


def _read(name: str, path: Path, runtime: str) -> tuple[Model, Manifest | None]:
    try:
        size_bytes, sha256 = path.stat().st_size, hash_file(path)
    except OSError as error:
        message = f"The embedded model {name} cannot be read at {path}: {error.strerror}."
        raise EmbeddedModelError(message) from error
    manifest = _read_manifest(name, path)
    if manifest is None:
        return _bare_model(name, path, size_bytes, sha256, runtime), None
    artifact = manifest.required_artifact()
    if artifact.sha256 != sha256 or artifact.runtime != runtime:
        message = f"The embedded model {path} is not the file that its manifest describes."
        raise EmbeddedModelError(message)
    return (
        Model(
            name=name,
            label=manifest.label,
            version=manifest.version,
            path=path,
            size_bytes=size_bytes,
            sha256=sha256,
            runtime=runtime,
            precision=artifact.precision,
            labels=manifest.labels,
            preprocessing=manifest.preprocessing,
            signature=manifest.signature,
            is_embedded=True,
            state=ModelState.EMBEDDED,
        ),
        manifest,
    )


def _read_manifest(name: str, path: Path) -> Manifest | None:
    try:
        content = manifest_path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"The manifest of the embedded model {name} cannot be read: {error.strerror}."
        raise EmbeddedModelError(message) from error
    try:
        manifest = parse_manifest(parse_json(content))
        manifest.required_artifact()
    except InvalidManifestError as error:
        message = f"The manifest of the embedded model {name} is unusable. {error}"
        raise EmbeddedModelError(message) from error
    return manifest


def _bare_model(name: str, path: Path, size_bytes: int, sha256: str, runtime: str) -> Model:
    return Model(
        name=name,
        label=UNNAMED_LABEL,
        version=0,
        path=path,
        size_bytes=size_bytes,
        sha256=sha256,
        runtime=runtime,
        precision="",
        labels=(),
        preprocessing={},
        is_embedded=True,
        state=ModelState.EMBEDDED,
    )

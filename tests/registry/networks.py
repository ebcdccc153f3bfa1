"""Files with the outside of trained networks, as uploads are checked before anything loads them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping


def archive(entries: Mapping[str, bytes], *, is_packed: bool = False) -> bytes:
    """Return a zip archive."""
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if is_packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", kind) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


def keras_file(**changed: bytes) -> bytes:
    """Return what ``model.save("x.keras")`` writes, without a network's weights in it."""
    entries = {
        "metadata.json": json.dumps({"keras_version": "3.15.1"}).encode(),
        "config.json": json.dumps({"class_name": "Functional", "config": {}}).encode(),
        "model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(512),
    }
    return archive(entries | changed)


def mlpackage_file(folder: str = "mine.mlpackage/") -> bytes:
    """Return a zipped Core ML package."""
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {"A": {"path": "com.apple.CoreML/model.mlmodel"}},
        "rootModelIdentifier": "A",
    }
    return archive(
        {
            f"{folder}Manifest.json": json.dumps(manifest).encode(),
            f"{folder}Data/com.apple.CoreML/model.mlmodel": b"\x08\x07\x12\x00",
        }
    )


TFLITE = b"\x1c\x00\x00\x00TFL3" + bytes(64)
MLMODEL = b"\x08\x04\x12\x00" + bytes(64)

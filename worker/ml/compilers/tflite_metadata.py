"""Labels and normalisation inside a TFLite file, where MediaPipe and others look for them.

Follows the TFLite metadata schema 1.5.0 (file identifier M001): a flatbuffer in the model's
metadata, and the label file in a zip archive after the model. Its official writer needs an old
protobuf; the few tables that an image classifier needs are written here.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from worker.ml.compilers.base import INPUT_NAME, OUTPUT_NAME, About
from worker.ml.preprocessing import Preprocessing

METADATA_NAME: Final = "TFLITE_METADATA"
LABELS_FILE: Final = "labels.txt"

_IDENTIFIER: Final = b"M001"
_LEAST_PARSER_VERSION: Final = "1.0.0"
_TENSOR_AXIS_LABELS: Final = 2
_IMAGE_PROPERTIES: Final = 2
_NORMALIZATION_OPTIONS: Final = 1
_RGB: Final = 1
# A zip archive holds dates; the first it can hold says that it means none.
_NO_DATE: Final = (1980, 1, 1, 0, 0, 0)

_Kind = Literal["offset", "byte"]


def write_metadata(preprocessing: Preprocessing, about: About) -> bytes:
    """Return the metadata flatbuffer of an image classifier."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    image = _table(builder, [(0, "byte", _RGB)])
    content = _table(builder, [(0, "byte", _IMAGE_PROPERTIES), (1, "offset", image)])
    normalisation = _table(
        builder,
        [
            (0, "offset", _floats(builder, preprocessing.mean)),
            (1, "offset", _floats(builder, preprocessing.std)),
        ],
    )
    unit = _table(builder, [(0, "byte", _NORMALIZATION_OPTIONS), (1, "offset", normalisation)])
    photo = _table(
        builder,
        [
            (0, "offset", builder.CreateString(INPUT_NAME)),
            (3, "offset", content),
            (4, "offset", _vector(builder, [unit])),
        ],
    )
    labels = _table(
        builder,
        [
            (0, "offset", builder.CreateString(LABELS_FILE)),
            (2, "byte", _TENSOR_AXIS_LABELS),
        ],
    )
    probabilities = _table(
        builder,
        [
            (0, "offset", builder.CreateString(OUTPUT_NAME)),
            (6, "offset", _vector(builder, [labels])),
        ],
    )
    graph = _table(
        builder,
        [
            (2, "offset", _vector(builder, [photo])),
            (3, "offset", _vector(builder, [probabilities])),
        ],
    )
    model = _table(
        builder,
        [
            (0, "offset", builder.CreateString(about.name)),
            (1, "offset", builder.CreateString(about.description)),
            (2, "offset", builder.CreateString(about.version)),
            (3, "offset", _vector(builder, [graph])),
            (4, "offset", builder.CreateString(about.author)),
            (5, "offset", builder.CreateString(about.license)),
            (7, "offset", builder.CreateString(_LEAST_PARSER_VERSION)),
        ],
    )
    builder.Finish(model, file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def append_labels(model: bytes, labels: Sequence[str]) -> bytes:
    """Return the model followed by an uncompressed zip archive of its label file."""
    file = io.BytesIO()
    file.write(model)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        entry = zipfile.ZipInfo(LABELS_FILE, date_time=_NO_DATE)
        entry.create_system, entry.external_attr = 3, 0o644 << 16
        archive.writestr(entry, "".join(f"{label}\n" for label in labels))
    return file.getvalue()


@dataclass(frozen=True)
class Found:
    """What a TFLite file says of itself; what it does not say is None."""

    labels: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


def read_metadata(content: bytes, metadata: bytes | None, *, max_bytes: int = 1 << 20) -> Found:
    """Read labels and normalisation of any TFLite image classifier; nonsense reads as nothing."""
    if not metadata or metadata[4:8] != _IDENTIFIER:
        return Found()
    try:
        graph = _Table.root(metadata).tables(3)[0]
        units = [unit for photo in graph.tables(2)[:1] for unit in photo.tables(4)]
        files = [file for output in graph.tables(3)[:1] for file in output.tables(6)]
        options = [unit.table(1) for unit in units if unit.byte(0) == _NORMALIZATION_OPTIONS]
        names = [file.string(0) for file in files if file.byte(1 + 1) == _TENSOR_AXIS_LABELS]
        return Found(
            labels=_read_labels(content, names[0], max_bytes) if names else None,
            mean=options[0].floats(0) if options else None,
            std=options[0].floats(1) if options else None,
        )
    except (IndexError, ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile):
        return Found()
    except Exception as error:  # struct.error is what a flatbuffer that points nowhere gives
        if type(error).__module__ in {"struct", "flatbuffers"}:
            return Found()
        raise


def _read_labels(content: bytes, name: str, max_bytes: int) -> list[str] | None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if archive.getinfo(name).file_size > max_bytes:
            return None
        return archive.read(name).decode("utf-8").splitlines()


def _table(builder: Any, slots: Sequence[tuple[int, _Kind, int]]) -> int:
    builder.StartObject(max(slot for slot, _, _ in slots) + 1)
    for slot, kind, value in slots:
        if kind == "offset":
            builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        else:
            builder.PrependInt8Slot(slot, value, 0)
    return int(builder.EndObject())


def _vector(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _floats(builder: Any, values: Sequence[float]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return int(builder.EndVector())


class _Table:
    """A flatbuffer table, read slot by slot."""

    def __init__(self, content: bytes, position: int) -> None:
        import flatbuffers

        self._flags = flatbuffers.number_types
        self._table = flatbuffers.table.Table(content, position)

    @classmethod
    def root(cls, content: bytes) -> _Table:
        return cls(content, int.from_bytes(content[:4], "little"))

    def byte(self, slot: int) -> int:
        return int(self._table.GetSlot(4 + 2 * slot, 0, self._flags.Uint8Flags))

    def string(self, slot: int) -> str:
        return bytes(self._table.String(self._at(slot))).decode("utf-8")

    def table(self, slot: int) -> _Table:
        return self._follow(self._at(slot))

    def tables(self, slot: int) -> list[_Table]:
        first, length = self._items(slot)
        return [self._follow(first + 4 * index) for index in range(length)]

    def floats(self, slot: int) -> list[float]:
        first, length = self._items(slot)
        flags = self._flags.Float32Flags
        return [float(self._table.Get(flags, first + 4 * index)) for index in range(length)]

    def _at(self, slot: int) -> int:
        offset = self._table.Offset(4 + 2 * slot)
        if offset == 0:
            message = f"slot {slot} is empty"
            raise KeyError(message)
        return int(offset + self._table.Pos)

    def _items(self, slot: int) -> tuple[int, int]:
        offset = self._table.Offset(4 + 2 * slot)
        if offset == 0:
            return 0, 0
        length = int(self._table.VectorLen(offset))
        if length * 4 > len(self._table.Bytes):
            message = "a list is longer than the file"
            raise ValueError(message)
        return int(self._table.Vector(offset)), length

    def _follow(self, position: int) -> _Table:
        return _Table(self._table.Bytes, self._table.Indirect(position))

"""Classic sets of small pictures in the files they are published in: MNIST idx, CIFAR batches.

Read with the standard library alone. CIFAR's "python" files are pickles, which may hold programs:
they are read by an unpickler that knows arrays of bytes and nothing else.

Formats: idx as on the MNIST page (big-endian sizes, then bytes); CIFAR-10 and CIFAR-100 as on
their page, "python version" and "binary version", unpacked.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from server.domain.errors import Unprocessable

_IDX_IMAGES: Final = re.compile(r"(?P<stem>.+?)[-.]images[-.]idx3[-.]ubyte(?P<packed>\.gz)?")
_IDX_IMAGES_MAGIC: Final = 0x0803
_IDX_LABELS_MAGIC: Final = 0x0801
_CIFAR_BATCH: Final = re.compile(r"(data_batch_\d+|test_batch|train|test)(\.bin)?")
_CIFAR_SIDE: Final = 32
_CIFAR_BYTES: Final = 3 * _CIFAR_SIDE**2
_CIFAR_NAMES: Final = {
    "batches.meta.txt": 10,
    "fine_label_names.txt": 100,
}
_LABELS_FILE: Final = "labels.txt"
_MAX_BYTES: Final = 2**30


@dataclass(frozen=True)
class Tile:
    """One picture: rows of bytes, each pixel one byte of grey or three of red, green, blue."""

    name: str
    label: str
    width: int
    height: int
    channels: int
    rows: bytes = field(repr=False)

    def png(self) -> bytes:
        """Return the picture as a PNG file, nothing lost."""
        row_bytes = self.width * self.channels
        starts = range(0, len(self.rows), row_bytes)
        raw = b"".join(b"\0" + self.rows[at : at + row_bytes] for at in starts)
        colour = 0 if self.channels == 1 else 2
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, colour, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


@dataclass(frozen=True)
class Dataset:
    """Pictures with labels from files of one kind."""

    kind: str
    labels: list[str]
    side_px: int
    """Of the shorter side."""
    tiles: Sequence[Tile] = field(repr=False)


def read_dataset(folder: Path) -> Dataset | None:
    """Return the set whose files lie in ``folder``, None where there are none.

    Raises:
        Unprocessable: ``dataset_damaged`` or ``dataset_incomplete``, naming the file.

    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if images := [match for name in names if (match := _IDX_IMAGES.fullmatch(name))]:
        return _read_idx(folder, images)
    batches = [name for name in names if _CIFAR_BATCH.fullmatch(name)]
    if batches:
        return _read_cifar(folder, batches)
    return None


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# --- idx --------------------------------------------------------------------------------------


def _read_idx(folder: Path, found: Sequence[re.Match[str]]) -> Dataset:
    tiles: list[Tile] = []
    names = _names_in(folder / _LABELS_FILE)
    for match in found:
        images = folder / match[0]
        labels = _labels_beside(images, match["stem"])
        tiles += _idx_tiles(match["stem"], images, labels, names)
    present = {tile.label for tile in tiles}
    ordered = [name for name in names if name in present] if names else sorted(present, key=int)
    return Dataset("MNIST idx", ordered, min(tiles[0].width, tiles[0].height), tiles)


def _labels_beside(images: Path, stem: str) -> Path:
    for dash in "-.":
        for packed in ("", ".gz"):
            path = images.parent / f"{stem}-labels{dash}idx1-ubyte{packed}"
            if path.is_file():
                return path
    raise _incomplete(images, f"its labels, {stem}-labels-idx1-ubyte or the same with .gz")


def _idx_tiles(stem: str, images: Path, labels: Path, names: Sequence[str]) -> Iterator[Tile]:
    (count, height, width), pixels = _read_idx_file(images, _IDX_IMAGES_MAGIC, sizes=3)
    (label_count,), values = _read_idx_file(labels, _IDX_LABELS_MAGIC, sizes=1)
    if count != label_count:
        raise _damaged(labels, f"it has {label_count} labels for {count} pictures")
    if not count or not height or not width:
        raise _damaged(images, f"it says it holds {count} pictures of {width} x {height}")
    if names and max(values) >= len(names):
        raise _damaged(labels, f"it has a label {max(values)}, {_LABELS_FILE} {len(names)} names")
    area = width * height
    for index, value in enumerate(values):
        label = names[value] if names else str(value)
        rows = pixels[index * area : (index + 1) * area]
        yield Tile(f"{stem}/{index:05}", label, width, height, 1, rows)


def _read_idx_file(path: Path, magic: int, *, sizes: int) -> tuple[tuple[int, ...], bytes]:
    try:
        with _opened(path) as file:
            header = file.read(4 * (1 + sizes))
            if len(header) < 4 * (1 + sizes):
                raise _damaged(path, "it ends within its header")
            found, *shape = struct.unpack(f">{1 + sizes}I", header)
            if found != magic:
                raise _damaged(path, f"it begins with {found:#010x}, not {magic:#010x}")
            wanted = 1
            for size in shape:
                wanted *= size
            if wanted > _MAX_BYTES:
                raise _damaged(path, f"its header promises {wanted} bytes, more than are read")
            content = file.read(wanted + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    if len(content) != wanted:
        what = "ends early" if len(content) < wanted else "goes on after its last entry"
        raise _damaged(path, f"it promises {wanted} bytes and {what}")
    return tuple(shape), content


def _opened(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


# --- CIFAR ------------------------------------------------------------------------------------


def _read_cifar(folder: Path, batches: Sequence[str]) -> Dataset:
    is_binary = any(name.endswith(".bin") for name in batches)
    batches = [name for name in batches if name.endswith(".bin") == is_binary]
    names = _names_of_binary(folder) if is_binary else _names_of_pickles(folder)
    tiles: list[Tile] = []
    for batch in batches:
        path = folder / batch
        read = _binary_batch if is_binary else _pickled_batch
        for index, (value, planes) in enumerate(read(path, hundred=len(names) > 10)):  # noqa: PLR2004 - CIFAR-10 or 100
            if value >= len(names):
                raise _damaged(path, f"picture {index} has label {value} of {len(names)}")
            name = f"{path.stem}/{index:05}"
            tile = Tile(name, names[value], _CIFAR_SIDE, _CIFAR_SIDE, 3, _interleaved(planes))
            tiles.append(tile)
    if not tiles:
        raise _damaged(folder / batches[0], "it holds no picture")
    return Dataset(f"CIFAR-{len(names)}", names, _CIFAR_SIDE, tiles)


def _interleaved(planes: bytes) -> bytes:
    """Return red, green, blue for each pixel from a plane of each."""
    area = _CIFAR_SIDE**2
    pixels = bytearray(_CIFAR_BYTES)
    for channel in range(3):
        pixels[channel::3] = planes[channel * area : (channel + 1) * area]
    return bytes(pixels)


def _names_of_binary(folder: Path) -> list[str]:
    for file, count in _CIFAR_NAMES.items():
        names = _names_in(folder / file)
        if names:
            if len(names) != count:
                raise _damaged(folder / file, f"it has {len(names)} names, not {count}")
            return names
    raise _incomplete(folder, " or ".join(_CIFAR_NAMES))


def _names_in(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    return [line.strip() for line in lines if line.strip()]


def _binary_batch(path: Path, *, hundred: bool) -> Iterator[tuple[int, bytes]]:
    """CIFAR-100 has two labels before each picture: the coarse one and the one that counts."""
    label_bytes = 2 if hundred else 1
    entry = label_bytes + _CIFAR_BYTES
    content = _bounded(path)
    if not content or len(content) % entry:
        raise _damaged(path, f"its {len(content)} bytes are not pictures of {entry} bytes each")
    for start in range(0, len(content), entry):
        pixels = start + label_bytes
        yield content[pixels - 1], content[pixels : pixels + _CIFAR_BYTES]


def _names_of_pickles(folder: Path) -> list[str]:
    for file, key in (("batches.meta", "label_names"), ("meta", "fine_label_names")):
        if (folder / file).is_file():
            names = _unpickled(folder / file).get(key)
            if isinstance(names, list) and names:
                return [_text(name) for name in names]
            raise _damaged(folder / file, f"it has no {key}")
    raise _incomplete(folder, "batches.meta or meta")


def _pickled_batch(path: Path, *, hundred: bool) -> Iterator[tuple[int, bytes]]:
    batch = _unpickled(path)
    labels = batch.get("fine_labels" if hundred else "labels")
    data = batch.get("data")
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise _damaged(path, "it does not hold pictures and labels as CIFAR does")
    if len(data.content) != len(labels) * _CIFAR_BYTES:
        raise _damaged(path, f"it has {len(labels)} labels for {len(data.content)} bytes")
    for index, label in enumerate(labels):
        if not isinstance(label, int) or label < 0:
            raise _damaged(path, f"picture {index} has the label {label!r}")
        yield label, data.content[index * _CIFAR_BYTES : (index + 1) * _CIFAR_BYTES]


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        found = _ArrayUnpickler(io.BytesIO(_bounded(path)), encoding="latin-1").load()
    except Exception as error:  # a pickle made wrong raises anything
        raise _damaged(path, f"it cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise _damaged(path, "it does not hold what CIFAR's files hold")
    return {_text(key): value for key, value in found.items()}


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    if len(content) > _MAX_BYTES:
        raise _damaged(path, f"it is larger than {_MAX_BYTES} bytes")
    return content


class _Array:
    """Stands in for an array of bytes: takes the state that a pickle gives it, and keeps it."""

    content = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, is_fortran, content = state
        if is_fortran:
            message = "arrays stored by columns are not read"
            raise ValueError(message)
        self.content = content.encode("latin-1") if isinstance(content, str) else bytes(content)


class _Type:
    """Stands in for an array's type, of which only bytes are taken."""

    def __init__(self, name: str, *_: object) -> None:
        if _text(name) not in {"u1", "|u1"}:
            message = f"arrays of {name} are not read"
            raise ValueError(message)

    def __setstate__(self, state: object) -> None:
        """Leave the details aside."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _latin_1(text: str, *_: object) -> bytes:
    """Return bytes that Python 3 wrote as text, for readers of Python 2."""
    return text.encode("latin-1")


_KNOWN_TO_PICKLES: Final[dict[tuple[str, str], Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _latin_1,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays of bytes, lists and text; whatever else a pickle names ends the reading."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the stand-in for what the pickle names."""
        try:
            return _KNOWN_TO_PICKLES[module_name, global_name]
        except KeyError:
            message = f"it names {module_name}.{global_name}, which no picture needs"
            raise pickle.UnpicklingError(message) from None


def _damaged(path: Path, reason: str) -> Unprocessable:
    return Unprocessable(
        f"{path.name} is damaged or not what its name says: {reason}.", code="dataset_damaged"
    )


def _incomplete(path: Path, missing: str) -> Unprocessable:
    return Unprocessable(f"{path.name} lacks {missing}.", code="dataset_incomplete")

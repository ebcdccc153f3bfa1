"""Applies patches in the format nfp1 (docs/patch-format.md): an old file and a patch make a new.

Standard library only. Nothing in a patch is believed: every size is checked before it costs
memory, no more is written than was announced, and the result counts only with the right hash.
Memory stays below 16 MB whatever the patch says and however large the files are.
"""

from __future__ import annotations

import hashlib
import lzma
import struct
from contextlib import ExitStack
from pathlib import Path

from nightferry.errors import PatchError

TYPE_CHECKING = False  # as in ``typing``, without its import
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO, NoReturn

ALGORITHM = "nfp1"

_MAGIC = b"NFP1"
_HEADER = struct.Struct("<4sQ32sQ32sB")
_STREAM = struct.Struct("<BQQ")
_COPY, _LITERAL, _DIFFERENCE, _SORTED = range(4)
_STORED, _XZ = range(2)
_WIDTHS = (1, 2, 4)
_MAX_GROUPS = 8
_MAX_STREAMS = 16
_MAX_INSTRUCTION_BYTES = 1 << 20
_MAX_VARINT_BYTES = 9
# What liblzma needs for the largest dictionary allowed, 512 KiB, and a little room.
_MAX_XZ_BYTES = (1 << 19) + (1 << 17)
_READ_BYTES = 1 << 14
_STEP_NUMBERS = 1 << 16
_HASH_BYTES = 1 << 18


def apply_patch(
    old: BinaryIO | Path, patch: BinaryIO | Path, out: BinaryIO, *, size_bytes: int, sha256: str
) -> None:
    """Write to ``out`` the file that ``patch`` makes of ``old``.

    ``size_bytes`` and ``sha256`` (hexadecimal) are those of the new file, from signed metadata;
    never more than ``size_bytes`` is written. ``old`` and ``patch`` have to be seekable and are
    read from their beginning. What was written is good only once this returns.

    Raises PatchError for anything wrong with the patch or the old file, and OSError where a file
    cannot be read or written.
    """
    with ExitStack() as files:
        before, changes = (
            files.enter_context(file.open("rb")) if isinstance(file, Path) else file
            for file in (old, patch)
        )
        _Patch(before, changes, size_bytes, sha256.lower()).write(out)


def _refuse(reason: str, sentence: str) -> NoReturn:
    raise PatchError(f"The patch cannot be used: {sentence}.", reason=reason)


def _damaged(sentence: str) -> NoReturn:
    _refuse("damaged", sentence)


class _Patch:
    """A patch whose header has been read and found fitting."""

    def __init__(self, old: BinaryIO, patch: BinaryIO, size_bytes: int, sha256: str) -> None:
        self._old = old
        self._patch_bytes = patch.seek(0, 2)
        self._new_bytes, self._new_sha256 = size_bytes, sha256
        patch.seek(0)
        magic, self._old_bytes, old_sha256, new_bytes, new_sha256, count = _HEADER.unpack(
            _read_exactly(patch, _HEADER.size)
        )
        if magic != _MAGIC:
            _refuse("unknown_format", "it is not in the format nfp1")
        if new_bytes != size_bytes or new_sha256.hex() != sha256:
            _refuse("other_target", "it leads to another file than the one wanted")
        self._check_base(old_sha256)
        self._groups, self._instructions = self._read_streams(patch, count)

    def _check_base(self, expected: bytes) -> None:
        if self._old.seek(0, 2) != self._old_bytes:
            _refuse("other_base", "it belongs to another old file, of another size")
        self._old.seek(0)
        digest = hashlib.sha256()
        while block := self._old.read(_HASH_BYTES):
            digest.update(block)
        if digest.digest() != expected:
            _refuse("other_base", "it belongs to another old file")

    def _read_streams(self, patch: BinaryIO, count: int) -> tuple[list[list[_Stream]], _Stream]:
        """Read the table of streams: one of instructions, then as many as each group is wide."""
        widths = tuple(_read_exactly(patch, count)) if count <= _MAX_GROUPS else ()
        if len(widths) != count or not set(widths) <= set(_WIDTHS) or sum(widths) >= _MAX_STREAMS:
            _refuse("too_large", "its header asks for more streams, or wider ones, than allowed")
        table = [_STREAM.unpack(_read_exactly(patch, _STREAM.size)) for _ in range(1 + sum(widths))]
        streams = []
        offset = patch.tell()
        for coding, packed_bytes, raw_bytes in table:
            streams.append(_Stream(patch, coding, offset, packed_bytes, raw_bytes))
            offset += packed_bytes
        if offset != self._patch_bytes:
            _damaged("its length is not the sum of its parts")
        if table[0][2] > _MAX_INSTRUCTION_BYTES:
            _refuse("too_large", "it holds more instructions than allowed")
        if sum(raw_bytes for _, _, raw_bytes in table[1:]) > self._new_bytes:
            _refuse("too_large", "it unpacks to more than the new file")
        planes = iter(streams[1:])
        return [[next(planes) for _ in range(width)] for width in widths], streams[0]

    def write(self, out: BinaryIO) -> None:
        """Follow the instructions; check that all was used and that the result is right."""
        digest = hashlib.sha256()
        written = position = 0
        while self._instructions.remaining:
            code = self._instructions.read(1)[0]
            mode, group = code & 3, code >> 2
            width = self._width_of(mode, group)
            length = self._read_number() * width
            if not 0 < length <= self._new_bytes - written:
                _damaged("an instruction writes nothing, or past the end")
            if mode != _LITERAL:
                move = self._read_number()
                position += -(move + 1 >> 1) if move & 1 else move >> 1
                if not 0 <= position <= self._old_bytes - length:
                    _damaged("an instruction reads outside the old file")
                self._old.seek(position)
                position += length
            done = 0
            while done < length:
                block = self._make(mode, group, min(_STEP_NUMBERS * width, length - done))
                digest.update(block)
                out.write(block)
                done += len(block)
            written += length
        self._finish(written, digest.hexdigest())

    def _width_of(self, mode: int, group: int) -> int:
        if mode == _COPY and not group:
            return 1
        if mode == _COPY or group >= len(self._groups):
            _damaged("an instruction names a group that is not there")
        width = len(self._groups[group])
        if mode == _SORTED and width == 1:
            _damaged("an instruction sorts numbers that have no exponent")
        return width

    def _read_number(self) -> int:
        """Read a number of up to 63 bits, seven to a byte, the lowest first."""
        number = 0
        for index in range(_MAX_VARINT_BYTES):
            byte = self._instructions.read(1)[0]
            number |= (byte & 0x7F) << 7 * index
            if byte < 0x80:  # noqa: PLR2004 - the bit that says there is more
                return number
        _damaged("a number in its instructions has no end")

    def _make(self, mode: int, group: int, size: int) -> bytes:
        """Return the next ``size`` bytes of the new file, a multiple of the group's width."""
        if mode == _COPY:
            return _read_exactly(self._old, size)
        streams = self._groups[group]
        width = len(streams)
        planes = [stream.read(size // width) for stream in streams]
        if mode == _LITERAL:
            return _join(planes)
        base = _read_exactly(self._old, size)
        if mode == _SORTED:
            exponents = _exponents(base, width)
            planes = [_unsort(plane, exponents) for plane in planes]
        return _add(_join(planes), base, width)

    def _finish(self, written: int, sha256: str) -> None:
        self._instructions.finish()
        for planes in self._groups:
            for plane in planes:
                plane.finish()
        if written != self._new_bytes or sha256 != self._new_sha256:
            _refuse("wrong_result", "it made another file than it promised")


class _Stream:
    """One part of a patch, unpacked as it is read; the file is shared, the place is its own."""

    def __init__(
        self, patch: BinaryIO, coding: int, offset: int, packed_bytes: int, raw_bytes: int
    ) -> None:
        if coding not in (_STORED, _XZ) or (coding == _STORED and packed_bytes != raw_bytes):
            _damaged("a stream is coded in an unknown way")
        self.remaining = raw_bytes
        self._patch, self._offset, self._packed = patch, offset, packed_bytes
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MAX_XZ_BYTES) if coding else None
        self._buffer = b""
        self._used = 0

    def read(self, size: int) -> bytes:
        """Return exactly ``size`` bytes."""
        if size > self.remaining:
            _damaged("a stream holds less than the instructions use")
        self.remaining -= size
        if self._used + size <= len(self._buffer):
            self._used += size
            return self._buffer[self._used - size : self._used]
        parts = [self._buffer[self._used :]]
        missing = size - len(parts[0])
        self._buffer, self._used = b"", 0
        while missing:
            block = self._next(max(missing, _READ_BYTES))
            if not block:
                _damaged("a stream unpacks to less than it says")
            parts.append(block[:missing])
            if len(block) > missing:
                self._buffer, self._used = block, missing
            missing -= len(parts[-1])
        return b"".join(parts)

    def finish(self) -> None:
        """Refuse a stream of which something is left."""
        left = self.remaining or self._used < len(self._buffer) or self._next(1)
        if left or self._packed:
            _damaged("a stream holds more than the instructions use")
        if self._decoder is not None and not (self._decoder.eof and not self._decoder.unused_data):
            _damaged("a stream has no proper end")

    def _next(self, limit: int) -> bytes:
        """Return some more bytes, at most ``limit``; none at the end."""
        if self._decoder is None:
            return self._read_packed(limit)
        block = b""
        while not block and not self._decoder.eof:
            packed = self._read_packed(_READ_BYTES) if self._decoder.needs_input else b""
            if self._decoder.needs_input and not packed:
                break
            try:
                block = self._decoder.decompress(packed, limit)
            except (lzma.LZMAError, MemoryError) as error:
                _damaged(f"a stream cannot be unpacked ({error})")
        return block

    def _read_packed(self, limit: int) -> bytes:
        size = min(limit, self._packed)
        self._patch.seek(self._offset)
        block = _read_exactly(self._patch, size)
        self._offset += size
        self._packed -= size
        return block


def _read_exactly(file: BinaryIO, size: int) -> bytes:
    block = file.read(size)
    if len(block) != size:
        _damaged("it ends too early")
    return block


def _join(planes: list[bytes]) -> bytes:
    """Return numbers of which ``planes`` hold the lowest bytes, the next ones, and so on."""
    numbers = bytearray(len(planes) * len(planes[0]))
    for index, plane in enumerate(planes):
        numbers[index :: len(planes)] = plane
    return bytes(numbers)


_TOP_FIVE_BITS = bytes(byte >> 3 for byte in range(256))


def _exponents(base: bytes, width: int) -> bytes:
    """Return one byte for each number: its exponent in IEEE 754 half or single precision."""
    without_sign = (int.from_bytes(base, "little") << 1).to_bytes(len(base) + 1, "little")
    highest = without_sign[width - 1 : len(base) : width]
    return highest if width == 4 else highest.translate(_TOP_FIVE_BITS)  # noqa: PLR2004 - bytes


def _unsort(plane: bytes, exponents: bytes) -> bytes:
    """Put bytes that stand in order of their number's exponent back to their places."""
    queues: list[Iterator[int]] = [iter(b"")] * 256
    start = 0
    for exponent in sorted(set(exponents)):
        count = exponents.count(exponent)
        queues[exponent] = iter(plane[start : start + count])
        start += count
    return bytes(map(next, map(queues.__getitem__, exponents)))


# Many numbers at once, as one large integer: Python has no faster way of its own.


def _add(changes: bytes, base: bytes, width: int) -> bytes:
    """Add zigzag-coded differences to unsigned numbers, each within its own ``width`` bytes."""
    size, bits = len(base), 8 * width
    low = int.from_bytes((b"\x01" + b"\0" * (width - 1)) * (size // width), "little")
    high = low << bits - 1
    rest = (high << 1) - low - high  # in each number all bits but the highest
    coded = int.from_bytes(changes, "little")
    sign = coded & low
    moved = (coded >> 1 & rest) ^ ((sign << bits) - sign)
    number = int.from_bytes(base, "little")
    # Without the highest bits no carry leaves its number; they are added without one.
    total = ((moved & rest) + (number & rest)) ^ ((moved ^ number) & high)
    return total.to_bytes(size, "little")

"""Patches in the format nfp1 (docs/patch-format.md): bytes that turn one file into another.

What networks of two nights differ in are numbers that moved a little, at places that moved a
little. So the new file is laid beside the old one (blocks that both hold tell by how many bytes
parts are shifted), each number is replaced by its difference from the old one, and the bytes of
one significance, which resemble each other, are compressed together.

A patch depends on nothing but its two files and the version of liblzma.
"""

from __future__ import annotations

import hashlib
import itertools
import lzma
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

ALGORITHM: Final = "nfp1"

MAGIC: Final = b"NFP1"
HEADER: Final = struct.Struct("<4sQ32sQ32sB")
STREAM: Final = struct.Struct("<BQQ")

COPY, LITERAL, DIFFERENCE, SORTED = range(4)
STORED, XZ = range(2)
DICTIONARY_BYTES: Final = 1 << 19
MAX_INSTRUCTION_BYTES: Final = 1 << 20
SORTED_NUMBERS: Final = 1 << 16

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]

_BLOCK: Final = 32
_MAX_SHIFTS: Final = 24
_TILE: Final = 256
_SHIFT_CHANGE_COST: Final = 200
_STYLE_TILE: Final = 8192
_STYLE_CHANGE_BITS: Final = 400.0
_LEAST_COPY: Final = 128
_MOST_COPIES: Final = 1 << 15
_STORED_BITS: Final = 7.97
_CHUNK: Final = 1 << 20
_NICE_LENGTH: Final = 273
_MORE: Final = 0x80


class PatchNotReproducing(Exception):
    """The patch just made does not lead to the new file: a bug, and nothing to hand out."""


@dataclass(frozen=True)
class _Style:
    """How bytes of a stretch are written: against what, as numbers of which width and phase.

    Numbers begin where the position in the new file leaves ``phase`` when divided by ``width``.
    """

    mode: int
    width: int
    phase: int


_STYLES: Final = tuple(
    _Style(mode, width, phase)
    for mode in (DIFFERENCE, LITERAL)
    for width in (1, 2, 4)
    for phase in range(width)
)


def create_patch(old: bytes, new: bytes) -> bytes:
    """Return a patch from ``old`` to ``new``, the same bytes for the same files.

    It was applied once before it is returned; its size is not judged. Takes some ten times the
    memory of the larger file. Raises :class:`PatchNotReproducing`.
    """
    before, after = (np.frombuffer(data, dtype=np.uint8) for data in (old, new))
    patch = _write(old, new, _plan(before, after, _align(before, after)))
    if _decode(old, patch) != new:
        raise PatchNotReproducing("the patch does not lead to the new file")
    return patch


# Where the old file lies beside the new one


@dataclass(frozen=True)
class _Stretch:
    """``after[start:stop]`` lies beside ``before[start + shift:]``; beside nothing for None."""

    start: int
    stop: int
    shift: int | None


def _align(before: Bytes, after: Bytes) -> list[_Stretch]:
    """Return stretches that cover the new file, each at the shift that makes it cheapest.

    Shifts are chosen for whole tiles by the Viterbi algorithm (cost of differences, and of each
    change of shift), then the place of each change is found to the byte.
    """
    if not len(after) or not len(before):
        return [_Stretch(0, len(after), None)] if len(after) else []
    shifts = _find_shifts(before, after)
    edges = np.arange(0, len(after), _TILE)
    costs = np.stack(
        [np.add.reduceat(_byte_costs(before, after, s, 0, len(after)), edges) for s in shifts], 1
    )
    path = _cheapest_path(costs.astype(np.float64), float(_SHIFT_CHANGE_COST))
    changes = np.flatnonzero(np.diff(path)) + 1
    starts = [0]
    for tile in changes.tolist():
        ends = max(starts[-1], (tile - 1) * _TILE), min(len(after), (tile + 1) * _TILE)
        pair = (shifts[path[tile - 1]], shifts[path[tile]])
        starts.append(_best_change(before, after, pair, ends))
    chosen = [shifts[path[tile]] for tile in (0, *changes.tolist())]
    stretches = []
    for start, stop, shift in zip(starts, (*starts[1:], len(after)), chosen, strict=True):
        stretches += _inside(start, stop, shift, len(before))
    return stretches


def _find_shifts(before: Bytes, after: Bytes) -> list[int]:
    """Return by how much blocks of the new file moved: the most common shifts, at any byte."""
    usual = [0, len(before) - len(after)]
    if min(len(before), len(after)) < _BLOCK:
        return sorted(set(usual))
    marks = _hash_windows(after)[::_BLOCK]
    marks, places, counts = np.unique(marks, return_index=True, return_counts=True)
    # What stands at several places, as runs of zeros do, says nothing about a shift.
    marks, places = marks[counts == 1], places[counts == 1] * _BLOCK
    known = np.zeros(1 << 24, dtype=bool)
    known[marks >> np.uint64(40)] = True
    found: list[Numbers] = []
    for start in range(0, len(before) - _BLOCK + 1, _CHUNK):
        hashes = _hash_windows(before[start : start + _CHUNK + _BLOCK - 1])
        likely = np.flatnonzero(known[hashes >> np.uint64(40)])
        index = np.searchsorted(marks, hashes[likely]).clip(max=max(len(marks) - 1, 0))
        hits = marks[index] == hashes[likely] if len(marks) else np.zeros(len(likely), bool)
        found.append(likely[hits] + start - places[index[hits]])
    shifts, votes = np.unique(np.concatenate(found), return_counts=True)
    order = np.lexsort((shifts, np.abs(shifts), -votes))[:_MAX_SHIFTS]
    return list(dict.fromkeys([*shifts[order].tolist(), *usual]))


_FACTORS: Final = tuple(
    np.uint64(factor)
    for factor in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
)


def _hash_windows(data: Bytes) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash of each of the ``len(data) - 31`` windows of 32 bytes."""
    words = np.empty(len(data) - 7, dtype=np.uint64)
    for offset in range(min(8, len(words))):
        count = (len(data) - offset) // 8
        words[offset::8] = np.frombuffer(data.tobytes(), "<u8", count, offset)
    windows = len(data) - _BLOCK + 1
    total = np.zeros(windows, dtype=np.uint64)
    for number, factor in enumerate(_FACTORS):
        mixed = words[8 * number : 8 * number + windows] * factor
        total += mixed ^ (mixed >> np.uint64(32))
    total ^= total >> np.uint64(29)
    total *= _FACTORS[0]
    return total


# Bits of the number by which bytes differ; a byte beside nothing costs as much as the worst.
_COSTS: Final = np.array([0, *(1 + min(d, 256 - d).bit_length() for d in range(1, 256))], np.uint16)


def _byte_costs(
    before: Bytes, after: Bytes, shift: int, start: int, stop: int
) -> npt.NDArray[np.uint16]:
    costs = np.full(stop - start, _COSTS.max(), dtype=np.uint16)
    low, high = max(start, -shift), min(stop, len(before) - shift)
    if low < high:
        differences = after[low:high] - before[low + shift : high + shift]
        costs[low - start : high - start] = _COSTS[differences]
    return costs


def _best_change(
    before: Bytes, after: Bytes, shifts: tuple[int, int], ends: tuple[int, int]
) -> int:
    left, right = (_byte_costs(before, after, shift, *ends).astype(np.int64) for shift in shifts)
    gain = np.concatenate([[0], np.cumsum(left - right)])
    return ends[0] + int(gain.argmin())


def _cheapest_path(costs: npt.NDArray[np.float64], change: float) -> list[int]:
    """Return for each row the column of the cheapest path, where a change of column costs too."""
    rows, columns = costs.shape
    stay = np.empty((rows, columns), dtype=bool)
    best = np.empty(rows, dtype=np.int64)
    total = np.zeros(columns)
    for row in range(rows):
        best[row] = total.argmin()
        limit = total[best[row]] + change
        np.less_equal(total, limit, out=stay[row])
        total = np.minimum(total, limit) + costs[row]
    column = int(total.argmin())
    path = [column]
    for row in range(rows - 1, 0, -1):
        column = column if stay[row, column] else int(best[row])
        path.append(column)
    return path[::-1]


def _inside(start: int, stop: int, shift: int, size: int) -> list[_Stretch]:
    """Cut off what lies before the beginning or behind the end of the old file."""
    low, high = min(max(start, -shift), stop), max(min(stop, size - shift), start)
    if low >= high:
        return [_Stretch(start, stop, None)] if start < stop else []
    parts = [_Stretch(start, low, None), _Stretch(low, high, shift), _Stretch(high, stop, None)]
    return [part for part in parts if part.start < part.stop]


# How each stretch is written


@dataclass(frozen=True)
class _Piece:
    """One instruction: ``length`` bytes of the new file, read from ``position`` of the old."""

    mode: int
    width: int
    start: int
    stop: int
    position: int


def _plan(before: Bytes, after: Bytes, stretches: Sequence[_Stretch]) -> list[_Piece]:
    """Return the instructions that make the new file, in order."""
    base = np.zeros_like(after)
    for one in stretches:
        if one.shift is not None:
            base[one.start : one.stop] = before[one.start + one.shift : one.stop + one.shift]
    pieces: list[_Piece] = []
    runs = _style_runs(base, after)
    for start, stop, style, shift in _overlaps(runs, stretches):
        for piece in _cut(base, after, start, stop, style, shift):
            _append(pieces, piece)
    return pieces


def _style_runs(base: Bytes, after: Bytes) -> list[tuple[int, int, _Style | None]]:
    """Return (start, stop, style) over the whole file; None where both files are equal."""
    edges = np.arange(0, len(after), _STYLE_TILE)
    dirty = np.logical_or.reduceat(base != after, edges) if len(after) else np.zeros(0, bool)
    cuts = [0, *(np.flatnonzero(np.diff(dirty)) + 1).tolist(), len(dirty)]
    runs: list[tuple[int, int, _Style | None]] = []
    for first, last in itertools.pairwise(cuts):
        start, stop = first * _STYLE_TILE, min(last * _STYLE_TILE, len(after))
        if first == last:
            continue
        if not dirty[first]:
            runs.append((start, stop, None))
            continue
        path = _choose_styles(base[start:stop], after[start:stop], start)
        for tile, style in enumerate(path):
            low = start + tile * _STYLE_TILE
            high = min(low + _STYLE_TILE, stop)
            if tile and runs[-1][2] == style:
                runs[-1] = (runs[-1][0], high, style)
            else:
                runs.append((low, high, style))
    return runs


def _choose_styles(base: Bytes, after: Bytes, start: int) -> list[_Style]:
    """Return the style of each tile of a stretch that begins at ``start`` of the new file."""
    costs = np.stack([_style_bits(base, after, start, style) for style in _STYLES], axis=1)
    return [_STYLES[index] for index in _cheapest_path(costs, _STYLE_CHANGE_BITS)]


def _style_bits(base: Bytes, after: Bytes, start: int, style: _Style) -> npt.NDArray[np.float64]:
    """Return about how many bits each tile takes: the entropy of each plane.

    With the correction of Miller and Madow (1955), as few numbers look less random than they are.
    """
    tiles = -(-len(after) // _STYLE_TILE)
    skipped = (style.phase - start) % style.width
    count = max(len(after) - skipped, 0) // style.width
    stop = skipped + count * style.width
    planes = _planes(base[skipped:stop], after[skipped:stop], style.mode, style.width)
    tile = (np.arange(count, dtype=np.int64) * style.width + skipped) // _STYLE_TILE
    bits = np.zeros(tiles)
    for plane in planes:
        counts = np.bincount(tile * 256 + plane, minlength=tiles * 256).reshape(tiles, 256)
        sums = counts.sum(axis=1)
        bits += sums * np.log2(np.maximum(sums, 1))
        bits -= (counts * np.log2(np.maximum(counts, 1))).sum(axis=1)
        bits += np.log2(np.e) / 2 * np.maximum((counts > 0).sum(axis=1) - 1, 0)
    return bits


def _planes(base: Bytes, after: Bytes, mode: int, width: int) -> list[Bytes]:
    """Return the bytes of least significance of all numbers, the next ones, and so on."""
    kind = np.dtype(f"<u{width}")
    new = np.frombuffer(after.tobytes(), kind)
    old = np.frombuffer(base.tobytes(), kind)
    if mode == LITERAL:
        values = new
    else:
        moved = new - old
        # Zigzag: 0, -1, 1, -2 … become 0, 1, 2, 3 …, so that small numbers have no high bits.
        sign = moved >> kind.type(8 * width - 1)
        values = (moved << kind.type(1)) ^ (kind.type(0) - sign)
    if mode == SORTED:
        values = values[_order(old)]
    table = np.frombuffer(values.astype(kind).tobytes(), np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(table[:, index]) for index in range(width)]


def _order(old: npt.NDArray[Any]) -> Numbers:
    """Return the order in which numbers are written: in each block those of small exponent first.

    A weight moves by about as much whether it is large or small. So what its exponent was tells
    how many of its bits changed, and numbers of one exponent compress better among themselves.
    """
    count = len(old)
    block = np.arange(count, dtype=np.int64) // SORTED_NUMBERS
    return np.argsort(block << 8 | _exponents(old).astype(np.int64), kind="stable")


def _exponents(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the exponent bits of IEEE 754 half or single precision."""
    kind = numbers.dtype.type
    dropped, mask = (10, 0x1F) if numbers.dtype.itemsize == 2 else (23, 0xFF)  # noqa: PLR2004
    found: npt.NDArray[Any] = numbers >> kind(dropped) & kind(mask)
    return found


def _overlaps(
    runs: Sequence[tuple[int, int, _Style | None]], stretches: Sequence[_Stretch]
) -> Iterator[tuple[int, int, _Style | None, int | None]]:
    """Yield the parts that lie in one run and in one stretch."""
    places = iter(stretches)
    place = next(places, None)
    for start, stop, style in runs:
        while start < stop and place is not None:
            end = min(stop, place.stop)
            yield start, end, style, place.shift
            start = end  # noqa: PLW2901
            if end == place.stop:
                place = next(places, None)


def _cut(
    base: Bytes, after: Bytes, start: int, stop: int, style: _Style | None, shift: int | None
) -> Iterator[_Piece]:
    """Yield the pieces of a part: whole numbers in the middle, bytes at its ends."""
    if style is None and shift is not None:
        yield _Piece(COPY, 1, start, stop, start + shift)
        return
    mode = LITERAL if shift is None or style is None else style.mode
    width, phase = (1, 0) if style is None else (style.width, style.phase)
    first = min(start + (phase - start) % width, stop)
    last = first + (stop - first) // width * width
    for low, high, size in ((start, first, 1), (first, last, width), (last, stop, 1)):
        if low == high:
            continue
        if shift is None or mode == LITERAL:
            yield _Piece(LITERAL, size, low, high, 0)
        else:
            yield from _without_equal(base, after, _Piece(mode, size, low, high, low + shift))


def _without_equal(base: Bytes, after: Bytes, piece: _Piece) -> Iterator[_Piece]:
    """Yield the piece with its longer equal runs copied."""
    start, width = piece.start, piece.width
    least = max(_LEAST_COPY, len(after) // _MOST_COPIES)
    table = (base[start : piece.stop] != after[start : piece.stop]).reshape(-1, width)
    changed = np.flatnonzero(table.any(axis=1)) * width
    ends = changed + width
    # Equal runs, from the end of one changed number to the next one.
    lows = np.concatenate([[0], ends])
    highs = np.concatenate([changed, [piece.stop - start]])
    long = highs - lows > least
    done = 0
    for low, high in zip(lows[long].tolist(), highs[long].tolist(), strict=True):
        if done < low:
            yield _part(piece, piece.mode, width, done, low)
        yield _part(piece, COPY, 1, low, high)
        done = high
    if done < piece.stop - start:
        yield _part(piece, piece.mode, width, done, piece.stop - start)


def _part(piece: _Piece, mode: int, width: int, low: int, high: int) -> _Piece:
    return _Piece(mode, width, piece.start + low, piece.start + high, piece.position + low)


def _append(pieces: list[_Piece], piece: _Piece) -> None:
    """Add a piece, to the last one where it carries that on."""
    if pieces:
        last = pieces[-1]
        goes_on = piece.mode == LITERAL or last.position + last.stop - last.start == piece.position
        if (last.mode, last.width) == (piece.mode, piece.width) and goes_on:
            pieces[-1] = _Piece(last.mode, last.width, last.start, piece.stop, last.position)
            return
    pieces.append(piece)


# The bytes


def _write(old: bytes, new: bytes, pieces: Sequence[_Piece]) -> bytes:
    before, after = (np.frombuffer(data, dtype=np.uint8) for data in (old, new))
    widths = sorted({piece.width for piece in pieces if piece.mode != COPY})
    sorting = dict.fromkeys(widths, DIFFERENCE)
    packed = {}
    for width in widths:
        own = [piece for piece in pieces if piece.mode != COPY and piece.width == width]
        tried = {DIFFERENCE: _pack_group(before, after, own, DIFFERENCE)}
        if width > 1:
            tried[SORTED] = _pack_group(before, after, own, SORTED)
        sorting[width] = min(tried, key=lambda mode: sum(len(one.body) for one in tried[mode]))
        packed[width] = tried[sorting[width]]
    code = _write_instructions(pieces, sorting)
    if len(code) > MAX_INSTRUCTION_BYTES:  # more than a device would follow
        return _write(old, new, [_Piece(LITERAL, 1, 0, len(new), 0)])
    instructions = _compress(code)
    streams = [instructions, *(one for width in widths for one in packed[width])]
    digests = (hashlib.sha256(data).digest() for data in (old, new))
    header = HEADER.pack(MAGIC, len(old), next(digests), len(new), next(digests), len(widths))
    table = b"".join(STREAM.pack(one.coding, len(one.body), one.raw_bytes) for one in streams)
    return header + bytes(widths) + table + b"".join(one.body for one in streams)


@dataclass(frozen=True)
class _Stream:
    coding: int
    raw_bytes: int
    body: bytes


def _pack_group(
    before: Bytes, after: Bytes, pieces: Sequence[_Piece], difference: int
) -> list[_Stream]:
    """Return the streams of all pieces of one width, which share them."""
    width = pieces[0].width
    planes: list[list[Bytes]] = [[] for _ in range(width)]
    for piece in pieces:
        mode = difference if piece.mode == DIFFERENCE else piece.mode
        changed = after[piece.start : piece.stop]
        base = before[piece.position : piece.position + len(changed)]
        made = _planes(changed if mode == LITERAL else base, changed, mode, width)
        for plane, values in zip(planes, made, strict=True):
            plane.append(values)
    return [_compress(b"".join(values.tobytes() for values in plane)) for plane in planes]


def _write_instructions(pieces: Sequence[_Piece], sorting: Mapping[int, int]) -> bytes:
    groups = {width: number for number, width in enumerate(sorting)}
    out = bytearray()
    expected = 0
    for piece in pieces:
        mode = sorting[piece.width] if piece.mode == DIFFERENCE else piece.mode
        length = piece.stop - piece.start
        out.append(mode | (0 if mode == COPY else groups[piece.width]) << 2)
        out += _varint(length // piece.width)
        if mode != LITERAL:
            out += _varint(_zigzag(piece.position - expected))
            expected = piece.position + length
    return bytes(out)


def _compress(data: bytes) -> _Stream:
    """Return the data as xz, or as they are where that is shorter or not worth a try."""
    stored = _Stream(STORED, len(data), data)
    if not data or _entropy(data) > _STORED_BITS:
        return stored
    filters: list[dict[str, Any]] = [
        {
            "id": lzma.FILTER_LZMA2,
            "preset": 6,
            "dict_size": DICTIONARY_BYTES,
            "lc": 0,
            "lp": 0,
            "pb": 0,
            "nice_len": _NICE_LENGTH,
        }
    ]
    body = lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)
    return _Stream(XZ, len(data), body) if len(body) < len(data) else stored


def _entropy(data: bytes) -> float:
    """Return bits per byte."""
    counts = np.bincount(np.frombuffer(data, np.uint8))
    shares = counts[counts > 0] / len(data)
    return float(-(shares * np.log2(shares)).sum())


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= _MORE:
        out.append(number % _MORE | _MORE)
        number >>= 7
    out.append(number)
    return bytes(out)


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1


# Reading it back, in the plainest way


def _decode(old: bytes, patch: bytes) -> bytes:
    """Return the new file as the format's description says, in memory, with no defence."""
    count = HEADER.unpack_from(patch)[-1]
    widths = patch[HEADER.size : HEADER.size + count]
    table = HEADER.size + count
    entries = [
        STREAM.unpack_from(patch, table + number * STREAM.size) for number in range(1 + sum(widths))
    ]
    offset = table + len(entries) * STREAM.size
    streams = []
    for coding, packed, _ in entries:
        body = patch[offset : offset + packed]
        streams.append(lzma.decompress(body) if coding == XZ else body)
        offset += packed
    return _follow(old, list(widths), streams)


def _follow(old: bytes, widths: Sequence[int], streams: Sequence[bytes]) -> bytes:
    out = bytearray()
    heads = [1 + sum(widths[:group]) for group in range(len(widths))]
    used = [0] * len(widths)
    code, at, expected = streams[0], 0, 0
    while at < len(code):
        mode, group = code[at] & 3, code[at] >> 2
        length, at = _read_varint(code, at + 1)
        if mode != LITERAL:
            move, at = _read_varint(code, at)
            expected += move >> 1 if not move & 1 else -(move + 1 >> 1)
        if mode == COPY:
            out += old[expected : expected + length]
            expected += length
            continue
        width = widths[group]
        low, high = used[group], used[group] + length
        planes = [
            np.frombuffer(streams[heads[group] + k][low:high], np.uint8) for k in range(width)
        ]
        used[group] = high
        values = np.stack(planes, axis=1).reshape(-1).view(f"<u{width}")
        if mode != LITERAL:
            base = np.frombuffer(old[expected : expected + length * width], f"<u{width}")
            expected += length * width
            if mode == SORTED:
                sorted_values, values = values, np.empty_like(values)
                values[_order(base)] = sorted_values
            values = base + _unzigzag(values)
        out += values.tobytes()
    return bytes(out)


def _unzigzag(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    one = values.dtype.type(1)
    moved: npt.NDArray[Any] = (values >> one) ^ (values.dtype.type(0) - (values & one))
    return moved


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte % _MORE) << shift
        at, shift = at + 1, shift + 7
        if byte < _MORE:
            return number, at

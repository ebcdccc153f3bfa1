"""Make the golden files of the patch format under tests/vectors/patches/, and their index.

    python -m scripts.make_patch_vectors

Small made-up files, so that every implementation can be tried on every rule of
docs/patch-format.md: patches that must work, and patches that must be refused and why. Run it again
only when the format gets a new rule: patches may differ with the version of liblzma, and old ones
have to be understood for ever.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker.patches import HEADER, MAGIC, STORED, STREAM, XZ, create_patch

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "vectors" / "patches"
COPY, LITERAL, DIFFERENCE, SORTED = range(4)


def main() -> None:
    """Write all files anew."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    applied = [
        _entry(name, old, new, patch, keep=True)
        for name, old, new, patch in [*_made(), *_by_hand()]
    ]
    refused = [
        {**_entry(f"refused-{name}", old, new, patch, keep=False), "reason": reason}
        for name, reason, old, new, patch in _hostile()
    ]
    index = {"format": "nfp1", "applied": applied, "refused": refused}
    (FOLDER / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    print(f"{len(applied)} patches to apply and {len(refused)} to refuse in {FOLDER}")


def _entry(name: str, old: bytes, new: bytes, patch: bytes, *, keep: bool) -> dict[str, Any]:
    """Write a case's files and describe it; ``keep`` the files of its own."""
    files = {"old": f"{name}.old", "patch": f"{name}.patch", "new": f"{name}.new"}
    if not keep:  # all start from one file, and lead nowhere
        files = {"old": "refused.old", "patch": f"{name}.patch"}
    contents = {"old": old, "patch": patch, "new": new}
    for kind, file in files.items():
        (FOLDER / file).write_bytes(contents[kind])
    return {
        "name": name,
        **files,
        "size_bytes": len(new),
        "sha256": hashlib.sha256(new).hexdigest(),
    }


def _chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - made-up files, the same in every run


def _weights(code: str, count: int, *, moved: float = 0.0) -> bytes:
    """Return numbers like weights (struct's code e or f), each moved a little or not at all."""
    chance, step = _chance(count), _chance(7)
    values = [chance.gauss(0, 0.05) + step.gauss(0, 1) * moved for _ in range(count)]
    return struct.pack(f"<{count}{code}", *values)


def _made() -> list[tuple[str, bytes, bytes, bytes]]:
    return [(name, old, new, create_patch(old, new)) for name, old, new in _pairs()]


def _pairs() -> list[tuple[str, bytes, bytes]]:
    text = b"cardboard\nglass\nmetal\npaper\n" * 8
    chance = _chance(1)
    whole = bytes(chance.randrange(256) for _ in range(6000))
    steps = _chance(2).choices([0, 0, 1, 255], k=len(whole))
    return [
        ("same", text, text),
        ("from-nothing", b"", text),
        ("to-nothing", text, b""),
        ("unrelated", text, whole),
        ("float32", _weights("f", 6000), _weights("f", 6000, moved=1e-4)),
        ("float16", _weights("e", 6000), _weights("e", 6000, moved=1e-3)),
        ("int8", whole, bytes((a + b) % 256 for a, b in zip(whole, steps, strict=True))),
        (
            "shifted",
            text + _weights("f", 3000) + whole,
            text[:-28] + b"plastic\n" + whole + _weights("f", 3000, moved=1e-4) + text,
        ),
    ]


def _xz(data: bytes, dictionary_bytes: int = 1 << 16) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": dictionary_bytes}]
    return lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 128:  # noqa: PLR2004 - seven bits to a byte
        out.append(number % 128 + 128)
        number //= 128
    return bytes([*out, number])


def _code(mode: int, count: int, move: int | None = 0, group: int = 0) -> bytes:
    start = bytes([mode | group << 2]) + _varint(count)
    return start if move is None else start + _varint(2 * move if move >= 0 else -2 * move - 1)


def _patch(
    old: bytes,
    new: bytes,
    widths: Sequence[int],
    streams: Sequence[bytes | tuple[int, bytes, int]],
    **header: Any,
) -> bytes:
    """Return a patch of streams, each its bytes or (coding, bytes, size unpacked)."""
    whole = [(STORED, s, len(s)) if isinstance(s, bytes) else s for s in streams]
    start = HEADER.pack(
        header.get("magic", MAGIC),
        len(old),
        hashlib.sha256(old).digest(),
        header.get("size_bytes", len(new)),
        hashlib.sha256(new).digest(),
        header.get("groups", len(widths)),
    )
    table = b"".join(STREAM.pack(coding, len(body), raw) for coding, body, raw in whole)
    return start + bytes(widths) + table + b"".join(body for _, body, _ in whole)


def _by_hand() -> list[tuple[str, bytes, bytes, bytes]]:
    """Return what the format allows and our own patches hold rarely or never."""
    old = bytes(range(200))
    backwards = old[100:] + old[:100] + b"!"
    code = _code(COPY, 100, 100) + _code(COPY, 100, -200) + _code(LITERAL, 1, None)
    words = struct.pack("<3H", 1, 2, 40000) + struct.pack("<2I", 7, 1 << 31)
    planes = [words[0:6:2], words[1:6:2], *(words[6 + k :: 4] for k in range(4))]
    literals = _code(LITERAL, 3, None, 0) + _code(LITERAL, 2, None, 1)
    return [
        ("backwards", old, backwards, _patch(old, backwards, [1], [code, b"!"])),
        _two_blocks(),
        ("wide-literals", old, words, _patch(old, words, [2, 4], [literals, *planes])),
    ]


def _two_blocks() -> tuple[str, bytes, bytes, bytes]:
    """Return sorted differences of more numbers than one block takes."""
    count, block = 66_000, 65_536
    numbers = [(index * 2003) % 40_000 for index in range(count)]
    steps = [(index // 7) % 3 for index in range(count)]
    old = struct.pack(f"<{count}H", *numbers)
    new = struct.pack(f"<{count}H", *map(sum, zip(numbers, steps, strict=True)))

    def place(index: int) -> tuple[int, int]:
        return index // block, numbers[index] >> 10 & 31

    low = bytes(2 * steps[index] for index in sorted(range(count), key=place))
    planes = [(XZ, _xz(plane), count) for plane in (low, bytes(count))]
    return "two-blocks", old, new, _patch(old, new, [2], [_code(SORTED, count), *planes])


def _hostile() -> list[tuple[str, str, bytes, bytes, bytes]]:
    old, new = bytes(range(256)), bytes(range(255, -1, -1))
    good = _patch(old, new, [1], [_code(LITERAL, 256, None), new])
    packed = _xz(new)

    def one(code: bytes, *streams: bytes | tuple[int, bytes, int], widths: Sequence[int] = (1,)
    ) -> bytes:  # fmt: skip
        return _patch(old, new, widths, [code, *(streams or (new,))])

    write = _code(LITERAL, 256, None)
    cases = {
        "magic": ("unknown_format", _patch(old, new, [1], [write, new], magic=b"NFP2")),
        "other-target": ("other_target", _patch(old, old, [1], [write, old])),
        "other-size": ("other_target", _patch(old, new, [1], [write, new], size_bytes=1 << 40)),
        "other-base": ("other_base", _patch(new, new, [1], [write, new])),
        "wrong-result": ("wrong_result", one(write, old)),
        "empty": ("damaged", b""),
        "header-cut": ("damaged", good[:80]),
        "cut": ("damaged", good[:-1]),
        "longer": ("damaged", good + b"\0"),
        "groups": ("too_large", _patch(old, new, [1] * 9, [write, *[b""] * 8, new])),
        "groups-missing": ("too_large", _patch(old, new, [1], [write, new], groups=255)),
        "width": ("too_large", one(write, new, b"", b"", widths=(3,))),
        "streams": ("too_large", one(write, *[b""] * 15, new, widths=(4, 4, 4, 4))),
        "unpacks-to-more": ("too_large", one(write, (XZ, _xz(bytes(300)), 300))),
        "instructions": (
            "too_large",
            _patch(old, new, [1], [(XZ, _xz(bytes(2 << 20)), 2 << 20), new]),
        ),
        "bomb": ("damaged", one(write, (XZ, _xz(bytes(1 << 22)), 256))),
        "dictionary": ("damaged", one(write, (XZ, _xz(new, 1 << 26), 256))),
        "coding": ("damaged", one(write, (2, packed, 256))),
        "stored-sizes": ("damaged", one(write, (STORED, new[:100], 256))),
        "unpacks-to-less": ("damaged", one(write, (XZ, _xz(new[:100]), 256))),
        "behind-xz": ("damaged", one(write, (XZ, packed + b"\0\0\0\0", 256))),
        "xz-cut": ("damaged", one(write, (XZ, packed[:-8], 256))),
        "unused": ("damaged", one(_code(COPY, 256), b"x")),
        "copy-with-group": ("damaged", one(_code(COPY, 256, group=1), b"")),
        "missing-group": ("damaged", one(_code(LITERAL, 256, None, 1))),
        "sorted-bytes": ("damaged", one(_code(SORTED, 256))),
        "nothing": ("damaged", one(_code(LITERAL, 0, None) + write)),
        "past-the-end": ("damaged", one(_code(COPY, 256) + _code(COPY, 1, -1), b"")),
        "past-the-old": ("damaged", one(_code(COPY, 10, 250), b"")),
        "before-the-old": ("damaged", one(_code(COPY, 10, -1), b"")),
        "endless-number": ("damaged", one(bytes([LITERAL]) + b"\xff" * 12 + b"\0")),
        "cut-instruction": ("damaged", one(bytes([LITERAL]) + b"\x80")),
        "too-short": ("wrong_result", one(_code(COPY, 255), b"")),
    }
    return [(name, reason, old, new, patch) for name, (reason, patch) in cases.items()]


if __name__ == "__main__":
    main()

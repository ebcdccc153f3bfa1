from __future__ import annotations

import hashlib
import io
import json
import lzma
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nightferry.errors import NightferryError, PatchError
from nightferry.patches import ALGORITHM, apply_patch

VECTORS = Path(__file__).parents[1] / "vectors" / "patches"
INDEX = json.loads((VECTORS / "index.json").read_text())
REASONS = {"damaged", "unknown_format", "too_large", "other_base", "other_target", "wrong_result"}
MOST_MEMORY_BYTES = 16_000_000


def cases(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in INDEX[kind]]


def apply(old: bytes, patch: bytes, size_bytes: int, sha256: str) -> bytes:
    out = io.BytesIO()
    try:
        apply_patch(io.BytesIO(old), io.BytesIO(patch), out, size_bytes=size_bytes, sha256=sha256)
    finally:
        assert len(out.getvalue()) <= size_bytes
    return out.getvalue()


@pytest.mark.parametrize("case", cases("applied"))
def test_golden_patches_make_their_new_files(case: dict[str, Any], tmp_path: Path) -> None:
    assert INDEX["format"] == ALGORITHM
    with (tmp_path / "out").open("wb") as out:
        apply_patch(
            VECTORS / case["old"],
            VECTORS / case["patch"],
            out,
            size_bytes=case["size_bytes"],
            sha256=case["sha256"].upper(),
        )
    assert (tmp_path / "out").read_bytes() == (VECTORS / case["new"]).read_bytes()


@pytest.mark.parametrize("case", cases("refused"))
def test_hostile_patches_are_refused_for_their_reason(case: dict[str, Any]) -> None:
    old, patch = ((VECTORS / case[kind]).read_bytes() for kind in ("old", "patch"))
    with pytest.raises(PatchError) as refused:
        apply(old, patch, case["size_bytes"], case["sha256"])
    assert refused.value.reason == case["reason"]
    assert case["reason"] in REASONS
    assert isinstance(refused.value, NightferryError)
    assert not refused.value.retryable


@pytest.mark.parametrize("name", ["float32", "shifted", "two-blocks"])
def test_no_damage_goes_unnoticed(name: str) -> None:
    case = next(case for case in INDEX["applied"] if case["name"] == name)
    old, patch = ((VECTORS / case[kind]).read_bytes() for kind in ("old", "patch"))
    chance = random.Random(20)
    for number in range(300):
        damaged = bytearray(patch)
        if number % 3:
            for _ in range(number % 3):
                damaged[chance.randrange(len(patch))] ^= 1 << chance.randrange(8)
        else:
            del damaged[chance.randrange(len(patch)) :]
        if damaged == patch:
            continue
        with pytest.raises(PatchError):
            apply(old, bytes(damaged), case["size_bytes"], case["sha256"])


def test_a_file_that_cannot_be_read_or_written_is_no_fault_of_the_patch(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        apply_patch(tmp_path / "no", tmp_path / "no", io.BytesIO(), size_bytes=1, sha256="")


# Memory is measured in a process of its own: the most it held, beyond what Python itself takes.
MEASURE = """
import json, resource, sys
from pathlib import Path
from nightferry.errors import PatchError
from nightferry.patches import apply_patch
old, patch, out, size_bytes, sha256 = sys.argv[1:]

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before, reason = most(), ""
with open(out, "wb") as file:
    try:
        apply_patch(Path(old), Path(patch), file, size_bytes=int(size_bytes), sha256=sha256)
    except PatchError as error:
        reason = error.reason
print(json.dumps([most() - before, reason]))
"""
LITERAL, COPY = 1, 0
STORED, XZ = 0, 1


def pack_xz(data: bytes, dictionary_bytes: int) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": dictionary_bytes}]
    return lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)


def varint(number: int) -> bytes:
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def build(
    old: bytes, new: bytes, widths: list[int], streams: list[tuple[int, bytes, int]]
) -> bytes:
    hashes = [hashlib.sha256(data).digest() for data in (old, new)]
    header = struct.pack(
        "<4sQ32sQ32sB", b"NFP1", len(old), hashes[0], len(new), hashes[1], len(widths)
    )
    table = b"".join(struct.pack("<BQQ", code, len(body), size) for code, body, size in streams)
    return header + bytes(widths) + table + b"".join(body for _, body, _ in streams)


def largest_patch() -> tuple[bytes, bytes, bytes]:
    """Return files of 12 MB and a patch with every stream and dictionary the format allows."""
    old = random.Random(3).randbytes(12 << 20)
    widths, code, streams, new = [4, 4, 4, 2, 1], b"", [], b""
    for group, width in enumerate(widths):
        # Sorted differences of nought, in streams that all have to be held open.
        count = (2 << 20) // width
        mode = 3 if width > 1 else 2
        code += bytes([mode | group << 2]) + varint(count) + b"\0"
        streams += [(XZ, pack_xz(bytes(count), 1 << 19), count)] * width
    new = old[: 10 << 20]
    return old, new, build(old, new, widths, [(STORED, code, len(code)), *streams])


def bomb() -> tuple[bytes, bytes, bytes]:
    """Return a patch of some kilobytes that says 1 MiB and unpacks to 256 MiB."""
    new = bytes(1 << 20)
    code = bytes([LITERAL]) + varint(1 << 20)
    body = pack_xz(bytes(256 << 20), 1 << 19)
    return b"x", new, build(b"x", new, [1], [(STORED, code, len(code)), (XZ, body, 1 << 20)])


def bomb_of_instructions() -> tuple[bytes, bytes, bytes]:
    new = bytes(1 << 20)
    body = pack_xz(bytes(256 << 20), 1 << 19)
    return b"x", new, build(b"x", new, [], [(XZ, body, 1 << 20)])


def large_dictionary() -> tuple[bytes, bytes, bytes]:
    new = random.Random(4).randbytes(1 << 20)
    code = bytes([LITERAL]) + varint(1 << 20)
    body = pack_xz(new, 512 << 20)
    return b"x", new, build(b"x", new, [1], [(STORED, code, len(code)), (XZ, body, 1 << 20)])


def endless_header() -> tuple[bytes, bytes, bytes]:
    old, new = b"x", bytes(100)
    return old, new, build(old, new, [255] * 255, [(STORED, b"", 1 << 62)] * 200)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (largest_patch, ""),
        (bomb, "damaged"),
        (bomb_of_instructions, "damaged"),
        (large_dictionary, "damaged"),
        (endless_header, "too_large"),
    ],
)
def test_memory_stays_small_whatever_a_patch_says(make: Any, reason: str, tmp_path: Path) -> None:
    old, new, patch = make()
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "patch").write_bytes(patch)
    files = [str(tmp_path / name) for name in ("old", "patch", "out")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *files, str(len(new)), hashlib.sha256(new).hexdigest()],
        check=True,
        capture_output=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "sdk" / "src")},
    )
    taken_bytes, found = json.loads(done.stdout)
    assert found == reason
    assert taken_bytes < MOST_MEMORY_BYTES
    if not reason:
        assert (tmp_path / "out").read_bytes() == new

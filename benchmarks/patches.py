"""Patches between real compiled files: ours beside other programs'.

    python -m benchmarks.patches [--pairs DIR] [--backbone NAME] [--data FOLDER]

Bytes as a share of the whole new file; CPU seconds and peak memory to create and to apply, each in
a process of its own. Memory is what Python's process grew by (where a library takes the files as
bytes, with them), for xdelta3 all of it. Linux only. ``--pairs`` keeps the
compiled files for the next time. Returns 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import patch_pairs

# Largest share of the full file; from the measurements this was designed with.
AIMS = {
    ("head retrained", "tflite float32"): 0.005,
    ("head retrained", "tflite float16"): 0.005,
    ("head retrained", "tflite int8"): 0.005,
    ("head retrained", "coreml float16"): 0.005,
    ("top 20 layers", "tflite float32"): 0.344,
    ("top 20 layers", "tflite float16"): 0.297,
    ("top 20 layers", "tflite int8"): 0.189,
    ("top 20, ten times the rate", "tflite float32"): 0.344,
    ("top 20, ten times the rate", "tflite float16"): 0.297,
    ("top 20, ten times the rate", "tflite int8"): 0.189,
}
MOST_MEMORY_MB = 16.0
ZSTD_LEVEL = 19
OURS = "nightferry"


@dataclass(frozen=True)
class Measured:
    """Of creating and of applying: CPU seconds and MB of memory; and the size of the patch."""

    size_bytes: int
    create_s: float
    create_mb: float
    apply_s: float
    apply_mb: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, help="folder that keeps the compiled files")
    patch_pairs.add_options(parser)
    # One measurement, in a process of its own.
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        codec, task, *paths = options.one
        print(json.dumps(measure_here(codec, task, *map(Path, paths))))
        return 0
    with tempfile.TemporaryDirectory(prefix="nightferry-patches-") as folder:
        pairs = options.pairs or Path(folder, "pairs")
        # In a process of its own: TensorFlow's threads would be measured with the rest.
        command = [sys.executable, "-m", "benchmarks.patch_pairs", str(pairs)]
        more = ["--backbone", options.backbone, "--data", str(options.data)]
        subprocess.run([*command, *more], check=True)
        print(f"{options.backbone}, photos of recyclables\n")
        return run(pairs, Path(folder))


def run(pairs: Path, scratch: Path) -> int:
    """Measure every pair with every program; print; return 1 where an aim is missed."""
    codecs = [name for name in CODECS if name != "xdelta3" or shutil.which("xdelta3")]
    print(
        f"{'pair':27}{'file':16}{'program':12}{'bytes':>9}{'share':>9}"
        f"{'create s':>9}{'MB':>6}{'apply s':>9}{'MB':>7}"
    )
    missed = []
    for pair, networks in patch_pairs.PAIRS.items():
        for variant in patch_pairs.VARIANTS:
            old, new = (patch_pairs.path_of(pairs, network, *variant) for network in networks)
            found = {codec: measure(codec, old, new, scratch) for codec in codecs}
            missed += show(pair, " ".join(variant), found, new.stat().st_size)
    print("\nevery aim reached" if not missed else "\n" + "\n".join(missed))
    return 1 if missed else 0


def show(pair: str, file: str, found: dict[str, Measured], full_bytes: int) -> list[str]:
    """Print the rows of one pair; return a sentence for each aim it misses."""
    for codec, one in found.items():
        print(
            f"{pair:27}{file:16}{codec:12}{one.size_bytes:9}{one.size_bytes / full_bytes:9.5f}"
            f"{one.create_s:9.2f}{one.create_mb:6.0f}{one.apply_s:9.2f}{one.apply_mb:7.1f}",
            flush=True,
        )
    best = min((one.size_bytes, codec) for codec, one in found.items() if codec != OURS)
    ours = found[OURS]
    share = ours.size_bytes / full_bytes
    print(f"{'':43}{ours.size_bytes / best[0]:.2f} of the best other ({best[1]})\n", flush=True)
    aim = AIMS.get((pair, file), 1.0)
    missed = []
    if share > aim:
        missed.append(f"MISSED: {pair}, {file}: {share:.4f}, wanted {aim}")
    if ours.apply_mb > MOST_MEMORY_MB:
        missed.append(f"MISSED: {pair}, {file}: {ours.apply_mb:.1f} MB to apply")
    return missed


def measure(codec: str, old: Path, new: Path, scratch: Path) -> Measured:
    """Create and apply a patch, and see that the new file comes out."""
    patch, out = scratch / "patch", scratch / "out"
    create_s, create_mb = in_child(codec, "create", old, new, patch, out)
    apply_s, apply_mb = in_child(codec, "apply", old, new, patch, out)
    assert out.read_bytes() == new.read_bytes(), f"{codec} made another file"
    size_bytes = patch.stat().st_size
    patch.unlink()
    out.unlink()
    return Measured(size_bytes, create_s, create_mb, apply_s, apply_mb)


def in_child(codec: str, task: str, *paths: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.patches", "--one", codec, task, *map(str, paths)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    seconds, megabytes = json.loads(done.stdout)
    return seconds, megabytes


def measure_here(
    codec: str, task: str, old: Path, new: Path, patch: Path, out: Path
) -> tuple[float, float]:
    """Return CPU seconds and MB: by how much this process grew, or all of xdelta3's."""
    function = CODECS[codec][task == "apply"]
    for module in MODULES[codec]:
        importlib.import_module(module)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    memory, before = peak_mb("self", "VmRSS"), os.times()
    function(old, new, patch, out)
    after = os.times()
    used = sum(after[:4]) - sum(before[:4])
    return used, program_mb[0] if program_mb else peak_mb("self", "VmHWM") - memory


def peak_mb(process: str, field: str) -> float:
    """Return a field of a process's status in MB, 0 where there is none any more."""
    status = Path("/proc", process, "status").read_text()
    kib = [line.split()[1] for line in status.splitlines() if line.startswith(field)]
    return int(kib[0]) * 1024 / 1e6 if kib else 0.0


program_mb: list[float] = []


def run_program(command: list[str]) -> None:
    """Run a program; put the most memory it was seen to hold into ``program_mb``."""
    with subprocess.Popen(command) as process:
        most = 0.0
        while process.poll() is None:
            most = max(most, peak_mb(str(process.pid), "VmHWM"))
            time.sleep(0.001)
    assert process.returncode == 0, command
    program_mb[:] = [most]


def our_create(old: Path, new: Path, patch: Path, out: Path) -> None:
    from worker.patches import create_patch

    del out
    patch.write_bytes(create_patch(old.read_bytes(), new.read_bytes()))


def our_apply(old: Path, new: Path, patch: Path, out: Path) -> None:
    """Apply as a device does: hash and size are known, files stay files."""
    from nightferry.patches import apply_patch

    sha256 = known_hash(new)
    with out.open("wb") as file:
        apply_patch(old, patch, file, size_bytes=new.stat().st_size, sha256=sha256)


def known_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 16):
            digest.update(block)
    return digest.hexdigest()


def bsdiff_create(old: bytes, new: bytes) -> bytes:
    import bsdiff4

    return bytes(bsdiff4.diff(old, new))


def bsdiff_apply(old: bytes, patch: bytes) -> bytes:
    import bsdiff4

    return bytes(bsdiff4.patch(old, patch))


def zstd_create(old: bytes, new: bytes) -> bytes:
    import zstandard

    prefix = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    window = max(len(old) + len(new), 1 << 20).bit_length()
    settings = zstandard.ZstdCompressionParameters.from_level(
        ZSTD_LEVEL, window_log=window, enable_ldm=True
    )
    compressor = zstandard.ZstdCompressor(dict_data=prefix, compression_params=settings)
    return compressor.compress(new)


def zstd_apply(old: bytes, patch: bytes) -> bytes:
    import zstandard

    prefix = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdDecompressor(dict_data=prefix, max_window_size=1 << 30).decompress(patch)


def hdiff_create(old: bytes, new: bytes) -> bytes:
    import hdiffpatch

    return bytes(hdiffpatch.diff(old, new, compression="lzma2"))


def hdiff_apply(old: bytes, patch: bytes) -> bytes:
    import hdiffpatch

    return bytes(hdiffpatch.apply(old, patch))


def xdelta_create(old: Path, new: Path, patch: Path, out: Path) -> None:
    del out
    whole = str(max(1 << 20, old.stat().st_size + 1))
    settings = ["-9", "-S", "lzma", "-B", whole, "-s", str(old)]
    run_program(["xdelta3", "-e", "-f", *settings, str(new), str(patch)])


def xdelta_apply(old: Path, new: Path, patch: Path, out: Path) -> None:
    whole = str(max(1 << 20, old.stat().st_size + 1))
    del new
    command = ["xdelta3", "-d", "-f", "-B", whole, "-s", str(old), str(patch), str(out)]
    run_program(command)


LIBRARIES = {
    "bsdiff4": (bsdiff_create, bsdiff_apply),
    "zstd": (zstd_create, zstd_apply),
    "hdiffpatch": (hdiff_create, hdiff_apply),
}
MODULES = {
    OURS: ("worker.patches", "nightferry.patches"),
    "bsdiff4": ("bsdiff4",),
    "zstd": ("zstandard",),
    "hdiffpatch": ("hdiffpatch",),
    "xdelta3": (),
}


def create_with(codec: str, old: Path, new: Path, patch: Path, out: Path) -> None:
    del out
    patch.write_bytes(LIBRARIES[codec][0](old.read_bytes(), new.read_bytes()))


def apply_with(codec: str, old: Path, new: Path, patch: Path, out: Path) -> None:
    del new
    out.write_bytes(LIBRARIES[codec][1](old.read_bytes(), patch.read_bytes()))


Task = Callable[[Path, Path, Path, Path], None]
CODECS: dict[str, tuple[Task, Task]] = {
    OURS: (our_create, our_apply),
    **{
        name: (functools.partial(create_with, name), functools.partial(apply_with, name))
        for name in LIBRARIES
    },
    "xdelta3": (xdelta_create, xdelta_apply),
}


if __name__ == "__main__":
    sys.exit(main())

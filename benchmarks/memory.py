"""Resident memory of every process of the embedded server over ten nights of three models.

    python -m benchmarks.memory [--photos DIR] [--weights DIR] [--nights 10] [--models 3]

Each night every model gets one new photo and a run. The web process never loads TensorFlow;
training happens in a process that ends with its run, so nothing else may grow from night to
night. Few photos, a small network and one file: the memory of the processes that stay does not
depend on them. "peak" is the most that was seen of the training process during the night.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from tests.support.server import LiveServer, running_server

ROLES = {
    "waitress": "web",
    "--hostname=trainer@": "trainer",
    "--hostname=worker@": "worker",
    "--pidfile=": "schedule",
    "server.photos.decoder": "decoder",
    "quickstart": "supervisor",
    "worker.child": "training (peak)",
}
TRAINING = ROLES["worker.child"]
POLICY = {
    "architecture": "mobilenet_v2_0.35_96",
    "strategy": "linear",
    "variants": ["tflite:float32"],
}
LABELS, FIRST = ("glass", "metal", "paper"), 10


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("NIGHTFERRY_TEST_DATA") or Path.cwd().parent / "shared" / "data")
    arguments.add_argument("--photos", type=Path, default=data / "recyclables")
    arguments.add_argument("--weights", type=Path, default=data / "weights")
    arguments.add_argument("--nights", type=int, default=10)
    arguments.add_argument("--models", type=int, default=3)
    options = arguments.parse_args()
    roles = list(ROLES.values())
    print("MiB".ljust(12) + "".join(f"{role:>17}" for role in roles))
    with (
        tempfile.TemporaryDirectory(prefix="nightferry-benchmark-") as folder,
        running_server(Path(folder, "data"), NIGHTFERRY_WEIGHTS=str(options.weights)) as server,
    ):
        names = [f"model-{number}" for number in range(options.models)]
        for name in names:
            body = {"slug": name, "labels": LABELS, "training_policy": POLICY}
            server.call("POST", "/models", body)
        show("before", memory_mib(server))
        for night in range(options.nights):
            for name in names:
                bring(server, name, options.photos, Path(folder, "new"), night)
            peak = run_night(server, names)
            time.sleep(2)
            show(f"night {night + 1}", {**memory_mib(server), TRAINING: peak})


def bring(server: LiveServer, name: str, photos: Path, folder: Path, night: int) -> None:
    """Import the first photos, later one more of each label."""
    shutil.rmtree(folder, ignore_errors=True)
    for label in LABELS:
        paths = sorted((photos / label).iterdir())
        fresh = paths[:FIRST] if night == 0 else paths[FIRST + night : FIRST + night + 1]
        (folder / label).mkdir(parents=True)
        for path in fresh:
            shutil.copy(path, folder / label)
    done = server.manage("import_photos", name, str(folder), "--accept")
    assert done.returncode == 0, done.stderr


def run_night(server: LiveServer, names: list[str]) -> float:
    """Train every model; return the most memory that the training process had, in MiB."""
    runs = [server.call("POST", f"/models/{name}/train", {})["id"] for name in names]
    peak = 0.0
    states = ["queued"]
    while any(state in ("queued", "running") for state in states):
        time.sleep(0.5)
        peak = max(peak, memory_mib(server).get(TRAINING, 0.0))
        states = [server.call("GET", f"/runs/{run}")["state"] for run in runs]
    assert states == ["succeeded"] * len(runs), states
    return peak


def show(name: str, found: dict[str, float]) -> None:
    cells = (f"{found[role]:.0f}" if role in found else "–" for role in ROLES.values())
    print(name.ljust(12) + "".join(f"{cell:>17}" for cell in cells), flush=True)


def memory_mib(server: LiveServer) -> dict[str, float]:
    """Return the resident MiB of the server's processes by role."""
    found: dict[str, float] = {}
    mark = os.fsencode(str(server.data))
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if mark not in (folder / "environ").read_bytes() or "python" not in command:
                continue
            status = (folder / "status").read_text()
        except OSError:
            continue
        role = next((name for part, name in ROLES.items() if part in command), None)
        size = next((int(x.split()[1]) for x in status.splitlines() if x.startswith("VmRSS")), 0)
        if role is not None:
            found[role] = found.get(role, 0) + size / 1024
    return found


if __name__ == "__main__":
    main()

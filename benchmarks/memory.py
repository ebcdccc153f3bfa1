"""Resident memory of every process of the embedded server: before, during and after a run.

    python -m benchmarks.memory [--photos DIR] [--weights DIR]

The web process never loads TensorFlow; training happens in a process that ends with its run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from tests.support.server import ROOT, LiveServer, running_server

ROLES = {
    "waitress": "web",
    "worker.child": "training process",
    "--queues=ml": "trainer (celery)",
    "--queues=default": "worker (celery)",
    "beat": "schedule",
    "server.photos.decoder": "photo decoder",
    "quickstart": "supervisor",
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("NIGHTFERRY_TEST_DATA") or ROOT.parent / "shared" / "data")
    arguments.add_argument("--photos", type=Path, default=data / "recyclables")
    arguments.add_argument("--weights", type=Path, default=data / "weights")
    options = arguments.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="nightferry-benchmark-") as folder,
        running_server(Path(folder), NIGHTFERRY_WEIGHTS=str(options.weights)) as server,
    ):
        done = server.manage("import_photos", "bench", str(options.photos), "--accept")
        assert done.returncode == 0, done.stderr
        before = memory_mib(server)
        run = server.call("POST", "/models/bench/train", {})
        during: dict[str, float] = {}
        while server.call("GET", f"/runs/{run['id']}")["state"] in ("queued", "running"):
            for role, mib in memory_mib(server).items():
                during[role] = max(during.get(role, 0), mib)
            time.sleep(0.3)
        ended = server.call("GET", f"/runs/{run['id']}")
        time.sleep(3)
        after = memory_mib(server)
    print(f"run: {ended['state']}\n\n{'MiB':<20}{'before':>10}{'peak':>10}{'after':>10}")
    for role in ROLES.values():
        row = [found.get(role) for found in (before, during, after)]
        if any(row):
            print(f"{role:<20}" + "".join(f"{'–' if v is None else f'{v:.0f}':>10}" for v in row))


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

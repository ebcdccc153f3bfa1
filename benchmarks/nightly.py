"""What a night costs: the first with 10,000 photos, a second with 100 new ones, and plain Keras.

    python -m benchmarks.nightly [--photos DIR] [--weights DIR] [--count 10000] [--new 100]

The photos are seeded variations of the real ones (``benchmarks.derived_photos``). The nights are
those of a real server: ``manage.py nightly`` in the foreground, from the start of its interpreter
to the signed release, with two files compiled and measured on every test photo. Plain Keras is a
``fit`` of the same network (the same frozen backbone, a dense softmax on top) from the same
training photos, decoded anew in every epoch as an input pipeline without a cache does, for as many
epochs as it takes to come within half a point of the night's accuracy on the test photos, which
favours it: a person would not know when. An epoch's cost is timed on 1,000 photos and counted up
(``--timed 0`` times all); imports and tests are not counted. CPU seconds compare on a machine with
other work, wall-clock seconds do not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("NIGHTFERRY_TEST_DATA") or ROOT.parent / "shared" / "data")
    arguments.add_argument("--photos", type=Path, default=data / "recyclables")
    arguments.add_argument("--weights", type=Path, default=data / "weights")
    arguments.add_argument("--count", type=int, default=10_000)
    arguments.add_argument("--new", type=int, default=100)
    arguments.add_argument("--most-epochs", type=int, default=30)
    arguments.add_argument("--timed", type=int, default=1000)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightferry-benchmark-") as folder:
        run_nights(options, Path(folder))


def run_nights(options: argparse.Namespace, folder: Path) -> None:
    env = os.environ | {
        "NIGHTFERRY_DATA": str(folder / "data"),
        "NIGHTFERRY_WEIGHTS": str(options.weights),
        "LOG_LEVEL": "WARNING",
    }
    manage(env, "migrate", "--verbosity", "0")
    second: dict = {}
    for name, first, count in (("first", 0, options.count), ("second", options.count, options.new)):
        bring = ("-m", "benchmarks.derived_photos", "bench", str(options.photos))
        cost, _ = python(env, *bring, str(first), str(count))
        show(f"{name} photos made", count, cost)
        cost, _ = manage(env, "nightly", "bench")
        run = read_run(env)
        show(f"{name} night", count, cost, run["accuracy"], run["count"])
        stages = ", ".join(f"{stage} {took:.1f}" for stage, took in run["stages"].items())
        print(f"    seconds to each stage's next line: {stages}", flush=True)
        second = {"cpu": cost.cpu_s, "wall": cost.wall_s, **run}
    keras = [str(options.most_epochs), str(second["accuracy"]), str(options.timed)]
    _, printed = python(env, "-m", "benchmarks.plain_keras", *keras)
    for line in printed.splitlines():
        if line.startswith("{"):
            epoch = json.loads(line)
            print(f"plain Keras fit: {epoch}", flush=True)
    print(
        f"\nplain Keras fit / second night: CPU {epoch['cpu_s'] / second['cpu']:.1f},"
        f" wall {epoch['wall_s'] / second['wall']:.1f};"
        f" accuracies {epoch['accuracy']:.4f} and {second['accuracy']:.4f}"
        f" on {epoch['count']} test photos"
    )


@dataclass(frozen=True)
class Cost:
    """What a process and its children took."""

    wall_s: float
    cpu_s: float
    peak_mib: float


class Watch:
    """What a process and all below it take, sampled: their most memory, and their CPU time.

    Children that nobody waits for are in no process's sum, so each is looked at itself.
    """

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._cpu_s: dict[int, float] = {}

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu_s.values())

    def watch(self, pid: int) -> None:
        threading.Thread(target=self._watch, args=(pid,), daemon=True).start()

    def _watch(self, pid: int) -> None:
        while Path(f"/proc/{pid}").exists():
            self.peak_mib = max(self.peak_mib, self._look(pid))
            time.sleep(0.2)

    def _look(self, pid: int) -> float:
        """Note the CPU time of a process and all below it; return their memory in MiB."""
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            children = [
                child for task in tasks for child in (task / "children").read_text().split()
            ]
        except OSError:
            return 0.0
        self._cpu_s[pid] = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        own = next((int(x.split()[1]) for x in status.splitlines() if x.startswith("VmRSS")), 0)
        return own / 1024 + sum(self._look(int(child)) for child in children)


def manage(env: dict, *arguments: str) -> tuple[Cost, str]:
    return python(env, "manage.py", *arguments)


def python(env: dict, *arguments: str) -> tuple[Cost, str]:
    watch, begun = Watch(), time.monotonic()
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        watch.watch(process.pid)
        output = process.communicate()[0]
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{output[-4000:]}")
    return Cost(time.monotonic() - begun, watch.cpu_s, watch.peak_mib), output


def read_run(env: dict) -> dict:
    """Return the seconds each stage of the newest run took, and what came of it."""
    script = (
        "import json\n"
        "from server.training.models import TrainingRun\n"
        "run = TrainingRun.objects.order_by('created_at').last()\n"
        "lines = [line for line in run.lines.all() if line.message or line.metrics]\n"
        "marks = [(line.at, line.stage) for line in lines] + [(run.finished_at, 'end')]\n"
        "stages = {'before the first': (marks[0][0] - run.started_at).total_seconds()}\n"
        "for (at, stage), (after, _) in zip(marks, marks[1:]):\n"
        "    stages[stage] = stages.get(stage, 0) + (after - at).total_seconds()\n"
        "print(json.dumps({'stages': stages, 'accuracy': run.version.metrics['accuracy'],"
        " 'count': run.version.metrics['count'], 'outcome': run.outcome}))\n"
    )
    return json.loads(manage(env, "shell", "--no-imports", "-c", script)[1].splitlines()[-1])


def show(
    name: str, photos: int, cost: Cost, accuracy: float | None = None, tested: int | None = None
) -> None:
    said = "" if accuracy is None else f", accuracy {accuracy:.4f} of {tested} test photos"
    print(
        f"{name}: {photos} photos, {cost.wall_s:.1f} s, CPU {cost.cpu_s:.1f} s,"
        f" peak {cost.peak_mib:.0f} MiB{said}; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()

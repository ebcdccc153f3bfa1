"""What a night costs: the first with 700 photos, a second with 20 new ones, and plain Keras.

    python -m benchmarks.nightly [--photos DIR] [--weights DIR] [--epochs 10]

The nights are those of a real server: photos imported, ``manage.py nightly`` in the foreground,
times from the run's own log. Plain Keras is a ``fit`` of the same network (the same frozen
backbone, a dense softmax on top) from the same training photos, decoded anew in every epoch as
an input pipeline without a cache does, evaluated on the same test photos. Wall-clock seconds on
this machine; the ratio is what carries over.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEW = 20


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("NIGHTFERRY_TEST_DATA") or ROOT.parent / "shared" / "data")
    arguments.add_argument("--photos", type=Path, default=data / "recyclables")
    arguments.add_argument("--weights", type=Path, default=data / "weights")
    arguments.add_argument("--epochs", type=int, default=10)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightferry-benchmark-") as folder:
        show(run_nights(options, Path(folder)), options.epochs)


def run_nights(options: argparse.Namespace, folder: Path) -> dict:
    env = os.environ | {
        "NIGHTFERRY_DATA": str(folder / "data"),
        "NIGHTFERRY_WEIGHTS": str(options.weights),
        "LOG_LEVEL": "WARNING",
    }
    paths = sorted(p for p in options.photos.glob("*/*") if p.is_file())
    # Every label gives its share of the new photos.
    late = set(paths[:: max(1, len(paths) // NEW)][:NEW])
    results: dict = {"photos": [len(paths) - len(late), len(late)]}
    manage(env, "migrate", "--verbosity", "0")
    for night, chosen in (("first", [p for p in paths if p not in late]), ("second", sorted(late))):
        source = folder / night
        for path in chosen:
            target = source / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        begun = time.monotonic()
        manage(env, "import_photos", "bench", str(source), "--accept")
        results[f"{night} import"] = time.monotonic() - begun
        memory = PeakMemory()
        begun = time.monotonic()
        manage(env, "nightly", "bench", memory=memory)
        results[f"{night} night"] = time.monotonic() - begun
        results[f"{night} peak MiB"] = memory.peak_mib
        results[f"{night} run"] = read_run(env)
    results["keras"] = json.loads(
        python(env, "-m", "benchmarks.plain_keras", str(options.epochs)).splitlines()[-1]
    )
    return results


class PeakMemory:
    """The largest resident size that a process and its children had together, sampled."""

    def __init__(self) -> None:
        self.peak_mib = 0.0

    def watch(self, pid: int) -> None:
        threading.Thread(target=self._watch, args=(pid,), daemon=True).start()

    def _watch(self, pid: int) -> None:
        while Path(f"/proc/{pid}").exists():
            self.peak_mib = max(self.peak_mib, tree_mib(pid))
            time.sleep(0.2)


def tree_mib(pid: int) -> float:
    """Return the resident memory of a process and all below it, in MiB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = next((int(x.split()[1]) for x in status.splitlines() if x.startswith("VmRSS")), 0)
    return own / 1024 + sum(tree_mib(int(child)) for child in children)


def manage(env: dict, *arguments: str, memory: PeakMemory | None = None) -> str:
    return python(env, "manage.py", *arguments, memory=memory)


def python(env: dict, *arguments: str, memory: PeakMemory | None = None) -> str:
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        if memory is not None:
            memory.watch(process.pid)
        output = process.communicate()[0]
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{output[-4000:]}")
    return output


def read_run(env: dict) -> dict:
    """Return the seconds each stage of the newest run took, and what came of it."""
    script = (
        "import json\n"
        "from server.training.models import TrainingRun\n"
        "run = TrainingRun.objects.order_by('created_at').last()\n"
        "marks = [(line.at, line.stage) for line in run.lines.all()] + [(run.finished_at, 'end')]\n"
        "stages = {}\n"
        "for (at, stage), (after, _) in zip(marks, marks[1:]):\n"
        "    stages[stage] = stages.get(stage, 0) + (after - at).total_seconds()\n"
        "print(json.dumps({'seconds': (run.finished_at - run.started_at).total_seconds(),"
        " 'stages': stages, 'accuracy': run.version.metrics['accuracy'],"
        " 'count': run.version.metrics['count'], 'outcome': run.outcome}))\n"
    )
    return json.loads(manage(env, "shell", "--no-imports", "-c", script).splitlines()[-1])


def show(results: dict, epochs: int) -> None:
    first, second, keras = results["first run"], results["second run"], results["keras"]
    photos = results["photos"]
    print(f"\n{'':<34}{'photos':>8}{'seconds':>10}{'accuracy':>10}{'peak MiB':>10}")
    nights = (("first night", photos[0], first), ("second night", photos[1], second))
    for name, count, run in nights:
        peak = results[f"{name.replace('night', 'peak MiB')}"]
        print(f"{name:<34}{count:>8}{run['seconds']:>10.1f}{run['accuracy']:>10.3f}{peak:>10.0f}")
    print(
        f"{f'plain Keras fit, {epochs} epochs':<34}{keras['photos']:>8}{keras['seconds']:>10.1f}"
        f"{keras['accuracy']:>10.3f}{keras['peak_mib']:>10.0f}"
    )
    print("\nSeconds between a stage's log lines (compiling includes measuring every file):")
    stages = sorted({*first["stages"], *second["stages"]})
    for stage in stages:
        seconds = (run["stages"].get(stage, 0) for run in (first, second))
        print(f"  {stage:<32}" + "".join(f"{value:>10.1f}" for value in seconds))
    learning = sum(second["stages"].get(name, 0) for name in ("snapshot", "embedding", "training"))
    print(f"\nsecond night / first night                {second['seconds'] / first['seconds']:.2f}")
    print(f"plain Keras fit / second night, learning  {keras['seconds'] / learning:.1f}")
    print(f"imports: {results['first import']:.1f} s and {results['second import']:.1f} s")
    print(f"test photos: {second['count']} (nights), {keras['count']} (Keras)")


if __name__ == "__main__":
    main()

"""What the SDK costs an app: time to import, and a poll that finds nothing new.

    python -m benchmarks.sdk [--runs 30] [--server URL --model NAME --trusted-root FILE]

Import times are of whole Python processes, interleaved with bare ones, medians of ``--runs``; the
difference is what the app pays. Bytes are those on the TCP connection, both ways, headers
included, counted by a relay between SDK and server (TCP/IP's own headers are not counted).
Without ``--server`` the other end is ``nightferry.testing.FakeServer``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

from nightferry import ModelClient
from nightferry.testing import FakeServer

from benchmarks.relay import Relay

STATEMENTS = {
    "bare Python": "pass",
    "import nightferry": "import nightferry",
    "from nightferry import ModelClient": "from nightferry import ModelClient",
    "... and make a client": "import nightferry; nightferry.ModelClient('http://127.0.0.1:9')",
    "... and get a local model": (
        "import nightferry, os; nightferry.ModelClient(os.environ['BENCH_URL'],"
        "cache_dir=os.environ['BENCH_CACHE']).get_model(os.environ['BENCH_MODEL'],"
        "nightferry.DownloadType.LOCAL_MODEL)"
    ),
    "for scale: import urllib.request": "import urllib.request",
    "for scale: import numpy": "import numpy",
}


def main() -> None:
    options = _options()
    with contextlib.ExitStack() as stack:
        url, model = options.server, options.model
        root = options.trusted_root
        if url is None:
            server = stack.enter_context(FakeServer())
            labels = ["cardboard", "glass", "metal", "paper", "plastic", "trash"]
            server.publish("recyclables", random.Random(1).randbytes(3_500_000), labels)
            url, model, root = server.url, "recyclables", server.root
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        relay = Relay(url)
        stack.enter_context(relay.running())
        client = ModelClient(
            relay.url,
            options.app_key,
            cache_dir=folder,
            telemetry=not options.no_telemetry,
            trusted_root=root,
        )
        print(f"against {url}, model {model}\n")
        _poll_table(client, relay, model, root)
        os.environ.update(BENCH_URL=relay.url, BENCH_CACHE=folder, BENCH_MODEL=model)
        _import_table(options.runs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--server")
    parser.add_argument("--model", default="recyclables")
    parser.add_argument("--app-key")
    parser.add_argument("--trusted-root", metavar="FILE", help="the server's root.json")
    parser.add_argument("--no-telemetry", action="store_true")
    return parser.parse_args()


def _poll_table(client: ModelClient, relay: Relay, model: str, root: bytes | str | None) -> None:
    print(f"{'step':<40}{'requests':>10}{'bytes up':>10}{'bytes down':>12}{'ms':>8}")
    steps = {
        "first install (check, file, events)": lambda: client.sync(model),
        "no-change poll": lambda: client.sync(model),
        "no-change poll, once more": lambda: client.sync(model),
        "get_model, local": lambda: client.get_model(model, "local_model"),
        "no-change poll, new process": lambda: _fresh(client, relay, root).sync(model),
    }
    for name, step in steps.items():
        relay.reset()
        started = time.perf_counter()
        step()
        elapsed_ms = (time.perf_counter() - started) * 1000
        print(
            f"{name:<40}{relay.connections:>10}{relay.up_bytes:>10}{relay.down_bytes:>12}"
            f"{elapsed_ms:>8.1f}"
        )
    print()


def _fresh(client: ModelClient, relay: Relay, root: bytes | str | None) -> ModelClient:
    return ModelClient(relay.url, cache_dir=client.cache_dir, telemetry=False, trusted_root=root)


def _import_table(runs: int) -> None:
    samples: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(runs):
        for name, statement in STATEMENTS.items():
            samples[name].append(_run_ms(statement))
    bare = statistics.median(samples["bare Python"])
    print(f"{'process':<40}{'median CPU ms':>10}{'over bare':>12}{'min..max ms':>18}")
    for name, values in samples.items():
        median = statistics.median(values)
        spread = f"{min(values):.1f}..{max(values):.1f}"
        print(f"{name:<36}{median:>14.1f}{median - bare:>12.1f}{spread:>18}")
    print(f"({runs} interleaved runs each, load average {os.getloadavg()[0]:.1f})")


def _run_ms(statement: str) -> float:
    """Return the CPU time of a process in ms: other work on the machine shows less in it."""
    process = subprocess.Popen([sys.executable, "-c", statement])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{statement!r} ended with {process.returncode}")
    return (usage.ru_utime + usage.ru_stime) * 1000


if __name__ == "__main__":
    main()

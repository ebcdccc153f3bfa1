"""What the SDK costs an app: time to import, and a poll that finds nothing new.

    python benchmarks/sdk.py [--runs 30] [--server URL --model NAME --trusted-root FILE]

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
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from nightferry import ModelClient
from nightferry.testing import FakeServer

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


class Relay:
    """Passes bytes between the SDK and a server, and counts them."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 80)
        self._listener = _listen()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.connections = self.up_bytes = self.down_bytes = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Relay until the end of the ``with``."""
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield
        finally:
            self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            with self._lock:
                self.connections += 1
            for source, sink, up in ((near, far, True), (far, near, False)):
                threading.Thread(
                    target=self._pass_on, args=(source, sink), kwargs={"up": up}, daemon=True
                ).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, *, up: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                with self._lock:
                    if up:
                        self.up_bytes += len(chunk)
                    else:
                        self.down_bytes += len(chunk)
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)


def _listen() -> socket.socket:
    for port in random.sample(range(20000, 32000), 100):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
    raise OSError("no free port")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sdk" / "src"))
    main()

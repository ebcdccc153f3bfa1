"""What a download costs, and what slow clients do to everyone else.

    python -m benchmarks.downloads [--seconds 4] [--slow 40]

First table: an artifact of 3.5 MB through the whole server of this repository, by each way of
sending it, beside nginx that serves the same bytes from a file, in the same run; four connections.
CPU is what the kernel counted for the processes named, per download. With `redirect` the bytes
come from the S3 server, whose cost is not ours; what is measured is the answer that sends there.

Second table: a quick GET while 40 clients send headers, or a body, or read a download, as slowly
as they can. A server whose every thread waits for such a client answers nobody else.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.web_load import (
    HOST,
    Measured,
    Request,
    Server,
    cpu_s,
    embedded,
    gunicorn,
    load,
    machine,
    manifest,
    released,
)
from tests.support.data import REPOSITORY
from tests.support.services import nginx, s3

ARTIFACT_BYTES = 3_500_000
QUICK = 40
PATIENCE_S = 5
SITE = """
server {{
    listen 127.0.0.1:{{port}};
    keepalive_requests 100000000;
    set $blobs_folder "{folder}/blobs";
    set $blobs_s3 http://127.0.0.1;
    include {blobs_conf};
    location / {{
        proxy_pass http://127.0.0.1:{web}; proxy_http_version 1.1; proxy_set_header Connection "";
    }}
    location /static-file {{ root {static}; }}
}}
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=4)
    arguments.add_argument("--slow", type=int, default=40)
    options = arguments.parse_args()
    print(machine())
    show_downloads(options.seconds)
    show_slow_clients(options.slow)


def show_downloads(seconds: float) -> None:
    rows = list(measure_downloads(seconds))
    base = rows[-1][1]
    print(f"\n{'a download of 3.5 MB':<34}{'CPU ms':>8}{'MB/s':>8}{'of nginx':>10}{'per s':>8}")
    for name, measured in rows:
        megabytes = measured.per_second * measured.body_bytes / 1e6
        ratio = f"{measured.per_second / base.per_second:.2f}" if measured.body_bytes else "-"
        print(
            f"{name:<34}{sum(measured.cpu_s) / measured.requests * 1e3:>8.2f}{megabytes:>8.0f}"
            f"{ratio:>10}{measured.per_second:>8.0f}"
        )


def measure_downloads(seconds: float) -> Iterator[tuple[str, Measured]]:
    """Measure every way of sending, nginx alone last."""

    def run(name: str, port: int, pids: list[int], request: Request) -> tuple[str, Measured]:
        return name, load(port, request, pids, seconds=seconds, connections=4)

    with released(ARTIFACT_BYTES) as environment:
        folder = environment["NIGHTFERRY_DATA"]
        with embedded(environment) as server:
            path = manifest(server.port)[1]["artifact"]["path"]
            get = Request(path)
            yield run("stream, embedded (waitress)", server.port, [server.pid], get)
        with gunicorn(environment) as server:
            yield run("stream, gunicorn", server.port, [server.pid], get)
        with (
            tempfile.TemporaryDirectory() as static,
            gunicorn({**environment, "ARTIFACT_DELIVERY": "accel"}) as server,
        ):
            sha256 = path.rpartition("/")[2]
            blob = Path(folder, "blobs", "sha256", sha256[:2], sha256[2:4], sha256)
            shutil.copy(blob, Path(static, "static-file"))
            conf = REPOSITORY / "deploy" / "nginx" / "blobs.conf"
            site = SITE.format(folder=folder, blobs_conf=conf, web=server.port, static=static)
            with nginx(site) as front:
                yield run("accel, gunicorn and nginx", front.port, [server.pid, front.pid], get)
                alone = run("nginx alone", front.port, [front.pid], Request("/static-file"))
    with (
        s3() as store,
        released(
            ARTIFACT_BYTES,
            BLOB_STORE_URL=store.url("benchmark"),
            ARTIFACT_DELIVERY="redirect",
            **store.environment,
        ) as environment,
        embedded(environment) as server,
    ):
        request = Request(manifest(server.port)[1]["artifact"]["path"], 302)
        yield run("redirect, the 302 alone", server.port, [server.pid], request)
    yield alone


def show_slow_clients(count: int) -> None:
    print(
        f"\n{'a quick GET beside':<34}{'median ms':>10}{'worst ms':>10}{'answered':>10}"
        f"{'CPU ms/s':>10}"
    )
    with released(ARTIFACT_BYTES) as environment:
        for name, start in (("waitress", embedded), ("gunicorn", gunicorn)):
            for kind in ("nobody", "headers", "bodies", "downloads"):
                with start(environment) as server:
                    path = manifest(server.port)[1]["artifact"]["path"]
                    beside = "nobody" if kind == "nobody" else f"{count} slow {kind}"
                    _show_quick(f"{name}, {beside}", server, kind, count, path)


def _show_quick(name: str, server: Server, kind: str, count: int, path: str) -> None:
    with slow_clients(kind, 0 if kind == "nobody" else count, server.port, path) as clients:
        before, begun = cpu_s(server.pid), time.perf_counter()
        times = []
        for _ in range(QUICK):
            times.append(quick_get(server.port))
            if times[-1] is None:
                break
            for client in clients:
                client.trickle()
        taken = time.perf_counter() - begun
        answered = [seconds * 1e3 for seconds in times if seconds is not None]
        busy = (cpu_s(server.pid) - before) / taken * 1e3
        median = f"{statistics.median(answered):.1f}" if answered else "-"
        worst = f"{max(answered):.1f}" if len(answered) == QUICK else f">{PATIENCE_S * 1000}"
        print(f"{name:<34}{median:>10}{worst:>10}{len(answered):>7}/{QUICK}{busy:>10.0f}")


def quick_get(port: int) -> float | None:
    """Return the seconds until an answer, None when there was none in time."""
    begun = time.perf_counter()
    try:
        with socket.create_connection((HOST, port), timeout=PATIENCE_S) as connection:
            connection.sendall(
                b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
            return time.perf_counter() - begun if connection.recv(100) else None
    except OSError:
        return None


class Slow:
    """A client that sends, or reads, one byte at a time."""

    def __init__(self, kind: str, port: int, path: str) -> None:
        self.kind = kind
        self.socket = socket.socket()
        # So little that most of a download stays with the server.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect((HOST, port))
        self.socket.sendall(self._opening(path))

    def _opening(self, path: str) -> bytes:
        if self.kind == "headers":
            return b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
        if self.kind == "bodies":
            return (
                b"POST /api/v1/photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            )
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    def trickle(self) -> None:
        with contextlib.suppress(OSError):
            if self.kind == "downloads":
                self.socket.recv(1)
            else:
                self.socket.sendall(b"x")


@contextlib.contextmanager
def slow_clients(kind: str, count: int, port: int, path: str) -> Iterator[list[Slow]]:
    clients = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                clients.append(Slow(kind, port, path))
        time.sleep(1)
        yield clients
    finally:
        for client in clients:
            client.socket.close()


if __name__ == "__main__":
    main()

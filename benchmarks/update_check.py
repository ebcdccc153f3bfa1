"""What an update check costs: CPU per request and requests per second, 200 and 304.

    python -m benchmarks.update_check [--seconds 4]

The whole server of this repository with one released model, under its embedded web server and
under gunicorn, bare and behind nginx (and under granian where that is installed); beside nginx
that serves the same bytes from a file, in the same run. CPU is what the kernel counted for the
server's processes, divided by the requests; it does not depend on the load generator, which runs
on the same machine and limits requests per second where it is marked (its own CPU was above
85 %). Eight connections are kept alive where the server lets them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import tempfile
from pathlib import Path

from benchmarks.web_load import (
    POLL,
    Measured,
    Request,
    embedded,
    fetch,
    granian,
    gunicorn,
    load,
    machine,
    manifest,
    released,
)
from tests.support.services import nginx

PROXY = """
upstream web {{ server 127.0.0.1:{web}; keepalive 16; keepalive_requests 100000000; }}
server {{
    listen 127.0.0.1:{{port}};
    keepalive_requests 100000000;
    location / {{
        proxy_pass http://web; proxy_http_version 1.1; proxy_set_header Connection "";
        proxy_set_header Host $host;
    }}
    location /static-answer {{ root {folder}; default_type application/json; etag on; }}
}}
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=4)
    seconds = arguments.parse_args().seconds
    print(machine())
    rows = measure(seconds)
    base = {
        status: measured.cpu_us() for name, status, measured in rows if name.startswith("nginx,")
    }
    print(f"\n{'server':<34}{'answer':>7}{'bytes':>7}{'CPU us':>9}{'of nginx':>10}{'req/s':>9}")
    for name, status, measured in rows:
        limited = "*" if measured.generator_s / measured.seconds > 0.85 else ""
        extra = f" + nginx {measured.cpu_us(1):.0f}" if len(measured.cpu_s) > 1 else ""
        print(
            f"{name:<34}{status:>7}{measured.body_bytes:>7}{measured.cpu_us():>9.0f}"
            f"{measured.cpu_us() / base[status]:>9.1f}x{measured.per_second:>9.0f}{limited}{extra}"
        )
    print("* the load generator was the limit")


def measure(seconds: float) -> list[tuple[str, int, Measured]]:
    rows: list[tuple[str, int, Measured]] = []

    def run(name: str, port: int, pids: list[int], tag: str, path: str = POLL) -> None:
        for status, headers in ((200, {}), (304, {"If-None-Match": tag})):
            request = Request(path, status, headers)
            rows.append((name, status, load(port, request, pids, seconds=seconds)))

    with contextlib.ExitStack() as stack:
        environment = stack.enter_context(released(100_000))
        with embedded(environment) as server:
            run("embedded (waitress)", server.port, [server.pid], manifest(server.port)[0])
        fast = stack.enter_context(gunicorn(environment))
        tag, _ = manifest(fast.port)
        run("gunicorn", fast.port, [fast.pid], tag)
        if importlib.util.find_spec("granian"):
            with granian(environment) as server:
                run("granian", server.port, [server.pid], tag)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "static-answer").write_bytes(fetch(fast.port, POLL)[1])
        front = stack.enter_context(nginx(PROXY.format(web=fast.port, folder=folder)))
        run("gunicorn behind nginx", front.port, [fast.pid, front.pid], tag)
        static_tag = fetch(front.port, "/static-answer")[0]["ETag"]
        run("nginx, the same bytes", front.port, [front.pid], static_tag, "/static-answer")
    return rows


if __name__ == "__main__":
    main()

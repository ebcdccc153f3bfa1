"""What an update check costs: CPU per request and requests per second, 200 and 304.

    python -m benchmarks.update_check [--seconds 4] [--rollouts [--polls 6000]]

With ``--rollouts`` instead: what a poll costs with 0, 1, 10 and 100 rollouts under way, each on a
model of its own, half of all installations in each arm: in WSGI alone, and over HTTP under
gunicorn. Each poll is of another installation and goes round the models. Their candidates are
announced without being signed, which takes minutes for a hundred models: a poll reads no metadata.

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
import http.client
import importlib.util
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.web_load import (
    POLL,
    ROOT,
    Measured,
    Request,
    Server,
    cpu_s,
    embedded,
    fetch,
    granian,
    gunicorn,
    load,
    machine,
    manifest,
    released,
)
from tests.support.processes import HOST
from tests.support.services import nginx

CONNECTIONS = 4

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
    arguments.add_argument("--rollouts", action="store_true")
    arguments.add_argument("--polls", type=int, default=6000)
    options = arguments.parse_args()
    seconds = options.seconds
    print(machine())
    if options.rollouts:
        measure_rollouts(options.polls)
        return
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


WSGI = """
import os, sys, time, django
django.setup()
from server.delivery import polls
from server.delivery.decision_set import holder
decisions = holder.refresh()
slugs = [slug for slug, one in decisions.models.items() if one.channels["production"].rollout]
slugs = slugs or ["recyclables"]
query = ("device=%s&runtime=tflite&channel=production&accept=int8,float16&platform=android"
         "&os_version=14&app_version=3.2&sdk_version=0.1.0")
environs = [
    {"REQUEST_METHOD": "GET", "PATH_INFO": f"/api/v1/models/{slugs[number % len(slugs)]}/update",
     "QUERY_STRING": query % f"5f0c6f3e-2f0a-4a3e-9d62-{number:012d}"}
    for number in range(20_000)
]
for environ in environs[:2000]:
    polls.respond(environ)
begin = time.process_time()
answers = [polls.respond(environ) for environ in environs]
seconds = time.process_time() - begin
assert all(answer.status == 200 for answer in answers)
arms = sum(b'"arm":"treatment"' in answer.body for answer in answers) / len(answers)
print(f"{seconds / len(answers) * 1e6:.1f} {arms:.3f}")
"""


def measure_rollouts(polls: int) -> None:
    print(f"\n{'rollouts':>8}{'WSGI us':>10}{'treatment':>11}{'gunicorn 200':>14}{'304':>8}")
    for count in (0, 1, 10, 100):
        with released(1000, ROLLOUTS=str(count)) as environment:
            command = [sys.executable, "-c", WSGI]
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
            )
            wsgi, share = done.stdout.split()[-2:]
            with gunicorn(environment) as server:
                paths = [_poll_of(number, count) for number in range(polls)]
                go_round(server.port, [(path, "") for path in paths[:500]])
                tags, fresh = _costed(server, [(path, "") for path in paths], 200)
                _, known = _costed(server, list(zip(paths, tags, strict=True)), 304)
        print(f"{count:>8}{wsgi:>10}{share:>11}{fresh:>14.0f}{known:>8.0f}", flush=True)


def _poll_of(number: int, rollouts: int) -> str:
    """Return the poll of one installation, of one model after the other."""
    other = number % max(rollouts, 1)
    path = POLL.replace("recyclables", f"other-{other}") if other else POLL
    return path.replace("0f3f0a5d9f31", f"{number:012d}")


def _costed(server: Server, asked: list[tuple[str, str]], status: int) -> tuple[list[str], float]:
    """Return the entity tags of the answers, and the CPU microseconds that each took."""
    before = cpu_s(server.pid)
    answers = go_round(server.port, asked)
    used = cpu_s(server.pid) - before
    if any(found != status for found, _ in answers):
        raise ValueError(f"expected {status}, got {sorted(set(answers))[:3]}")
    return [tag for _, tag in answers], used / len(asked) * 1e6


def go_round(port: int, asked: list[tuple[str, str]]) -> list[tuple[int, str]]:
    """Send polls with their entity tags over four connections; return statuses and tags."""

    def some(part: list[tuple[str, str]]) -> list[tuple[int, str]]:
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        found = []
        for path, tag in part:
            connection.request("GET", path, headers={"If-None-Match": tag} if tag else {})
            answer = connection.getresponse()
            answer.read()
            found.append((answer.status, answer.headers["ETag"]))
        connection.close()
        return found

    size = -(-len(asked) // CONNECTIONS)
    parts = [asked[start : start + size] for start in range(0, len(asked), size)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return [one for part in pool.map(some, parts) for one in part]


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

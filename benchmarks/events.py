"""What telemetry costs: events per second, CPU per event, and update checks beside it.

    python -m benchmarks.events [--seconds 8] [--rate 1000] [--batch 10]

The whole web server of this repository with one released model, and beside it a process that
counts events every five seconds as the worker does: embedded on SQLite, the same on PostgreSQL
with Redis, and as production runs it, behind nginx with two processes. One after the other: 100
update checks a second alone; the same while ``--rate`` events a second in batches of ``--batch``
go to a process that keeps nothing, which shows what the load generator costs on the same cores;
events alone; both; and as many events as two connections get through. Latencies run from the
moment a request was due, so that a server that stalls is not spared. CPU per poll beside events
is what the server's processes used for both, less what the events took alone. In the end every
event that was accepted has to be counted exactly once.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import http.server
import json
import multiprocessing
import multiprocessing.pool
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from benchmarks.update_check import PROXY
from benchmarks.web_load import POLL, ROOT, cpu_s, embedded, gunicorn, machine, released
from tests.support.processes import HOST, free_port, listens
from tests.support.services import nginx, postgresql, redis

POLLS_PER_S = 100
POLLERS = 2
SENDERS = 2
INSTALLATIONS = 20_000
KINDS = (
    {"type": "assigned"},
    {"type": "downloaded"},
    {"type": "activated"},
    {"type": "first_inference", "data": {"latency_ms": 14.2}},
    {"type": "confirmed"},
    {"type": "feedback", "data": {"correct": True}},
    {"type": "feedback", "data": {"correct": False}},
    {"type": "feedback", "data": {"correct": True}},
    {"type": "latency", "data": {"histogram": {"14": 30, "15": 12, "19": 1}}},
    {"type": "heartbeat"},
)
# As the worker's clock has it; prints how many it counted when its input ends.
DRAIN = """
import select, sys, django
django.setup()
from server.telemetry import actions
total = 0
while not select.select([sys.stdin], [], [], 5)[0]:
    total += actions.drain().events
while (drained := actions.drain()).events or not drained.is_done:
    total += drained.events
from django.db.models import Sum
from server.telemetry.models import Event, FeedbackTotal
answers = FeedbackTotal.objects.aggregate(Sum("answers"))["answers__sum"] or 0
is_sound = not Event.objects.filter(is_counted=False).exists()
feedback = Event.objects.filter(type="feedback").count()
import time
print(total, Event.objects.count(), answers == feedback and is_sound, time.process_time())
"""


@dataclass
class Sent:
    """What one phase did; latencies in seconds."""

    requests: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)

    def add(self, other: Sent) -> None:
        self.requests += other.requests
        self.accepted += other.accepted
        self.refused += other.refused
        self.seconds = max(self.seconds, other.seconds)
        self.latencies += other.latencies

    def quantile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1000


def batch_of(number: int, size: int) -> tuple[bytes, dict[str, str]]:
    """Return a batch of one installation, and headers that say it called from its own address."""
    now = datetime.now(UTC).isoformat()
    device = number % INSTALLATIONS
    arm = ("treatment", "control")[device % 2]
    events = [
        {
            "event_id": str(uuid.uuid4()),
            "device": f"5f0c6f3e-2f0a-4a3e-9d62-{device:012d}",
            "model": "recyclables",
            "channel": "production",
            "label": "v1",
            "version": 1,
            "enrolment": {"rollout": "benchmark", "arm": arm},
            "device_class": "phone-a",
            "occurred_at": now,
            **KINDS[index % len(KINDS)],
        }
        for index in range(size)
    ]
    address = f"10.{device >> 16 & 255}.{device >> 8 & 255}.{device & 255}"
    headers = {"Content-Type": "application/json", "X-Forwarded-For": address}
    return json.dumps({"events": events}).encode(), headers


def send_events(port: int, first: int, per_s: float | None, seconds: float, size: int) -> Sent:
    """Send batches for a while, ``per_s`` of them or as many as one connection gets through."""
    sent, connection = Sent(), http.client.HTTPConnection(HOST, port, timeout=60)
    begun = time.perf_counter()
    while True:
        due = begun + sent.requests / per_s if per_s else time.perf_counter()
        if due - begun >= seconds:
            sent.seconds = time.perf_counter() - begun
            return sent
        body, headers = batch_of(first + sent.requests, size)
        time.sleep(max(0.0, due - time.perf_counter()))
        connection.request("POST", "/api/v1/events", body, headers)
        answer = connection.getresponse()
        document = json.loads(answer.read())
        sent.latencies.append(time.perf_counter() - due)
        sent.requests += 1
        if answer.status != 202:
            raise ValueError(f"{answer.status} {document}")
        sent.accepted += document["accepted"]
        sent.refused += len(document["rejected"]) + document["duplicates"]


def poll(port: int, per_s: float, seconds: float) -> Sent:
    """Ask for updates at a steady rate."""
    sent, connection = Sent(), http.client.HTTPConnection(HOST, port, timeout=60)
    begun = time.perf_counter()
    while True:
        due = begun + sent.requests / per_s
        if due - begun >= seconds:
            return sent
        time.sleep(max(0.0, due - time.perf_counter()))
        connection.request("GET", POLL)
        answer = connection.getresponse()
        answer.read()
        sent.latencies.append(time.perf_counter() - due)
        sent.requests += 1
        if answer.status != 200:
            raise ValueError(str(answer.status))


def polls(port: int, seconds: float) -> Sent:
    """Ask from all pollers; runs in a process of its own."""
    total = Sent()
    with ThreadPoolExecutor(POLLERS) as pool:
        each = POLLS_PER_S / POLLERS
        for part in pool.map(lambda _: poll(port, each, seconds), range(POLLERS)):
            total.add(part)
    return total


@contextlib.contextmanager
def counting(environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", DRAIN],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Deployment:
    """A web server with what stands before it: where it listens, and whose CPU time counts."""

    name: str
    port: int
    web: int
    front: int | None = None

    def cpu_s(self) -> float:
        return cpu_s(self.web) + (cpu_s(self.front) if self.front else 0.0)


@dataclass
class Row:
    """One deployment's figures: polls alone, beside senders that talk to nobody, and beside us."""

    name: str
    alone: Sent
    control: Sent
    beside: Sent
    events: Sent
    flat_out: Sent
    poll_us: float
    beside_us: float
    event_us: float
    count_us: float
    verdict: str
    load: float


class Sink(http.server.BaseHTTPRequestHandler):
    """Takes batches and keeps nothing: what senders cost this machine by themselves."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"accepted":0,"duplicates":0,"rejected":[]}'
        self.send_response(202)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def serve_sink(port: int) -> None:
    http.server.ThreadingHTTPServer((HOST, port), Sink).serve_forever()


@contextlib.contextmanager
def sink() -> Iterator[int]:
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve_sink, args=(port,))
    process.start()
    try:
        while not listens(port):
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.join()


@dataclass
class Bench:
    """Sends to one deployment, phase after phase; no installation's events come twice."""

    pool: multiprocessing.pool.Pool
    options: argparse.Namespace
    batches: int = 0

    def send(self, port: int, rate: float | None, seconds: float) -> Sent:
        each = rate / self.options.batch / SENDERS if rate else None
        calls = []
        for _ in range(SENDERS):
            calls.append((port, self.batches, each, seconds, self.options.batch))
            self.batches += 10_000
        total = Sent()
        for part in self.pool.starmap(send_events, calls):
            total.add(part)
        return total

    def both(self, poll_port: int, event_port: int) -> tuple[Sent, Sent]:
        seconds = self.options.seconds
        polling = self.pool.apply_async(polls, (poll_port, seconds))
        events = self.send(event_port, self.options.rate, seconds)
        return polling.get(), events


def measure(
    deployment: Deployment, environment: Mapping[str, str], options: argparse.Namespace
) -> Row:
    seconds, port, load = options.seconds, deployment.port, os.getloadavg()[0]
    with (
        counting(environment) as counter,
        sink() as nowhere,
        multiprocessing.get_context("spawn").Pool(SENDERS + 1) as pool,
    ):
        bench = Bench(pool, options)
        pool.apply(polls, (port, seconds / 4))
        taken = bench.send(port, options.rate, 1).accepted

        begun = deployment.cpu_s()
        alone: Sent = pool.apply(polls, (port, seconds))
        poll_us = (deployment.cpu_s() - begun) / alone.requests * 1e6
        control, _ = bench.both(port, nowhere)
        begun, counted = deployment.cpu_s(), cpu_s(counter.pid)
        only = bench.send(port, options.rate, seconds)
        event_us = (deployment.cpu_s() - begun) / only.accepted * 1e6
        begun = deployment.cpu_s()
        beside, events = bench.both(port, port)
        used = deployment.cpu_s() - begun - event_us / 1e6 * events.accepted
        flat_out = bench.send(port, None, seconds / 2)

        assert counter.stdin is not None
        assert counter.stdout is not None
        counter.stdin.close()
        total, stored, is_sound, counter_s = counter.stdout.readline().split()
    measured = only.accepted + events.accepted + flat_out.accepted
    is_whole = is_sound == "True" and int(stored) == taken + measured
    verdict = "each counted once" if is_whole else "WRONG"
    verdict += f" ({stored} stored, {total} counted)"
    return Row(deployment.name, alone, control, beside, events, flat_out, poll_us,
               used / beside.requests * 1e6, event_us,
               (float(counter_s) - counted) / measured * 1e6, verdict, load)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--batch", type=int, default=10)
    options = parser.parse_args()
    print(machine())
    print(
        f"\n{options.rate:.0f} events/s in batches of {options.batch} for {options.seconds:.0f} s,"
        f" beside {POLLS_PER_S} polls/s\n"
        "alone: polls only; senders: the same batches go to a process that keeps nothing; events:"
        " they go to the server, and are counted\n"
    )
    print(
        f"{'':<34}{'load':>5}{'poll ms: alone':>16}{'senders':>13}{'events':>13}"
        f"{'CPU us/poll':>13}{'events':>8}{'us/event':>10}{'+count':>8}"
        f"{'events/s':>10}{'p50':>7}{'p95':>7}{'at most/s':>11}"
    )
    for row in run(options):
        print(
            f"{row.name:<34}{row.load:>5.1f}{_pair(row.alone):>16}{_pair(row.control):>13}"
            f"{_pair(row.beside):>13}{row.poll_us:>13.0f}{row.beside_us:>8.0f}"
            f"{row.event_us:>10.0f}{row.count_us:>8.0f}"
            f"{row.events.accepted / row.events.seconds:>10.0f}"
            f"{row.events.quantile_ms(0.5):>7.1f}{row.events.quantile_ms(0.95):>7.1f}"
            f"{row.flat_out.accepted / row.flat_out.seconds:>11.0f}  {row.verdict}",
            flush=True,
        )


def _pair(sent: Sent) -> str:
    return f"{sent.quantile_ms(0.5):.1f} / {sent.quantile_ms(0.95):.1f}"


def run(options: argparse.Namespace) -> Iterator[Row]:
    # A fleet's addresses are many; waitress sees through no proxy, so there it is one.
    common = {"TRUSTED_PROXIES": "1", "THROTTLE_EVENTS": "10000/second"}
    with released(100_000, **common) as environment, embedded(environment) as server:
        found = Deployment("SQLite, waitress", server.port, server.pid)
        yield measure(found, environment, options)
    with postgresql() as database, redis(append_only=True) as broker:

        def settings(number: int) -> dict[str, str]:
            urls = {"DATABASE_URL": database.create_database(), "BROKER_URL": broker.url(number)}
            return {**common, **urls}

        with released(100_000, **settings(1)) as environment, embedded(environment) as server:
            found = Deployment("PostgreSQL, Redis, waitress", server.port, server.pid)
            yield measure(found, environment, options)
        with (
            released(100_000, **settings(2)) as environment,
            gunicorn(environment, workers=2) as server,
            tempfile.TemporaryDirectory() as folder,
            nginx(PROXY.format(web=server.port, folder=folder)) as front,
        ):
            name = "PostgreSQL, Redis, nginx, gunicorn ×2"
            found = Deployment(name, front.port, server.pid, front.pid)
            yield measure(found, environment, options)


if __name__ == "__main__":
    main()

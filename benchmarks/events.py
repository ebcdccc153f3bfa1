"""What telemetry costs: events per second, CPU per event, and update checks beside it.

    python -m benchmarks.events [--seconds 8] [--rate 1000] [--batch 10]

The whole web server of this repository with one released model, and beside it a process that
counts events every five seconds as the worker does; on SQLite, and on PostgreSQL with Redis. In
one run, one after the other: 100 update checks a second alone; the same with ``--rate`` events a
second in batches of ``--batch``; and as many events as two connections get through. Latencies
run from the moment a request was due, so that a server that stalls is not spared. In the end
every event that was accepted has to be counted exactly once.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from benchmarks.web_load import (
    POLL,
    ROOT,
    Server,
    cpu_s,
    embedded,
    granian,
    gunicorn,
    machine,
    released,
)
from tests.support.processes import HOST
from tests.support.services import postgresql, redis

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


@dataclass
class Row:
    """One server's figures."""

    name: str
    alone: Sent
    beside: Sent
    events: Sent
    flat_out: Sent
    web_us: float
    count_us: float
    verdict: str
    load: float


def measure(
    name: str, server: Server, environment: Mapping[str, str], options: argparse.Namespace
) -> Row:
    seconds, size = options.seconds, options.batch
    load = os.getloadavg()[0]
    with counting(environment) as counter, multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.apply(polls, (server.port, seconds / 4))
        pool.apply(send_events, (server.port, 0, None, 0.5, 1))
        begun = cpu_s(server.pid)
        alone: Sent = pool.apply(polls, (server.port, seconds))
        per_poll = (cpu_s(server.pid) - begun) / alone.requests
        begun, counted = cpu_s(server.pid), cpu_s(counter.pid)
        polling = pool.apply_async(polls, (server.port, seconds))
        rate = options.rate / size / SENDERS
        events, beside = Sent(), Sent()
        for part in pool.starmap(
            send_events,
            [(server.port, 10_000 * i, rate, seconds, size) for i in range(1, SENDERS + 1)],
        ):
            events.add(part)
        beside.add(polling.get())
        web = cpu_s(server.pid) - begun - per_poll * beside.requests
        flat_out = Sent()
        for part in pool.starmap(
            send_events,
            [(server.port, 7_000 * i, None, seconds / 2, size) for i in range(1, SENDERS + 1)],
        ):
            flat_out.add(part)
        assert counter.stdin is not None
        assert counter.stdout is not None
        counter.stdin.close()
        output = counter.stdout.readline()
        counting_s = float(output.split()[3]) - counted
    total, stored, is_sound, _ = output.split()
    taken = events.accepted + flat_out.accepted
    # The warm-up's events are stored and counted like the others.
    missing = taken - int(stored)
    verdict = "each counted once" if is_sound == "True" and missing <= 0 else "WRONG"
    verdict += f" ({stored} stored, {total} counted)"
    return Row(name, alone, beside, events, flat_out, web / events.accepted * 1e6,
               counting_s / taken * 1e6, verdict, load)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--batch", type=int, default=10)
    options = parser.parse_args()
    print(machine())
    rows = list(run(options))
    print(
        f"\n{options.rate:.0f} events/s in batches of {options.batch} for {options.seconds:.0f} s,"
        f" beside {POLLS_PER_S} polls/s; ms; CPU in us per event\n\n"
        f"{'server':<30}{'load':>5}{'poll p50':>10}{'p99':>7}{'beside p50':>12}{'p99':>7}"
        f"{'events/s':>10}{'p50':>7}{'p99':>8}{'web':>6}{'count':>7}{'at most/s':>11}"
    )
    for row in rows:
        print(
            f"{row.name:<30}{row.load:>5.1f}{row.alone.quantile_ms(0.5):>10.1f}"
            f"{row.alone.quantile_ms(0.99):>7.1f}{row.beside.quantile_ms(0.5):>12.1f}"
            f"{row.beside.quantile_ms(0.99):>7.1f}{row.events.accepted / row.events.seconds:>10.0f}"
            f"{row.events.quantile_ms(0.5):>7.1f}{row.events.quantile_ms(0.99):>8.1f}"
            f"{row.web_us:>6.0f}{row.count_us:>7.0f}"
            f"{row.flat_out.accepted / row.flat_out.seconds:>11.0f}"
        )
    for row in rows:
        print(f"{row.name}: {row.verdict}")


def run(options: argparse.Namespace) -> Iterator[Row]:
    # A fleet's addresses are many; waitress sees through no proxy, so there it is one.
    common = {"TRUSTED_PROXIES": "1", "THROTTLE_EVENTS": "10000/second"}
    with released(100_000, **common) as environment, embedded(environment) as server:
        yield measure("SQLite, waitress", server, environment, options)
    with postgresql() as database, redis(append_only=True) as broker:
        for name, start in (("waitress", embedded), ("gunicorn", gunicorn), ("granian", granian)):
            if name == "granian" and not importlib.util.find_spec("granian"):
                continue
            broker_url = broker.url(1 + len(name))
            settings = {"DATABASE_URL": database.create_database(), "BROKER_URL": broker_url}
            with released(100_000, **common, **settings) as environment, start(environment) as web:
                yield measure(f"PostgreSQL, Redis, {name}", web, environment, options)


if __name__ == "__main__":
    main()

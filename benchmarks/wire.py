"""What updates cost a device on the wire: first install, nothing new, two nights, a rollback.

    python -m benchmarks.wire [--pairs DIR] [--backbone NAME] [--precision float16]

A whole server signs and serves; the SDK fetches through a relay that counts. The files are those
of ``benchmarks.patch_pairs``: one network, its head retrained, and its last 20 layers fine-tuned,
brought to the server as own versions. "Artifact" are the bytes of the model's file or patch that
crossed the wire, of "whole" in the file; the rest is the update check, signed metadata, headers
and events. "12 h" is the poll that also looks whether the metadata are held back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from nightferry import ModelClient
from nightferry.timing import Timing

from benchmarks import patch_pairs
from benchmarks.relay import Relay
from tests.support.server import LiveServer, running_server

MODEL = "recyclables"
NIGHTS = ("base", "head", "top20")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, help="where the files are, or will be kept")
    parser.add_argument("--precision", default="float16")
    patch_pairs.add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightferry-benchmark-") as folder:
        pairs = options.pairs or Path(folder) / "pairs"
        patch_pairs.build(pairs, options.backbone, options.data)
        files = [patch_pairs.path_of(pairs, n, "tflite", options.precision) for n in NIGHTS]
        labels = sorted(p.name for p in (options.data / "recyclables").iterdir() if p.is_dir())
        with running_server(Path(folder) / "server") as server:
            print(f"{options.backbone}, tflite {options.precision}\n")
            show(server, files, labels, Path(folder))


def show(server: LiveServer, files: list[Path], labels: list[str], folder: Path) -> None:
    base, head, top20 = files
    server.call("POST", "/models", {"slug": MODEL, "labels": labels, "is_open": True})
    done = server.manage("trust", "root", "--output", str(folder / "root.json"))
    assert done.returncode == 0, done.stderr
    clock = Clock()
    with relaying(server) as relay:
        client = ModelClient(
            relay.url,
            cache_dir=folder / "device",
            trusted_root=folder / "root.json",
            timing=Timing(now=clock),
        )
        print(
            f"{'step':<34}{'requests':>9}{'up B':>8}{'down B':>10}"
            f"{'artifact B':>12}{'whole B':>10}{'share':>8}"
        )

        def step(title: str) -> None:
            report(title, client, relay)

        release(server, base)
        step("first install")
        step("nothing new")
        clock.ahead_s += 12.5 * 3600
        step("nothing new, 12 h later")
        release(server, head)
        step("a night: head retrained")
        release(server, top20)
        step("a night: 20 layers fine-tuned")
        server.call("POST", f"/models/{MODEL}/channels/production/rollback", {})
        await_offer(server, 4)
        step("rollback to a cached version")


class Clock:
    """The device's clock, which can be put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@contextlib.contextmanager
def relaying(server: LiveServer) -> Iterator[Relay]:
    relay = Relay(server.url)
    with relay.running():
        yield relay


def report(title: str, client: ModelClient, relay: Relay) -> None:
    """Sync once and print what crossed the wire."""
    before = client.status(MODEL).last_transfer
    relay.reset()
    client.sync(MODEL)
    time.sleep(0.3)  # the relay's threads count what is on its way
    transfer = client.status(MODEL).last_transfer
    fetched = transfer.received_bytes if transfer and transfer != before else 0
    whole = transfer.size_bytes if transfer else 0
    print(
        f"{title:<34}{relay.connections:>9}{relay.up_bytes:>8}{relay.down_bytes:>10}"
        f"{fetched:>12}{whole:>10}{fetched / whole:>8.4f}",
        flush=True,
    )


def release(server: LiveServer, path: Path) -> None:
    """Bring a file as a version, release it and wait until devices are offered it."""
    run = upload(server, "own.tflite", path.read_bytes())
    ended = server.wait_for_run(run["id"])
    assert ended["state"] == "succeeded", ended["outcome"]
    made = server.call(
        "POST", f"/models/{MODEL}/channels/production/releases", {"version": ended["version"]}
    )
    await_offer(server, int(made["label"][1:]))


def await_offer(server: LiveServer, number: int) -> None:
    """Wait until polls are answered with this release."""
    query = f"/models/{MODEL}/update?device=benchmark&runtime=tflite"
    _await(lambda: (server.call("GET", query) or {}).get("label") == f"v{number}")


def upload(server: LiveServer, name: str, data: bytes) -> dict:
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(f"{server.url}/api/v1/models/{MODEL}/versions", body)
    request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
    request.add_header("Authorization", f"Bearer {server.token}")
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def _await(holds: Callable[[], bool], *, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.3)


if __name__ == "__main__":
    main()

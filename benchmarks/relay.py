"""A relay between a client and a server that counts the bytes, headers included, both ways.

TCP's and IP's own headers are not counted.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit


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

"""The parts that talk to the server, made when the first request is: they load urllib and ssl."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from nightferry import __version__, environment

if TYPE_CHECKING:
    from nightferry.cache import BlobCache
    from nightferry.download import Downloader
    from nightferry.timing import Timing
    from nightferry.transport import Transport


class Network:
    """Makes the transport and the downloader on first use, once."""

    def __init__(
        self, server_url: str, app_key: str | None, cache: BlobCache, timing: Timing
    ) -> None:
        """Remember what they need."""
        self._server_url = server_url
        self._app_key = app_key
        self._cache = cache
        self._timing = timing
        self._lock = threading.Lock()
        self._parts: tuple[Transport, Downloader] | None = None

    def transport(self) -> Transport:
        """Return what asks and posts."""
        return self._made()[0]

    def downloader(self) -> Downloader:
        """Return what brings in files."""
        return self._made()[1]

    def _made(self) -> tuple[Transport, Downloader]:
        with self._lock:
            if self._parts is None:
                from nightferry.download import Downloader
                from nightferry.transport import Transport

                transport = Transport(
                    self._server_url,
                    app_key=self._app_key,
                    user_agent=f"nightferry/{__version__}",
                    request_timeout_s=self._timing.request_timeout_s,
                    stall_timeout_s=self._timing.stall_timeout_s,
                    offline=environment.offline(),
                )
                self._parts = transport, Downloader(transport, self._cache, self._timing)
            return self._parts

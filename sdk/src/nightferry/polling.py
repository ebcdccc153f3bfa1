"""The thread that looks for updates while the app runs. It never delays the app's start."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("nightferry")


class Poller:
    """Calls ``poll`` again and again until stopped, each time after the delay it returned."""

    def __init__(self, poll: Callable[[], float], first_delay_s: float) -> None:
        """Prepare; ``poll`` returns the seconds until the next one."""
        self._poll = poll
        self._delay_s = first_delay_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nightferry-poll", daemon=True)

    def start(self) -> None:
        """Start the thread and return at once."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ask the thread to end and wait up to ``timeout_s`` for a poll under way."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopped.wait(self._delay_s):
            try:
                self._delay_s = self._poll()
            except Exception:
                logger.exception("A poll failed unexpectedly; the next one comes in an hour.")
                self._delay_s = 3600.0

"""The file broker of the embedded set-up: Celery's own, made safe for several processes.

Celery's transport writes a message in place, so a reader can see half of it, and takes one by
moving it to the machine's folder for temporary files, which may be another disk. Here both
happen by renaming within one folder.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem


class Channel(filesystem.Channel):
    """Messages are files ``{time}_{id}.{queue}.msg``, oldest first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make the folder that the messages wait in."""
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._folder = Path(self.data_folder_in)
        self._folder.mkdir(parents=True, exist_ok=True)

    def _put(  # type: ignore[override]  # kombu's own two signatures differ
        self, queue: str, payload: object, **_: Any
    ) -> None:
        """Add a message that readers see whole or not at all."""
        stem = f"{time.time_ns():020d}_{uuid.uuid4().hex}"
        draft = self._folder / f"{stem}.draft"
        draft.write_text(json.dumps(payload), encoding="utf-8")
        draft.rename(self._folder / f"{stem}.{queue}.msg")

    def _get(self, queue: str, timeout: object = None) -> Any:  # noqa: ARG002 - kombu's signature
        """Take the oldest message; raises ``Empty``.

        A message taken by a process that is then killed is lost: the ledger sends it again.
        """
        for name in sorted(path.name for path in self._folder.iterdir()):
            if name.partition(".")[2] != f"{queue}.msg":
                continue
            taken = self._folder / f"{name}.{os.getpid()}.taken"
            try:
                (self._folder / name).rename(taken)
            except FileNotFoundError:
                continue  # another worker was quicker
            text = taken.read_text(encoding="utf-8")
            taken.unlink()
            return json.loads(text)
        raise Empty


class Transport(filesystem.Transport):
    """Celery's file transport with the channel above."""

    Channel = Channel

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """Claim no host: the inherited one is announced as a warning at every connection."""
        return {"port": 0}

"""Who made a version: a word that only whoever holds the attestation key can give, and check.

The web processes hold no such key. What they write into the database is therefore signed only
where it is what a worker made, or what a person attested beside the key. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from django.conf import settings

from server import env
from server.domain.errors import Conflict, InvalidInput
from server.trust.targets import without_fractions

_FILE = "attestation.key"
_SHORTEST_KEY = 32
_VERSION = "a1"
# Seals where no key is at hand: what another process has left is then drawn up anew.
_PROCESS_KEY = secrets.token_bytes(32)


class By(StrEnum):
    """Who attests."""

    WORKER = "worker"
    PERSON = "person"


def attest(statement: Mapping[str, Any], *, by: By) -> str:
    """Return the attestation of what is about to be signed; JSON is all that it may hold.

    Raises:
        Conflict: ``attestation_key_missing``.
        InvalidInput: ``invalid_key``.

    """
    return f"{_VERSION}:{by}:{_digest(_require_key(), statement, by)}"


def verify(statement: Mapping[str, Any], attestation: str) -> By | None:
    """Return who attested exactly this; None where nobody did.

    Raises:
        Conflict: ``attestation_key_missing``.
        InvalidInput: ``invalid_key``.

    """
    key = _require_key()
    for by in By:
        expected = f"{_VERSION}:{by}:{_digest(key, statement, by)}"
        if hmac.compare_digest(expected.encode(), attestation.encode()):
            return by
    return None


def seal(content: bytes) -> str:
    """Return what shows later that whoever may sign wrote these bytes, and nobody else."""
    key = _find_key() or _PROCESS_KEY
    return hmac.new(key, b"nightferry draft\n" + content, hashlib.sha256).hexdigest()


def is_sealed(content: bytes, sealed: str) -> bool:
    """Whether the seal is of these bytes."""
    return hmac.compare_digest(seal(content).encode(), sealed.encode())


def _digest(key: bytes, statement: Mapping[str, Any], by: By) -> str:
    # As in signed metadata, so that a database may turn 1.0 into 1 on its way.
    canonical = json.dumps(
        without_fractions(dict(statement)), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    text = f"nightferry attestation\n{by}\n{canonical}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _require_key() -> bytes:
    key = _find_key()
    if key is None:
        message = (
            "The attestation key is not here. It belongs into TRUST_ATTESTATION_KEY, or into"
            f" {settings.TRUST_KEYS / _FILE}, of whatever trains and of whatever signs;"
            " docs/keys.md tells how to make one."
        )
        raise Conflict(message, code="attestation_key_missing")
    return key


def _find_key() -> bytes | None:
    """Return the key, which is made on first use where the server makes its own keys."""
    path = settings.TRUST_KEYS / _FILE
    text = env.secret("TRUST_ATTESTATION_KEY") or _read(path)
    if not text and settings.TRUST_IS_EMBEDDED:
        _make(path)
        text = _read(path)
    if not text:
        return None
    if len(text) < _SHORTEST_KEY:
        message = f"The attestation key has to be at least {_SHORTEST_KEY} characters of chance."
        raise InvalidInput(message, code="invalid_key")
    return text.encode()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        message = f"The key {path} cannot be read: {error.strerror}."
        raise InvalidInput(message, code="invalid_key") from error


def _make(path: Path) -> None:
    """Write a new key whole or not at all, and never over another."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".") as file:
            file.write(secrets.token_hex(32).encode())
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    except OSError as error:
        message = f"The attestation key cannot be written to {path}: {error.strerror}."
        raise Conflict(message, code="keys_not_writable") from error

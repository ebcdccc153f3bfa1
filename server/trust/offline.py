"""Signing what was exported, on a machine that has keys and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from server.domain.errors import InvalidInput
from server.trust.repository import Document, serialize


def sign(path: Path, signers: Sequence[CryptoSigner]) -> list[str]:
    """Add signatures to a file, and return lines that say what was signed.

    Raises:
        InvalidInput: ``invalid_metadata``.

    """
    try:
        document: Document = Metadata.from_bytes(path.read_bytes())
    except (DeserializationError, RepositoryError) as error:
        message = f"{path} is no metadata of The Update Framework."
        raise InvalidInput(message, code="invalid_metadata") from error
    for signer in signers:
        document.sign(signer, append=True)
    _replace(path, serialize(document))
    signed = document.signed
    return [
        f"{path}: {signed.type} version {signed.version}, holds until {signed.expires:%Y-%m-%d}",
        *_describe(document),
        *(f"signed by {keyid}" for keyid in document.signatures),
    ]


def _describe(document: Document) -> list[str]:
    signed = document.signed
    if isinstance(signed, Root):
        return [
            f"  {role}: {entry.threshold} of {', '.join(keyid[:8] for keyid in entry.keyids)}"
            for role, entry in signed.roles.items()
        ]
    if isinstance(signed, Targets) and signed.delegations is not None:
        return [
            f"  {name}: {', '.join(keyid[:8] for keyid in entry.keyids)}"
            f" for {' '.join(entry.paths or ())}"
            for name, entry in (signed.delegations.roles or {}).items()
        ]
    return []


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    beside.replace(path)

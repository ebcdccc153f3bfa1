"""Private keys: where they lie, and signers made from them.

Loaded by whoever signs (workers and management commands), never by a web process.
A key comes from a variable (``TRUST_SNAPSHOT_KEY``, or its ``_FILE``), from a service
(``TRUST_SNAPSHOT_URI``, such as ``awskms:<key id>``), or from a PEM file in the folder
``TRUST_KEYS``, whose name begins with its kind: ``snapshot-0a1b2c3d.pem``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from django.conf import settings
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from server import env
from server.domain.errors import Conflict, InvalidInput
from server.trust import roles

Passphrase = Callable[[Path], bytes]

_ROOT_COPY = "1.root.json"


class Keyring:
    """The keys at hand: configured ones, those in the folder, and files named for one command."""

    def __init__(self, files: Sequence[Path] = (), *, passphrase: Passphrase | None = None) -> None:
        """Load the files at once, so that a wrong one is noticed before anything is done."""
        self.named = [read_private(path, passphrase) for path in files]
        self._in_folder: dict[str, list[CryptoSigner]] = {}

    def signers(self, kind: str, keys: Mapping[str, Key]) -> list[Signer]:
        """Return a signer for each of the public keys whose private part is at hand."""
        found: dict[str, Signer] = {}
        for signer in self._private(kind):
            keyid = _matching(signer, keys)
            if keyid is not None:
                # The key's id and scheme are those that devices know, however it was read here.
                found.setdefault(keyid, signer)
        if not found and (uri := service(kind)):
            found |= {keyid: Signer.from_priv_key_uri(uri, key) for keyid, key in keys.items()}
        return list(found.values())

    def public_key(self, kind: str) -> Key | None:
        """Return the public part of the key configured for a kind; None where there is none."""
        pem = configured(kind)
        if pem:
            return _signer(pem.encode(), f"TRUST_{kind.upper()}_KEY").public_key
        files = self._folder(kind)
        return files[-1].public_key if files else None

    def _private(self, kind: str) -> Iterator[CryptoSigner]:
        yield from self.named
        if pem := configured(kind):
            yield _signer(pem.encode(), f"TRUST_{kind.upper()}_KEY")
        yield from self._folder(kind)

    def _folder(self, kind: str) -> list[CryptoSigner]:
        if kind not in self._in_folder:
            self._in_folder[kind] = [read_private(path) for path in files_of(kind)]
        return self._in_folder[kind]


def configured(kind: str) -> str:
    """Return the PEM text configured for a kind of key, else ``""``."""
    if kind == roles.TARGETS:
        return env.secret("TRUST_TARGETS_KEY")
    if kind == roles.MODELS:
        return env.secret("TRUST_MODELS_KEY")
    if kind == roles.SNAPSHOT:
        return env.secret("TRUST_SNAPSHOT_KEY")
    if kind == roles.TIMESTAMP:
        return env.secret("TRUST_TIMESTAMP_KEY")
    return ""


def service(kind: str) -> str:
    """Return the address of a service that signs for a kind of key, else ``""``."""
    return settings.TRUST_URIS.get(kind, "")


def is_embedded() -> bool:
    """Whether nothing was configured, so that the server makes its own keys."""
    return settings.TRUST_IS_EMBEDDED and not any(
        configured(kind) or service(kind) for kind in roles.KINDS
    )


def files_of(kind: str) -> list[Path]:
    """Return the private keys of a kind in the folder, the newest last."""
    with contextlib.suppress(OSError):
        found = settings.TRUST_KEYS.glob(f"{kind}-*.pem")
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))
    return []


def where(kind: str) -> str:
    """Return in words where the private keys of a kind are."""
    if configured(kind):
        return f"TRUST_{kind.upper()}_KEY"
    if address := service(kind):
        return address
    files = files_of(kind)
    return ", ".join(str(path) for path in files) if files else "not on this machine"


def read_private(path: Path, passphrase: Passphrase | None = None) -> CryptoSigner:
    """Read a private key in PEM.

    Raises:
        InvalidInput: ``invalid_key``.

    """
    try:
        content = path.read_bytes()
    except OSError as error:
        message = f"The key {path} cannot be read: {error.strerror}."
        raise InvalidInput(message, code="invalid_key") from error
    secret = passphrase(path) if b"ENCRYPTED" in content and passphrase is not None else None
    return _signer(content, str(path), secret)


def read_public(path: Path) -> Key:
    """Read a public key in PEM; a private key gives its public part.

    Raises:
        InvalidInput: ``invalid_key``.

    """
    try:
        content = path.read_bytes()
        if b"PRIVATE KEY" in content:
            return read_private(path).public_key
        return SSlibKey.from_crypto(load_pem_public_key(content))
    except OSError as error:
        message = f"The key {path} cannot be read: {error.strerror}."
        raise InvalidInput(message, code="invalid_key") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        message = f"{path} is no public key in PEM (ed25519, ECDSA or RSA)."
        raise InvalidInput(message, code="invalid_key") from error


def make_key(folder: Path, kind: str) -> Path:
    """Make an ed25519 key: ``<kind>-<id>.pem`` for the owner's eyes, ``.pub`` for everybody's.

    Raises:
        Conflict: ``keys_not_writable``.

    """
    signer = CryptoSigner.generate_ed25519()
    public = signer.public_key
    path = folder / f"{kind}-{public.keyid[:8]}.pem"
    with _writable(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path.with_suffix(".pub"), _public_pem(signer), 0o644)
        _write(path, signer.private_bytes, 0o600)
    return path


def make_embedded_keys() -> dict[str, list[Path]]:
    """Make whatever key is missing in the folder; what a start that was cut short made is kept.

    Raises:
        Conflict: ``trust_metadata_lost`` where the folder's keys belong to a repository that the
            database does not know; ``keys_not_writable``.

    """
    folder = settings.TRUST_KEYS
    if (folder / _ROOT_COPY).exists():
        message = (
            f"{folder} holds the keys of a repository, of which the database knows nothing. Restore"
            " the database from a backup. To begin anew, move that folder away: apps then need the"
            " new root, and devices that carry the old one install nothing more."
        )
        raise Conflict(message, code="trust_metadata_lost")
    with _sole_maker(folder):
        for kind in roles.KINDS:
            wanted = roles.ROOT_KEYS if kind == roles.ROOT else 1
            for _ in range(wanted - len(files_of(kind))):
                make_key(folder, kind)
        return {kind: files_of(kind) for kind in roles.KINDS}


def keep_root_copy(content: bytes, *, replace: bool = False) -> None:
    """Put the first root beside the keys it belongs to: they must never serve another one."""
    folder = settings.TRUST_KEYS
    if replace:
        with _writable(folder):
            (folder / _ROOT_COPY).unlink(missing_ok=True)
    if folder.is_dir() and not (folder / _ROOT_COPY).exists():
        with _writable(folder), contextlib.suppress(FileExistsError):
            _write(folder / _ROOT_COPY, content, 0o644)


def _matching(signer: CryptoSigner, keys: Mapping[str, Key]) -> str | None:
    own = signer.public_key
    if own.keyid in keys:
        return own.keyid
    return None


def _signer(content: bytes, name: str, secret: bytes | None = None) -> CryptoSigner:
    try:
        return CryptoSigner(load_pem_private_key(content, secret))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        message = f"{name} is no private key in PEM (ed25519, ECDSA or RSA) that can be opened."
        raise InvalidInput(message, code="invalid_key") from error


def _public_pem(signer: CryptoSigner) -> bytes:
    private = load_pem_private_key(signer.private_bytes, None)
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole or not at all, and never over another."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.link(file.name, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"Keys cannot be written to {folder}: {error.strerror}."
        raise Conflict(message, code="keys_not_writable") from error


@contextlib.contextmanager
def _sole_maker(folder: Path) -> Iterator[None]:
    with _writable(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

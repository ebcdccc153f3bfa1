"""A TUF repository on a loopback port, for tests of the workflow of the specification."""

from __future__ import annotations

import datetime as dt
import re
import threading
from collections.abc import Callable
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import quote, unquote

from nightferry.testing.server import bind
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

TOP = ("root", "timestamp", "snapshot", "targets")
NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
TOMORROW, YESTERDAY = NOW + dt.timedelta(days=1), NOW - dt.timedelta(days=1)

Answer = tuple[int, dict[str, str], bytes]
Spoil = Callable[["Repository", str, int], Answer]


class Repository:
    """Roles that a test changes and publishes, and the server that hands them out.

    ``files`` are served by path. ``spoil[path]`` are answers to give first, one per request; each
    is called with the repository, the path and where the request's range begins.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.spoil: dict[str, list[Spoil]] = {}
        self.keys = {role: [CryptoSigner.generate_ed25519()] for role in TOP}
        self.root = Root(expires=TOMORROW, consistent_snapshot=True)
        self.timestamp = Timestamp(expires=TOMORROW)
        self.snapshot = Snapshot(expires=TOMORROW, meta={})
        self.lists = {"targets": Targets(expires=TOMORROW)}
        self.with_hashes = False
        for role in TOP:
            self.root.add_key(self.keys[role][0].public_key, role)
        self.sign_root()
        self.publish()

    def __enter__(self) -> Self:
        self.http = bind(_Server, _Handler)
        self.http.repository = self
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def sign(self, role: str, signed: Signed, keys: list[CryptoSigner] | None = None) -> bytes:
        metadata: Metadata = Metadata(signed)
        for key in self.keys[role] if keys is None else keys:
            metadata.sign(key, append=True)
        return metadata.to_bytes()

    def sign_root(self, keys: list[CryptoSigner] | None = None) -> None:
        self.files[f"/metadata/{self.root.version}.root.json"] = self.sign("root", self.root, keys)

    def next_root(self, keys: list[CryptoSigner] | None = None) -> None:
        self.root.version += 1
        self.sign_root(keys)

    def replace_key(self, role: str) -> list[CryptoSigner]:
        """Name another key for a role; return the old ones."""
        old = self.keys[role]
        for key in old:
            self.root.revoke_key(key.public_key.keyid, role)
        self.keys[role] = [CryptoSigner.generate_ed25519()]
        self.root.add_key(self.keys[role][0].public_key, role)
        return old

    def publish(self) -> None:
        """Sign all but the root as it stands, and serve it."""
        for role, signed in self.lists.items():
            content = self._serve(role, signed)
            self.snapshot.meta[f"{role}.json"] = self._meta(signed, content)
        content = self._serve("snapshot", self.snapshot)
        self.timestamp.snapshot_meta = self._meta(self.snapshot, content)
        self.files["/metadata/timestamp.json"] = self.sign("timestamp", self.timestamp)

    def bump(self, *roles: str) -> None:
        """Raise versions and publish."""
        for role in roles or (*self.lists, "snapshot", "timestamp"):
            signed = {"snapshot": self.snapshot, "timestamp": self.timestamp}.get(role)
            (signed or self.lists[role]).version += 1
        self.publish()

    def add(self, path: str, content: bytes, role: str = "targets") -> str:
        """List a target; return where it is served."""
        self.lists[role].targets[path] = TargetFile.from_data(path, content, ["sha256"])
        folder, slash, name = path.rpartition("/")
        prefix = f"{sha256(content).hexdigest()}." if self.root.consistent_snapshot else ""
        served = f"/targets/{folder}{slash}{prefix}{name}"
        self.files[served] = content
        return served

    def delegate(
        self, child: str, paths: list[str] | None, parent: str = "targets", **more: object
    ) -> None:
        """Let ``parent`` delegate paths to a new role."""
        self.keys[child] = [CryptoSigner.generate_ed25519()]
        key = self.keys[child][0].public_key
        lists = self.lists[parent]
        lists.delegations = lists.delegations or Delegations({}, {})
        lists.delegations.keys[key.keyid] = key
        terminating = bool(more.pop("terminating", False))
        role = DelegatedRole(child, [key.keyid], 1, terminating, paths, **more)
        lists.delegations.roles[child] = role
        self.lists[child] = Targets(expires=TOMORROW)

    def asked(self, prefix: str) -> list[str]:
        return [path for path, _ in self.requests if path.startswith(prefix)]

    def _serve(self, role: str, signed: Signed) -> bytes:
        content = self.sign(role, signed)
        version = f"{signed.version}." if self.root.consistent_snapshot else ""
        self.files[f"/metadata/{version}{_quoted(role)}.json"] = content
        return content

    def _meta(self, signed: Signed, content: bytes) -> MetaFile:
        if not self.with_hashes:
            return MetaFile(version=signed.version)
        return MetaFile(signed.version, len(content), {"sha256": sha256(content).hexdigest()})


def _quoted(role: str) -> str:
    return quote(role, "")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    repository: Repository

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the play."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        repository = self.server.repository
        wanted = self.headers.get("Range", "")
        repository.requests.append((self.path, wanted))
        match = re.fullmatch(r"bytes=(\d+)-", wanted)
        start = int(match[1]) if match else 0
        spoilt = repository.spoil.get(self.path)
        answer = spoilt.pop(0) if spoilt else serve
        status, headers, body = answer(repository, self.path, start)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def serve(repository: Repository, path: str, start: int) -> Answer:
    """Answer as a good server does, ranges included."""
    content = repository.files.get(path, repository.files.get(unquote(path)))
    if content is None:
        return 404, {}, b"no such file"
    etag = {"ETag": f'"{sha256(content).hexdigest()}"'}
    if not start:
        return 200, etag, content
    span = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return 206, {**etag, "Content-Range": span}, content[start:]


def cut(at: int) -> Spoil:
    """Answer, and hang up after so many bytes."""

    def answer(repository: Repository, path: str, start: int) -> Answer:
        status, headers, body = serve(repository, path, start)
        return status, {**headers, "Content-Length": str(len(body))}, body[:at]

    return answer


def fixed(status: int, body: bytes, **headers: str) -> Spoil:
    """Answer this."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda *_: (status, named, body)

"""The server itself: sockets, manifests, ranged downloads, signed metadata, events, and faults."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

from nightferry.testing.signing import FakeRepository, SignedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

Document = dict[str, object]
S = TypeVar("S", bound=HTTPServer)

DEFAULT_PREPROCESSING: Document = {
    "color_space": "RGB",
    "width": 224,
    "height": 224,
    "fit": "stretch",
    "filter": "bilinear",
    "antialias": True,
    "dtype": "float32",
    "range": [0, 255],
    "mean": [127.5, 127.5, 127.5],
    "std": [127.5, 127.5, 127.5],
    "layout": "NHWC",
}
_PORTS = (20000, 32000)
_PIECE_BYTES = 1 << 14
_LOCKED = frozenset({"update", "artifact"})  # what needs the application key
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with the next ``times`` requests of a route.

    Attributes:
        route: ``update``, ``artifact``, ``metadata`` or ``events``.
        file: only requests of the file of this name, for example ``timestamp.json``.
        times: how many requests it spoils.
        status, headers, body: answer this instead (all three together).
        cut_at: close the connection after so many bytes of the body.
        pause_s: wait so long after each piece of 16 KiB.
        delay_s: wait so long before answering.
        ignore_range: answer 200 with the whole file to a Range request.
        content_range: send this Content-Range.
        etag: send this ETag.
        flip: invert this byte of the body.
        endless: send bytes without end and without a length.

    """

    route: str
    times: int = 1
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    cut_at: int | None = None
    pause_s: float = 0.0
    delay_s: float = 0.0
    ignore_range: bool = False
    content_range: str | None = None
    etag: str | None = None
    flip: int | None = None
    endless: bool = False
    file: str = ""


@dataclass(slots=True)
class Request:
    """One request that came in. ``status`` and ``sent_bytes`` (of the body) follow the answer."""

    route: str
    method: str
    path: str
    query: dict[str, str]
    headers: Message
    status: int = 0
    sent_bytes: int = 0


@dataclass
class _Published:
    decision: Document | None = None
    retired: bool = False
    number: int = 0
    revoked: list[str] = field(default_factory=list)
    embedded: list[str] = field(default_factory=list)
    patches: dict[str, SignedFile] = field(default_factory=dict)
    signed_otherwise: Document = field(default_factory=dict)
    policy_otherwise: Document = field(default_factory=dict)


class FakeServer:
    """A delivery server on a loopback port. Use it in a ``with``."""

    def __init__(
        self,
        *,
        app_key: str | None = None,
        artifacts_at: FakeServer | None = None,
        poll: Document | None = None,
        now: Callable[[], float] = time.time,
        keys_of: FakeServer | None = None,
    ) -> None:
        """Prepare a server.

        Args:
            app_key: what ``X-App-Key`` must say, None for open models.
            artifacts_at: another server that downloads are redirected to.
            poll: the manifest's ``poll`` member.
            now: the time by which metadata are signed, and which the server says it is.
            keys_of: another server that signs with the same keys; each has its own else.

        """
        self.now = now
        self.repository: FakeRepository = FakeRepository(
            self.time, keys_of=keys_of.repository if keys_of else None
        )
        self.requests: list[Request] = []
        self.events: list[Document] = []
        self.blobs: dict[str, bytes] = {}
        self.reject_events: dict[str, str] = {}
        self._app_key = app_key
        self._artifacts_at = artifacts_at
        self._poll = poll or {"interval_s": 21600, "jitter_pct": 20}
        self._models: dict[str, _Published] = {}
        self._faults: deque[Fault] = deque()
        self._seen_events: set[str] = set()
        self.lock = threading.RLock()
        self._http = bind(_Server, _Handler)
        self._http.owner = self
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.02,), name="nightferry-fake", daemon=True
        )

    @property
    def url(self) -> str:
        """Return the address to give to ``ModelClient``."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def time(self) -> float:
        """Return what time the server takes it to be."""
        return self.now()

    @property
    def root(self) -> bytes:
        """Return the root to put into an app, as ``trusted_root`` of ``ModelClient``."""
        return self.repository.first_root

    def __enter__(self) -> Self:
        """Start serving."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop serving and free the port."""
        self.stop()

    def stop(self) -> None:
        """Go away, as a server does that is gone for good."""
        self._http.shutdown()
        self._http.server_close()

    # What an operator does

    def publish(self, model: str, /, content: bytes, labels: Sequence[str], **more: object) -> str:
        """Release a file on the channel; return its label. ``more`` overrides manifest members."""
        sha256 = hashlib.sha256(content).hexdigest()
        with self.lock:
            self.blobs[sha256] = content
            published = self._models.setdefault(model, _Published())
            published.number += 1
            label = f"v{published.number}"
            artifact = {
                "path": f"/api/v1/artifacts/{sha256}",
                "runtime": "tflite",
                "precision": "float32",
                "sha256": sha256,
                "size_bytes": len(content),
                "media_type": "application/octet-stream",
            }
            published.decision = self._decide(
                model, published, kind="update", label=label, labels=list(labels)
            )
            published.decision |= {"artifact": artifact, "version": published.number, **more}
            published.embedded.clear()
            self._sign(model)
        return label

    def leave_alone(self, model: str, enrolment: Document) -> None:
        """Let installations be what a first release is compared with: in an arm, given nothing."""
        with self.lock:
            published = self._models.setdefault(model, _Published())
            published.decision = self._decide(model, published, kind="none", label="", labels=[])
            published.decision |= {"label": None, "version": None, "enrolment": enrolment}
            self._sign(model)

    def enrol(self, model: str, enrolment: Document | None) -> None:
        """Let installations take part in a rollout with what they are offered, or no longer."""
        with self.lock:
            decision = self._models[model].decision
            if decision is not None:
                decision["enrolment"] = enrolment

    def offer_patch(
        self, model: str, patch: bytes, from_sha256: str, *, algorithm: str = "nfp1"
    ) -> str:
        """Sign and offer a patch from a file to the one released now; return the patch's hash."""
        sha256 = hashlib.sha256(patch).hexdigest()
        with self.lock:
            published = self._models[model]
            to_sha256 = str(_group(published.decision, "artifact")["sha256"])
            self.blobs[sha256] = patch
            facts = {"algorithm": algorithm, "from_sha256": from_sha256}
            custom = {"kind": "patch", "model": model, **facts, "to_sha256": to_sha256}
            path = f"{model}/patches/{from_sha256}-{to_sha256}"
            published.patches[path] = SignedFile(sha256, len(patch), custom)
            offer = {**facts, "sha256": sha256, "size_bytes": len(patch)}
            offer["path"] = f"/api/v1/artifacts/{sha256}"
            patches = published.decision["patches"] if published.decision else []
            cast("list[Document]", patches).append(offer)
            self._sign(model)
        return sha256

    def roll_back_to_embedded(self, model: str, /, **more: object) -> str:
        """Tell every device to use the model inside its app; return the new label."""
        with self.lock:
            published = self._models[model]
            published.number += 1
            label = f"v{published.number}"
            published.decision = self._decide(
                model, published, kind="rollback_to_embedded", label=label, labels=[]
            )
            published.decision |= more
            published.embedded = [str(published.decision["channel"])]
            self._sign(model)
        return label

    def revoke(self, model: str, sha256: str) -> None:
        """Recall a file: devices drop it at their next check."""
        with self.lock:
            published = self._models[model]
            published.revoked.append(sha256)
            if published.decision is not None:
                published.decision["revoked"] = list(published.revoked)
            self._sign(model)

    def offer_nothing(self, model: str) -> None:
        """Have nothing for anyone: 204."""
        with self.lock:
            self._models.setdefault(model, _Published()).decision = None

    def retire(self, model: str) -> None:
        """Take the model out of service: 410."""
        with self.lock:
            self._models.setdefault(model, _Published()).retired = True

    def amend(self, model: str, /, **members: object) -> None:
        """Overwrite members of the current manifest, and sign what is signed of them."""
        with self.lock:
            self.forge(model, **members)
            self._sign(model)

    def forge(self, model: str, /, **members: object) -> None:
        """Overwrite members of the current manifest only: nobody signed that."""
        with self.lock:
            decision = self._models[model].decision
            if decision is not None:
                decision.update(members)

    def sign_otherwise(self, model: str, /, **custom: object) -> None:
        """Sign other things about the release than its manifest says; none for the truth again."""
        with self.lock:
            self._models[model].signed_otherwise = custom
            self._sign(model)

    def sign_policy(self, model: str, /, **custom: object) -> None:
        """Sign these members of the policy instead of what follows from the releases."""
        with self.lock:
            self._models[model].policy_otherwise = custom
            self._sign(model)

    def unlist(self, model: str) -> None:
        """Sign a role without the release that the manifest goes on offering."""
        with self.lock:
            published = self._models[model]
            self.repository.publish(model, _policy_file(model, published) | published.patches)

    def inject(self, *faults: Fault) -> None:
        """Spoil coming requests."""
        with self.lock:
            self._faults.extend(faults)

    def count(self, route: str) -> int:
        """Return how many requests a route has had."""
        with self.lock:
            return sum(request.route == route for request in self.requests)

    def sent_bytes(self, route: str) -> int:
        """Return how many bytes of bodies a route has sent."""
        with self.lock:
            return sum(r.sent_bytes for r in self.requests if r.route == route)

    # What a request meets

    def take_fault(self, route: str, path: str) -> Fault | None:
        """Use up one fault for this route and path."""
        with self.lock:
            for index, fault in enumerate(self._faults):
                if fault.route == route and fault.file in {"", path.rpartition("/")[2]}:
                    if fault.times > 1:
                        self._faults[index] = replace(fault, times=fault.times - 1)
                    else:
                        del self._faults[index]
                    return fault
        return None

    def admits(self, key: str | None) -> bool:
        """Tell whether an application key opens the door."""
        return self._app_key is None or key == self._app_key

    def answer_update(self, model: str, current: str | None) -> tuple[int, Document | None, str]:
        """Decide: status, manifest, ETag. The ETag does not depend on ``current``."""
        with self.lock:
            published = self._models.get(model)
            if published is None:
                return 404, None, ""
            if published.retired:
                return 410, None, ""
            if published.decision is None:
                return 204, None, ""
            decision = dict(published.decision)
        canonical = json.dumps(decision, sort_keys=True).encode()
        if current == decision["label"]:
            decision["kind"] = "none"
        return 200, decision, f'"{hashlib.sha256(canonical).hexdigest()[:32]}"'

    def metadata(self, file: str) -> bytes | None:
        """Return a file of signed metadata, None where there is none of that name."""
        self.repository.renew()
        return self.repository.files.get(file)

    def is_revoked(self, sha256: str) -> bool:
        """Tell whether a model has recalled this file."""
        with self.lock:
            return any(sha256 in published.revoked for published in self._models.values())

    def redirect_for(self, sha256: str) -> str | None:
        """Return where else the file is to be fetched, if it is."""
        if self._artifacts_at is None:
            return None
        return f"{self._artifacts_at.url}/api/v1/artifacts/{sha256}"

    def take_events(self, events: list[Document], key: str | None) -> Document:
        """Take a batch: each event once, none without the application key."""
        accepted = duplicates = 0
        rejected: list[Document] = []
        with self.lock:
            for index, event in enumerate(events):
                code = self.reject_events.get(str(event.get("type")))
                if code is None and not self.admits(key):
                    code = "not_allowed"
                if code:
                    rejected.append({"index": index, "code": code})
                elif str(event["event_id"]) in self._seen_events:
                    duplicates += 1
                else:
                    self._seen_events.add(str(event["event_id"]))
                    self.events.append(event)
                    accepted += 1
        return {"accepted": accepted, "duplicates": duplicates, "rejected": rejected}

    def note(self, request: Request) -> None:
        """Remember a request."""
        with self.lock:
            self.requests.append(request)

    def _sign(self, model: str) -> None:
        published = self._models[model]
        files = _policy_file(model, published) | published.patches
        self.repository.publish(model, files | _release_files(published))

    def _decide(
        self, model: str, published: _Published, *, kind: str, label: str, labels: list[str]
    ) -> Document:
        return {
            "spec_version": 1,
            "model": model,
            "channel": "production",
            "label": label,
            "version": published.number,
            "kind": kind,
            "reason": "released",
            "created_at": "2024-05-01T00:00:00Z",
            "mandatory": False,
            "notes": "",
            "artifact": None,
            "patches": [],
            "labels": labels,
            "preprocessing": DEFAULT_PREPROCESSING,
            "signature": {},
            "selftest": {},
            "requires": {},
            "metrics": {},
            "enrolment": None,
            "revoked": list(published.revoked),
            "policy": _policy_tag(published.revoked),
            "poll": self._poll,
            "telemetry": {"sample_bp": 10_000},
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    owner: FakeServer

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: clients that hang up are part of the play."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Say the time that the server takes it to be."""
        return super().date_time_string(int(timestamp or self.server.owner.time()))

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""

    def _route(self, method: str) -> None:
        self._owner = self.server.owner
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        route = _route_of(parts.path)
        self._request = Request(route, method, parts.path, query, self.headers)
        fault = self._owner.take_fault(route, parts.path) or Fault(route)
        time.sleep(fault.delay_s)
        # Noted before a byte is sent: whoever has read the answer finds it counted.
        self._owner.note(self._request)
        self._answer(route, parts.path, query, body, fault)

    def _answer(
        self, route: str, path: str, query: dict[str, str], body: bytes, fault: Fault
    ) -> None:
        if fault.status is not None:
            self._send(fault.status, dict(fault.headers), fault.body, fault)
        elif route in _LOCKED and not self._owner.admits(self.headers.get("X-App-Key")):
            self._problem(401, "invalid_app_key", "A valid application key is needed.")
        elif route == "update":
            self._update(path.split("/")[-2], query, fault)
        elif route == "artifact":
            self._artifact(path.rsplit("/", 1)[1], fault)
        elif route == "metadata":
            self._metadata(path.rsplit("/", 1)[1], fault)
        elif route == "events":
            key = self.headers.get("X-App-Key")
            answer = self._owner.take_events(json.loads(body)["events"], key)
            self._json(202, answer, {}, fault)
        else:
            self._problem(404, "not_found", "There is nothing here.")

    def _update(self, model: str, query: dict[str, str], fault: Fault) -> None:
        status, manifest, etag = self._owner.answer_update(model, query.get("current"))
        if status == 404:  # noqa: PLR2004
            self._problem(404, "unknown_model", f"There is no model {model}.")
        elif status == 410:  # noqa: PLR2004
            self._problem(410, "model_retired", f"The model {model} is retired.")
        elif manifest is None:
            self._send(204, {}, b"", fault)
        elif self.headers.get("If-None-Match") == etag:
            self._send(304, {"ETag": etag}, b"", fault)
        else:
            self._json(200, manifest, {"ETag": fault.etag or etag}, fault)

    def _artifact(self, sha256: str, fault: Fault) -> None:
        elsewhere = self._owner.redirect_for(sha256)
        if elsewhere:
            self._send(302, {"Location": elsewhere, "Cache-Control": "no-store"}, b"", fault)
            return
        content = self._owner.blobs.get(sha256)
        if content is None:
            self._problem(404, "unknown_artifact", "There is no such file.")
            return
        if self._owner.is_revoked(sha256):
            self._problem(410, "artifact_revoked", "This file was revoked.")
            return
        etag = fault.etag or f'"{sha256}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        start = 0 if fault.ignore_range else _range_start(self.headers, etag)
        if start == 0:
            self._send(200, headers, content, fault)
        elif start >= len(content):
            self._send(416, {"Content-Range": f"bytes */{len(content)}"}, b"", fault)
        else:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            headers["Content-Range"] = fault.content_range or span
            self._send(206, headers, content[start:], fault)

    def _metadata(self, file: str, fault: Fault) -> None:
        content = self._owner.metadata(file)
        if content is None:
            self._problem(404, "unknown_metadata", "There is no such file.")
            return
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"Content-Type": "application/json", "ETag": fault.etag or etag}
        is_known = etag in self.headers.get("If-None-Match", "")
        self._send(304 if is_known else 200, headers, b"" if is_known else content, fault)

    def _json(self, status: int, document: object, headers: dict[str, str], fault: Fault) -> None:
        typed = {"Content-Type": "application/json", **headers}
        self._send(status, typed, json.dumps(document).encode(), fault)

    def _problem(self, status: int, code: str, detail: str) -> None:
        document = {"type": "about:blank", "status": status, "code": code, "detail": detail}
        headers = {"Content-Type": "application/problem+json"}
        self._send(status, headers, json.dumps(document).encode(), Fault(""))

    def _send(self, status: int, headers: dict[str, str], body: bytes, fault: Fault) -> None:
        if fault.flip is not None and body:
            index = fault.flip % len(body)
            body = body[:index] + bytes([body[index] ^ 0xFF]) + body[index + 1 :]
        self._request.status = status
        self.close_connection = True
        self.send_response(status)
        for name, value in {"Connection": "close", **headers}.items():
            self.send_header(name, value)
        if not fault.endless and status not in {204, 304} and "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self._request.method != "HEAD":
            # A client that hangs up in the middle is part of the play.
            with contextlib.suppress(OSError):
                self._write(body, fault)

    def _write(self, body: bytes, fault: Fault) -> None:
        end = len(body) if fault.cut_at is None else min(fault.cut_at, len(body))
        for start in range(0, end, _PIECE_BYTES):
            piece = body[start : min(start + _PIECE_BYTES, end)]
            self._request.sent_bytes += len(piece)
            self.wfile.write(piece)
            time.sleep(fault.pause_s)
        while fault.endless:
            self._request.sent_bytes += _PIECE_BYTES
            self.wfile.write(bytes(_PIECE_BYTES))


def bind(server: type[S], handler: type[BaseHTTPRequestHandler]) -> S:
    """Take a free loopback port below the ephemeral range, so as to meet no outgoing connection."""
    for _ in range(200):
        port = random.randrange(*_PORTS)  # noqa: S311 - no secret
        with contextlib.suppress(OSError):
            return server(("127.0.0.1", port), handler)
    raise OSError(f"no free port between {_PORTS[0]} and {_PORTS[1]}")


def _policy_tag(revoked: Sequence[str]) -> str:
    """Return what changes with the files that the signed policy revokes."""
    document = json.dumps(sorted(revoked), separators=(",", ":"))
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def _route_of(path: str) -> str:
    if re.fullmatch(r"/api/v1/models/[^/]+/update", path):
        return "update"
    if path.startswith("/api/v1/artifacts/"):
        return "artifact"
    if path.startswith("/api/v1/metadata/"):
        return "metadata"
    return "events" if path == "/api/v1/events" else "other"


def _range_start(headers: Message, etag: str) -> int:
    """Return where a Range request begins; 0 without one, or when its If-Range does not match."""
    match = _RANGE.fullmatch(headers.get("Range", ""))
    if match is None or headers.get("If-Range", etag) != etag:
        return 0
    return int(match[1])


def _policy_file(model: str, published: _Published) -> dict[str, SignedFile]:
    custom = {
        "kind": "policy",
        "model": model,
        "min_counter": published.number,
        "revoked": list(published.revoked),
        "embedded": list(published.embedded),
        **published.policy_otherwise,
    }
    return {f"{model}/policy": SignedFile(hashlib.sha256(b"").hexdigest(), 0, custom)}


def _release_files(published: _Published) -> dict[str, SignedFile]:
    """List the file that the manifest offers, and name its path in the manifest."""
    decision = published.decision
    artifact = _group(decision, "artifact")
    if decision is None or not artifact:
        return {}
    names = ("channel", "label", "version", "mandatory", "labels", "preprocessing", "requires")
    selftest = _group(decision, "selftest").get("data")
    custom: Document = {
        "kind": "artifact",
        "model": decision["model"],
        **{name: decision[name] for name in names},
        "counter": published.number,
        "runtime": artifact["runtime"],
        "precision": artifact["precision"],
        "min_sdk": "0.1.0",
        "selftest_sha256": hashlib.sha256(str(selftest).encode()).hexdigest() if selftest else "",
        **published.signed_otherwise,
    }
    variant = f"{artifact['runtime']}-{artifact['precision']}"
    path = f"{decision['model']}/{decision['channel']}/{decision['label']}/{variant}"
    decision["artifact"] = {**artifact, "target": path}
    size_bytes = cast("int", artifact["size_bytes"])
    file = SignedFile(str(artifact["sha256"]), size_bytes, cast("Document", _whole(custom)))
    return {path: file}


def _whole(value: object) -> object:
    """Write fractions as text: canonical JSON has none."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else repr(value)
    return value


def _group(document: Document | None, member: str) -> Document:
    value = (document or {}).get(member)
    return value if isinstance(value, dict) else {}

"""The manifest: the server's answer to an update check, read strictly where the SDK relies on it.

Members this version does not know are ignored and kept; a member it needs and does not find, or
finds distorted, is an ``InvalidManifestError`` that names it.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, cast

from nightferry.errors import InvalidManifestError
from nightferry.models import Enrolment

if TYPE_CHECKING:
    from collections.abc import Mapping

SPEC_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_ARTIFACT_BYTES = 1 << 40
_MAX_DEPTH = 64
_MAX_SHARE_BP = 10_000

Document = dict[str, object]


class Kind(StrEnum):
    """What the manifest asks for."""

    UPDATE = "update"
    ROLLBACK_TO_EMBEDDED = "rollback_to_embedded"
    NONE = "none"


@dataclass(frozen=True)
class Artifact:
    """The file to install: its path below the server, hash and exact size in bytes.

    ``target`` is the path under which signed metadata list it, empty where the server names none.
    """

    path: str
    runtime: str
    precision: str
    sha256: str
    size_bytes: int
    media_type: str
    target: str = ""


@dataclass(frozen=True)
class Patch:
    """A file that turns the one with ``from_sha256`` into the artifact. A hint, as all is here."""

    algorithm: str
    from_sha256: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """One parsed manifest. ``document`` is what the server sent, unknown members included.

    ``sample_bp`` is the share of installations, in basis points, that report feedback and
    latencies; None for all.
    """

    model: str
    channel: str
    label: str
    version: int
    kind: Kind
    reason: str
    notes: str
    mandatory: bool
    artifact: Artifact | None
    patches: tuple[Patch, ...]
    labels: tuple[str, ...]
    preprocessing: Mapping[str, object]
    selftest: Mapping[str, object]
    enrolment: Enrolment | None
    revoked: frozenset[str]
    poll_interval_s: float | None
    poll_jitter: float | None
    document: Document
    sample_bp: int | None = None

    @property
    def signature(self) -> Mapping[str, object]:
        """Return what the server says of inputs and outputs; the file itself decides."""
        told = self.document.get("signature")
        return cast("Document", told) if isinstance(told, dict) else {}

    @property
    def release_number(self) -> int:
        """Return the number in a label such as ``v12``, 0 where there is none."""
        digits = re.fullmatch(r"v(\d{1,18})", self.label)
        return int(digits[1]) if digits else 0

    def required_artifact(self) -> Artifact:
        """Return the artifact of an ``update``; raise InvalidManifestError where there is none."""
        if self.artifact is None:
            raise InvalidManifestError(_sentence("artifact", "is missing"))
        return self.artifact


def parse_json(text: bytes) -> Document:
    """Decode one JSON object; raise InvalidManifestError for anything else."""
    try:
        document = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        message = "The manifest is not valid JSON."
        raise InvalidManifestError(message) from error
    if not isinstance(document, dict):
        message = "The manifest is not a JSON object."
        raise InvalidManifestError(message)
    return document


def parse_manifest(document: object) -> Manifest:
    """Check a decoded manifest and give it types; raise InvalidManifestError naming the member."""
    if not isinstance(document, dict):
        message = "The manifest is not a JSON object."
        raise InvalidManifestError(message)
    reader = _Reader(cast("Document", document))
    _check_depth(document)
    _check_spec_version(reader)
    kind = _parse_kind(reader)
    poll = reader.group("poll")
    return Manifest(
        model=reader.text("model"),
        channel=reader.text("channel", default=""),
        label=reader.text("label", default="" if kind is not Kind.UPDATE else None),
        version=reader.integer("version", default=0 if kind is not Kind.UPDATE else None),
        kind=kind,
        reason=reader.text("reason", default=""),
        notes=reader.text("notes", default=""),
        mandatory=reader.boolean("mandatory"),
        artifact=_parse_artifact(reader, required=kind is Kind.UPDATE),
        patches=_parse_patches(reader),
        labels=reader.texts("labels"),
        preprocessing=reader.group("preprocessing").document,
        selftest=reader.group("selftest").document,
        enrolment=_parse_enrolment(reader),
        revoked=frozenset(_parse_revoked(reader)),
        poll_interval_s=poll.number("interval_s"),
        poll_jitter=_fraction(poll.number("jitter_pct")),
        document=cast("Document", document),
        sample_bp=_parse_sample(reader),
    )


class _Reader:
    """Reads members of one JSON object, with their dotted name in every complaint."""

    def __init__(self, document: Document, prefix: str = "") -> None:
        self.document = document
        self._prefix = prefix

    def name(self, member: str) -> str:
        return self._prefix + member

    def text(self, member: str, *, default: str | None = None) -> str:
        value = self.document.get(member)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or (default is None and not value):
            raise InvalidManifestError(_sentence(self.name(member), "is not a text", value))
        return value

    def integer(self, member: str, *, default: int | None = None) -> int:
        value = self.document.get(member)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            complaint = "is not a whole number of at least 0"
            raise InvalidManifestError(_sentence(self.name(member), complaint, value))
        return value

    def number(self, member: str) -> float | None:
        value = self.document.get(member)
        if value is None:
            return None
        usable = isinstance(value, int | float) and not isinstance(value, bool)
        # A number with hundreds of digits is legal JSON and no float.
        if not usable or not 0 <= cast("float", value) <= _MAX_ARTIFACT_BYTES:
            raise InvalidManifestError(_sentence(self.name(member), "is not a number", value))
        return float(cast("float", value))

    def boolean(self, member: str) -> bool:
        value = self.document.get(member, False)
        if not isinstance(value, bool):
            raise InvalidManifestError(_sentence(self.name(member), "is not true or false", value))
        return value

    def group(self, member: str) -> _Reader:
        value = self.document.get(member)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise InvalidManifestError(_sentence(self.name(member), "is not an object", value))
        return _Reader(value, self.name(member) + ".")

    def texts(self, member: str) -> tuple[str, ...]:
        value = self.document.get(member)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidManifestError(_sentence(self.name(member), "is not a list of texts"))
        return tuple(value)

    def sha256(self, member: str) -> str:
        value = self.text(member)
        if not _SHA256.fullmatch(value):
            complaint = "is not a SHA-256 in lower-case hexadecimal"
            raise InvalidManifestError(_sentence(self.name(member), complaint, value))
        return value


def _check_depth(value: object, depth: int = 0) -> None:
    """Refuse nesting that would overflow the stack when the state is written."""
    if depth > _MAX_DEPTH:
        message = f"The manifest is nested more than {_MAX_DEPTH} levels deep."
        raise InvalidManifestError(message)
    if isinstance(value, dict):
        for item in value.values():
            _check_depth(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_depth(item, depth + 1)


def _check_spec_version(reader: _Reader) -> None:
    version = reader.integer("spec_version")
    if version != SPEC_VERSION:
        message = (
            f"The manifest follows specification {version}; this SDK reads {SPEC_VERSION}. "
            "Update the nightferry package in the app."
        )
        raise InvalidManifestError(message)


def _parse_kind(reader: _Reader) -> Kind:
    value = reader.text("kind")
    if value not in set(Kind):
        raise InvalidManifestError(_sentence("kind", "is not one this SDK knows", value))
    return Kind(value)


def _parse_artifact(reader: _Reader, *, required: bool) -> Artifact | None:
    if reader.document.get("artifact") is None and not required:
        return None
    group = reader.group("artifact")
    return Artifact(
        path=_parse_path(group),
        runtime=group.text("runtime"),
        precision=group.text("precision", default=""),
        sha256=group.sha256("sha256"),
        size_bytes=_parse_size(group),
        media_type=group.text("media_type", default="application/octet-stream"),
        target=group.text("target", default=""),
    )


def _parse_patches(reader: _Reader) -> tuple[Patch, ...]:
    """Read the patches; one that cannot be used is passed over, the whole file is always there."""
    listed = reader.document.get("patches")
    patches = []
    for document in listed if isinstance(listed, list) else []:
        with contextlib.suppress(InvalidManifestError, AttributeError):
            group = _Reader(cast("Document", document), "patches.")
            patches.append(
                Patch(
                    algorithm=group.text("algorithm"),
                    from_sha256=group.sha256("from_sha256"),
                    sha256=group.sha256("sha256"),
                    size_bytes=_parse_size(group),
                )
            )
    return tuple(patches)


def _parse_path(group: _Reader) -> str:
    """Accept a path below the configured server only: a manifest never names another host."""
    path = group.text("path")
    safe = path.startswith("/") and not path.startswith("//") and path.isascii()
    if not safe or not path.isprintable() or "\\" in path or " " in path:
        raise InvalidManifestError(_sentence(group.name("path"), "is not a path", path))
    return path


def _parse_size(group: _Reader) -> int:
    size = group.integer("size_bytes")
    if not 0 < size <= _MAX_ARTIFACT_BYTES:
        complaint = "is not a possible size"
        raise InvalidManifestError(_sentence(group.name("size_bytes"), complaint, size))
    return size


def _parse_enrolment(reader: _Reader) -> Enrolment | None:
    if reader.document.get("enrolment") is None:
        return None
    group = reader.group("enrolment")
    rollout = group.document.get("rollout")
    if isinstance(rollout, int) and not isinstance(rollout, bool):
        return Enrolment(rollout, group.text("arm"))
    return Enrolment(group.text("rollout"), group.text("arm"))


def _parse_revoked(reader: _Reader) -> tuple[str, ...]:
    hashes = reader.texts("revoked")
    if not all(_SHA256.fullmatch(value) for value in hashes):
        complaint = "holds something that is not a SHA-256 in lower-case hexadecimal"
        raise InvalidManifestError(_sentence("revoked", complaint))
    return hashes


def _parse_sample(reader: _Reader) -> int | None:
    """Read the share that reports samples; what makes no sense asks for nothing."""
    telemetry = reader.document.get("telemetry")
    share = telemetry.get("sample_bp") if isinstance(telemetry, dict) else None
    return share if type(share) is int and 0 <= share <= _MAX_SHARE_BP else None


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _finite(digits: str) -> float:
    """Read a number; one beyond all floats could not be written again."""
    number = float(digits)
    if not math.isfinite(number):
        _refuse_constant(digits[:20])
    return number


def _refuse_constant(name: str) -> object:
    message = f"{name} is not JSON"
    raise ValueError(message)


def _sentence(member: str, complaint: str, value: object = None) -> str:
    shown = "" if value is None else f": {str(value)[:80]!r}"
    return f"The manifest's member '{member}' {complaint}{shown}."

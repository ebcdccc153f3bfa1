"""Who decides which bytes may be installed: signed metadata, and nothing else.

The update check's answer is an unsigned hint that names a target. ``TufVerifier`` looks it up in
metadata of The Update Framework that are signed, starting from the root which the app carries, and
compares what the hint says with what was signed (docs/trust.md). What must be known about a file
stands in the target's ``custom``; per model a policy target carries the lowest counter that may be
installed and the files that are recalled.

The parts that check signatures are loaded with the first refresh, not before.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeGuard

from nightferry import __version__
from nightferry.errors import (
    ConfigurationError,
    CounterTooLowError,
    IntegrityError,
    ManifestMismatchError,
    MetadataInvalidError,
    NoTrustedRootError,
    RevokedError,
    SdkTooOldError,
    TargetUnlistedError,
    TrustError,
    WrongVariantError,
)
from nightferry.manifest import parse_manifest
from nightferry.state import REFRESH_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightferry.manifest import Manifest
    from nightferry.metadata import MetadataStore
    from nightferry.timing import Timing
    from nightferry.transport import Transport

_ARTIFACTS = "/api/v1/artifacts/"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FRACTION = re.compile(r"-?\d+(?:\.\d+(?:e[+-]?\d{1,3})?|e[+-]?\d{1,3})", re.ASCII)


@dataclass(frozen=True)
class Target:
    """What may be installed: a hash, an exact size in bytes, and the path to fetch it from."""

    sha256: str
    size_bytes: int
    path: str


@dataclass(frozen=True)
class Policy:
    """A model's signed policy.

    Attributes:
        min_counter: the lowest counter that may be installed.
        revoked: hashes of files that no device may run any more, installed or not.
        embedded_channels: where devices shall return to the model in their app.
        repository: names the first root that was trusted here; counters of two repositories have
            nothing to do with each other. Empty where that is not known.

    """

    min_counter: int = 0
    revoked: frozenset[str] = frozenset()
    embedded_channels: frozenset[str] = frozenset()
    repository: str = field(default="", compare=False)


@dataclass(frozen=True)
class PatchTarget:
    """A signed patch: its file, how it is encoded, and the file it applies to."""

    target: Target
    algorithm: str
    from_sha256: str


@dataclass(frozen=True)
class Authorisation:
    """A file that may be installed, and what was signed about its release.

    ``manifest`` is the one that was offered, with preprocessing and self-test as they were signed.
    """

    target: Target
    counter: int
    mandatory: bool
    manifest: Manifest


@dataclass(frozen=True)
class Listed:
    """A target as the signed metadata list it."""

    path: str
    sha256: str
    size_bytes: int
    custom: Mapping[str, object]


class TrustedMetadata(Protocol):
    """Metadata whose signatures, dates and versions have been checked."""

    def find(self, path: str) -> Listed | None:
        """Return the target of that path, None where nobody lists it."""


class Verifier(Protocol):
    """Turns the server's wish into what may be installed, or refuses."""

    def refresh(self, model: str) -> Policy:
        """Bring the metadata up to date over the network; return the model's policy.

        A model that nobody lists has the empty policy. Raises TrustError, NetworkError,
        StorageError.
        """

    def known_policy(self, model: str) -> Policy | None:
        """Return the policy last seen, without the network and whatever its age; None if none.

        Waits for nobody, not even for a refresh under way.
        """

    def authorise(self, manifest: Manifest, *, floor: int) -> Authorisation:
        """Return the file that may be installed for this manifest; raise TrustError to refuse.

        Call ``refresh`` first. ``floor`` is the highest counter this device has ever seen.
        """

    def authorise_patch(self, model: str, from_sha256: str, to_sha256: str) -> PatchTarget | None:
        """Return the signed patch from one file to another, None where there is none."""


class TufVerifier:
    """Installs only what metadata list that were signed below the app's own root.

    Args:
        root: the root metadata that the app carries, or the path of the file, which is read when
            it is needed; None for none.
        folder: where trusted metadata are kept, for one server; it is made when needed.
        transport: gives what talks to the server; called with the first refresh.
        channel, runtime: the app's own.
        accept: precisions the app can run; None for any.
        trust_on_first_use: without a root, believe the first one that the server hands out.
        timing: clock, time-outs and pauses.

    """

    def __init__(
        self,
        *,
        root: bytes | str | Path | None,
        folder: Path,
        transport: Callable[[], Transport],
        channel: str,
        runtime: str,
        accept: Sequence[str] | None,
        trust_on_first_use: bool,
        timing: Timing,
    ) -> None:
        """Prepare; touches neither network nor disk."""
        self._root = root
        self._folder = folder
        self._transport = transport
        self._channel = channel
        self._runtime = runtime
        self._accept = None if accept is None else frozenset(accept)
        self._trust_on_first_use = trust_on_first_use
        self._timing = timing
        self._lock = threading.RLock()
        self._making = threading.Lock()
        self._made_store: MetadataStore | None = None
        self._seen: dict[str, tuple[float, TrustedMetadata]] = {}

    def refresh(self, model: str) -> Policy:
        """Bring the metadata up to date; see Verifier."""
        with self._lock:
            trusted = self._store().refresh(model)
            self._seen[model] = self._timing.now(), trusted
            return replace(_policy(model, trusted), repository=trusted.repository)

    def known_policy(self, model: str) -> Policy | None:
        """Return the policy last seen; see Verifier."""
        if not self._folder.is_dir():
            return None
        try:
            trusted = self._store().load(model)
            return None if trusted is None else _policy(model, trusted)
        except (TrustError, ConfigurationError):
            return None

    def authorise(self, manifest: Manifest, *, floor: int) -> Authorisation:
        """Look the manifest's target up and compare; see Verifier."""
        trusted = self._current(manifest.model)
        policy = _policy(manifest.model, trusted)
        name = f"{manifest.model} {manifest.label}"
        artifact = manifest.required_artifact()
        _refuse_revoked(name, artifact.sha256, policy)
        own = artifact.target.startswith(f"{manifest.model}/")
        listed = trusted.find(artifact.target) if own else None
        if listed is None:
            raise TargetUnlistedError(
                f"The update check offers {name} as {artifact.target!r}, which the signed metadata "
                "do not list. If it is new, it will be tried again; if not, somebody between this "
                "device and the signing keys makes it up."
            )
        release = _Release.read(listed)
        self._refuse_wrong_variant(name, release)
        _refuse_mismatch(name, manifest, release)
        _refuse_revoked(name, listed.sha256, policy)
        _refuse_too_new(name, release.min_sdk)
        _refuse_too_old(name, release.counter, policy, floor)
        signed = _as_signed(manifest, release)
        return Authorisation(_target(listed), release.counter, release.mandatory, signed)

    def authorise_patch(self, model: str, from_sha256: str, to_sha256: str) -> PatchTarget | None:
        """Look the patch up; see Verifier."""
        listed = self._current(model).find(f"{model}/patches/{from_sha256}-{to_sha256}")
        if listed is None:
            return None
        reader = _Custom(listed)
        reader.require("kind", "patch")
        reader.require("model", model)
        reader.require("from_sha256", from_sha256)
        reader.require("to_sha256", to_sha256)
        return PatchTarget(_target(listed), reader.text("algorithm"), from_sha256)

    def _store(self) -> MetadataStore:
        with self._making:
            return self._made()

    def _made(self) -> MetadataStore:
        if self._made_store is None:
            if self._root is None and not self._trust_on_first_use:
                raise NoTrustedRootError(
                    "This app carries no root of trust, so nothing is installed. Pass the server's "
                    "root.json as trusted_root. To believe whatever root the server hands out "
                    "first, pass trust_on_first_use=True."
                )
            from nightferry.metadata import MetadataStore

            self._made_store = MetadataStore(
                read_root(self._root), self._folder, self._transport, self._timing
            )
        return self._made_store

    def _current(self, model: str) -> TrustedMetadata:
        """Return metadata of this process that are fresh enough to install something by."""
        with self._lock:
            refreshed_at, _ = self._seen.get(model, (float("-inf"), None))
            if not 0 <= self._timing.now() - refreshed_at < REFRESH_AFTER_S:
                self.refresh(model)
            return self._seen[model][1]

    def _refuse_wrong_variant(self, name: str, release: _Release) -> None:
        for what, signed, own in (
            ("runtime", release.runtime, self._runtime),
            ("channel", release.channel, self._channel),
        ):
            if signed != own:
                raise WrongVariantError(
                    f"The file offered as {name} is for the {what} {signed!r}; this app's is "
                    f"{own!r}. It is not installed."
                )
        if self._accept is not None and release.precision not in self._accept:
            raise WrongVariantError(
                f"The file offered as {name} is {release.precision}; this app accepts "
                f"{', '.join(sorted(self._accept))}. It is not installed."
            )


def read_root(trusted_root: bytes | bytearray | str | Path | None) -> bytes | None:
    """Return the root an app passed, as bytes or as the path of a file.

    Raises ConfigurationError where the file cannot be read or holds no JSON.
    """
    if trusted_root is None:
        return None
    try:
        if isinstance(trusted_root, bytes | bytearray):
            content = bytes(trusted_root)
        else:
            content = _read(Path(trusted_root))
        json.loads(content)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        given = isinstance(trusted_root, bytes | bytearray)
        shown = "trusted_root" if given else repr(str(trusted_root))
        raise ConfigurationError(
            f"{shown} is not the server's root.json ({error}). Put that file into the app and "
            "pass its path or its bytes."
        ) from error
    return content


def check_digest(actual: str, target: Target, name: str) -> None:
    """Raise IntegrityError unless the bytes received are those that were authorised."""
    if actual != target.sha256:
        message = (
            f"The bytes of {name} have SHA-256 {actual[:12]}…, not {target.sha256[:12]}… as "
            "promised. They were thrown away."
        )
        raise IntegrityError(message)


@dataclass(frozen=True)
class _Release:
    """The signed facts of one release's file."""

    listed: Listed
    model: str
    channel: str
    label: str
    version: int
    counter: int
    runtime: str
    precision: str
    min_sdk: str
    mandatory: bool
    labels: tuple[str, ...]
    preprocessing: dict[str, object]
    selftest_sha256: str

    @classmethod
    def read(cls, listed: Listed) -> _Release:
        reader = _Custom(listed)
        reader.require("kind", "artifact")
        return cls(
            listed=listed,
            model=reader.text("model"),
            channel=reader.text("channel"),
            label=reader.text("label"),
            version=reader.integer("version"),
            counter=reader.integer("counter"),
            runtime=reader.text("runtime"),
            precision=reader.text("precision"),
            min_sdk=reader.text("min_sdk"),
            mandatory=reader.boolean("mandatory"),
            labels=reader.texts("labels"),
            preprocessing=reader.group("preprocessing"),
            selftest_sha256=reader.text("selftest_sha256"),
        )


class _Custom:
    """Reads the signed ``custom`` of one target strictly."""

    def __init__(self, listed: Listed) -> None:
        self._listed = listed

    def require(self, member: str, expected: str) -> None:
        if self._listed.custom.get(member) != expected:
            raise self._error(member)

    def text(self, member: str) -> str:
        value = self._listed.custom.get(member)
        if not isinstance(value, str):
            raise self._error(member)
        return value

    def integer(self, member: str) -> int:
        value = self._listed.custom.get(member)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._error(member)
        return value

    def boolean(self, member: str) -> bool:
        value = self._listed.custom.get(member)
        if not isinstance(value, bool):
            raise self._error(member)
        return value

    def texts(self, member: str) -> tuple[str, ...]:
        value = self._listed.custom.get(member)
        if not _are_texts(value):
            raise self._error(member)
        return tuple(value)

    def group(self, member: str) -> dict[str, object]:
        """Return an object with the numbers that its texts stand for."""
        value = with_fractions(self._listed.custom.get(member))
        if not isinstance(value, dict):
            raise self._error(member)
        return value

    def _error(self, member: str) -> MetadataInvalidError:
        shown = str(self._listed.custom.get(member))[:80]
        return MetadataInvalidError(
            f"The signed metadata of {self._listed.path!r} say {member} = {shown!r}, which this "
            "SDK cannot follow. Update the nightferry package in the app, or tell the server's "
            "operator."
        )


def _policy(model: str, trusted: TrustedMetadata) -> Policy:
    listed = trusted.find(f"{model}/policy")
    if listed is None:
        return Policy()
    reader = _Custom(listed)
    reader.require("kind", "policy")
    reader.require("model", model)
    return Policy(
        min_counter=reader.integer("min_counter"),
        revoked=frozenset(reader.texts("revoked")),
        embedded_channels=frozenset(reader.texts("embedded")),
    )


def _target(listed: Listed) -> Target:
    if not _SHA256.fullmatch(listed.sha256) or listed.size_bytes <= 0:
        raise MetadataInvalidError(
            f"The signed metadata state no usable SHA-256 and size for {listed.path!r}."
        )
    return Target(listed.sha256, listed.size_bytes, _ARTIFACTS + listed.sha256)


def _refuse_revoked(name: str, sha256: str, policy: Policy) -> None:
    if sha256 in policy.revoked:
        raise RevokedError(f"The file of {name} ({sha256[:12]}…) has been recalled.")


def _refuse_mismatch(name: str, manifest: Manifest, release: _Release) -> None:
    """Compare everything that the app will rely on with what was signed about this very file."""
    artifact = manifest.required_artifact()
    pairs: dict[str, tuple[object, object]] = {
        "sha256": (artifact.sha256, release.listed.sha256),
        "size_bytes": (artifact.size_bytes, release.listed.size_bytes),
        "model": (manifest.model, release.model),
        "channel": (manifest.channel, release.channel),
        "label": (manifest.label, release.label),
        "version": (manifest.version, release.version),
        "runtime": (artifact.runtime, release.runtime),
        "precision": (artifact.precision, release.precision),
        "labels": (list(manifest.labels), list(release.labels)),
        "preprocessing": (dict(manifest.preprocessing), release.preprocessing),
        "selftest": (_selftest_sha256(manifest), release.selftest_sha256),
    }
    differing = [what for what, (said, signed) in pairs.items() if not same_json(said, signed)]
    if differing:
        raise ManifestMismatchError(
            f"The update check says of {name} other things than what was signed: "
            f"{', '.join(differing)}. Somebody changed the answer on its way, or the server's "
            "database and its metadata differ."
        )


def same_json(one: object, other: object) -> bool:
    """Compare JSON by value and by type: a text is never a number, 255 and 255.0 are one."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return _kind(one) is _kind(other) and one == other


def _kind(value: object) -> type:
    return float if type(value) is int else type(value)


def with_fractions(value: object) -> object:
    """Return what was signed as it was meant: there, fractions stand as their decimal text."""
    if isinstance(value, dict):
        return {name: with_fractions(one) for name, one in value.items()}
    if isinstance(value, list):
        return [with_fractions(one) for one in value]
    return float(value) if isinstance(value, str) and _FRACTION.fullmatch(value) else value


def _as_signed(manifest: Manifest, release: _Release) -> Manifest:
    """Return a manifest in which what the app relies on is what was signed, to the letter.

    Of the self-test only the data are signed: what is wrapped around them counts for nothing.
    """
    sha256 = release.selftest_sha256
    selftest: dict[str, object] = {}
    if sha256:
        selftest = {"format": 1, "sha256": sha256, "data": manifest.selftest.get("data")}
    signed = {"preprocessing": release.preprocessing, "selftest": selftest}
    return parse_manifest({**manifest.document, **signed})


def _selftest_sha256(manifest: Manifest) -> str:
    selftest = manifest.document.get("selftest")
    data = selftest.get("data") if isinstance(selftest, dict) else None
    if not data:
        return ""
    import hashlib  # OpenSSL behind it is slow to load

    return hashlib.sha256(data.encode()).hexdigest() if isinstance(data, str) else "not a text"


def _refuse_too_new(name: str, min_sdk: str) -> None:
    if _numbers(min_sdk) > _numbers(__version__):
        raise SdkTooOldError(
            f"{name} needs nightferry {min_sdk}; this app has {__version__}. Update the package "
            "in the app."
        )


def _refuse_too_old(name: str, counter: int, policy: Policy, floor: int) -> None:
    lowest = max(policy.min_counter, floor)
    if counter < lowest:
        raise CounterTooLowError(
            f"{name} has the counter {counter}, and this device installs none below {lowest}: "
            "somebody offers an old release again. A rollback is a new release of old bytes."
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, without zeros at the end: 1.2.0 equals 1.2."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(number[:9]) for number in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _read(path: Path) -> bytes:
    return path.expanduser().read_bytes()

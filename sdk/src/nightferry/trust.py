"""Who decides which bytes may be installed.

Today there is one rule, and it is plain: the hash and size that the configured server states in
its manifest, over the connection to that server. There are no signatures yet; whoever controls
the server, or a plain-http network in between, chooses the model. Signed metadata (The Update
Framework) will be another ``Verifier``; until then a ``trusted_root`` is refused, not ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nightferry.errors import IntegrityError, TrustError

if TYPE_CHECKING:
    from nightferry.manifest import Manifest


@dataclass(frozen=True)
class Target:
    """What may be installed: a hash, an exact size in bytes, and the path to fetch it from."""

    sha256: str
    size_bytes: int
    path: str


class Verifier(Protocol):
    """Turns the server's wish into what may be installed, or refuses."""

    def authorise(self, manifest: Manifest) -> Target:
        """Return the file that may be installed for this manifest; raise TrustError to refuse."""


class ManifestVerifier:
    """Takes hash and size from the manifest: as trustworthy as the connection to the server."""

    def __init__(self, *, runtime: str) -> None:
        """Remember which runtime the app can run."""
        self._runtime = runtime

    def authorise(self, manifest: Manifest) -> Target:
        """Return the manifest's artifact; raise TrustError if revoked or for another runtime."""
        artifact = manifest.required_artifact()
        if artifact.runtime != self._runtime:
            message = (
                f"The server offers {manifest.model} {manifest.label} for the runtime "
                f"{artifact.runtime!r}; this app runs {self._runtime!r}."
            )
            raise TrustError(message)
        if artifact.sha256 in manifest.revoked:
            message = (
                f"{manifest.model} {manifest.label} is revoked by the manifest that offers it."
            )
            raise TrustError(message)
        return Target(artifact.sha256, artifact.size_bytes, artifact.path)


def check_digest(actual: str, target: Target, name: str) -> None:
    """Raise IntegrityError unless the bytes received are those that were authorised."""
    if actual != target.sha256:
        message = (
            f"The bytes of {name} have SHA-256 {actual[:12]}…, not {target.sha256[:12]}… as "
            "promised. They were thrown away."
        )
        raise IntegrityError(message)

"""What a model's role signs, as docs/trust.md specifies it: names of targets and their custom."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from server.trust.targets import SignedTarget, without_fractions

if TYPE_CHECKING:
    from server.registry.models import Variant
    from server.rollouts.models import Patch, Release

# The first SDK that reads what these targets say.
MIN_SDK = "0.1.0"
_NO_BYTES = hashlib.sha256(b"").hexdigest()


def release_path(slug: str, channel: str, label: str, variant: Variant) -> str:
    """Return the target's name of a release's file."""
    return f"{slug}/{channel}/{label}/{variant.runtime}-{variant.precision}"


def of_release(slug: str, release: Release, variant: Variant) -> SignedTarget:
    """Return the target of one file of a release."""
    channel, version = release.channel.name, release.version
    custom = {
        "kind": "artifact",
        "model": slug,
        "channel": channel,
        "label": release.label,
        "version": version.number,
        "counter": release.counter,
        "runtime": variant.runtime,
        "precision": variant.precision,
        "min_sdk": MIN_SDK,
        "mandatory": release.is_mandatory,
        "labels": list(version.labels),
        "preprocessing": version.preprocessing,
        "requires": variant.requires,
        "selftest_sha256": variant.selftest.get("sha256", ""),
    }
    return SignedTarget(
        path=release_path(slug, channel, release.label, variant),
        sha256=variant.sha256,
        size_bytes=variant.size_bytes,
        custom=without_fractions(custom),
    )


def of_releases(
    slug: str, releases: Iterable[Release], files: Mapping[int, Iterable[Variant]]
) -> Iterator[SignedTarget]:
    """Yield the targets of releases; ``files`` are the shipped ones by their version's id."""
    for release in releases:
        for variant in files.get(release.version_id, ()):
            yield of_release(slug, release, variant)


def of_patches(slug: str, patches: Iterable[Patch]) -> Iterator[SignedTarget]:
    """Yield the target of each patch, once where several versions share the files."""
    seen = set()
    for patch in patches:
        old, new = patch.from_variant.sha256, patch.to_variant.sha256
        path = f"{slug}/patches/{old}-{new}"
        if path in seen:
            continue
        seen.add(path)
        custom = {
            "kind": "patch",
            "model": slug,
            "algorithm": patch.algorithm,
            "from_sha256": old,
            "to_sha256": new,
        }
        yield SignedTarget(
            path=path, sha256=patch.sha256, size_bytes=patch.size_bytes or 0, custom=custom
        )


def of_policy(
    slug: str, *, min_counter: int, revoked: Sequence[str], embedded: Sequence[str]
) -> SignedTarget:
    """Return the target of no bytes that carries what devices of the model have to obey."""
    custom = {
        "kind": "policy",
        "model": slug,
        "min_counter": min_counter,
        "revoked": list(revoked),
        "embedded": list(embedded),
    }
    return SignedTarget(path=f"{slug}/policy", sha256=_NO_BYTES, size_bytes=0, custom=custom)

"""Building the patches that lead to a release from the files that its devices run now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

from server import blobs
from server.rollouts import actions as rollouts
from server.rollouts import queries
from server.rollouts.models import Patch, Release
from worker import patches

if TYPE_CHECKING:
    from server.blobs import BlobStore
    from server.registry.models import Variant
    from worker.context import JobContext

log = structlog.get_logger(__name__)

# Building takes some ten times the larger file in memory.
MAX_FILE_BYTES = 96 * 2**20


def run(context: JobContext) -> Mapping[str, Any]:
    """Build what the job's release can be reached by; then have the release signed.

    Whatever becomes of the patches, the release does not wait for them in vain: a patch that
    fails is left out, and a job that dies is overtaken by the next look for late signings.
    """
    release = Release.objects.select_related("channel__model").get(pk=context.args["release_id"])
    try:
        built = build_patches(release, store=blobs.store(), context=context)
    finally:
        rollouts.request_publication(model=release.channel.model)
    offered = [patch for patch in built if patch.state == Patch.State.OFFERED]
    return {
        "outcome": f"{len(offered)} of {len(built)} patches to {release} are offered.",
        "patches": {str(patch): patch.size_bytes for patch in offered},
    }


def build_patches(
    release: Release, *, store: BlobStore, context: JobContext | None = None
) -> list[Patch]:
    """Build each patch that the release lacks, the newest base first; return what came of each."""
    built = []
    for old, new in queries.patch_pairs(release):
        if context is not None:
            context.check_alive()
        data, refusal = _build(old, new, store)
        built.append(
            rollouts.record_patch(
                from_variant=old,
                to_variant=new,
                algorithm=patches.ALGORITHM,
                data=data,
                refusal=refusal,
            )
        )
    return built


def _build(old: Variant, new: Variant, store: BlobStore) -> tuple[bytes | None, str]:
    """Return the patch, or None and why there is none."""
    if max(old.size_bytes, new.size_bytes) > MAX_FILE_BYTES:
        return None, f"files above {MAX_FILE_BYTES // 2**20} MiB are fetched whole"
    try:
        return patches.create_patch(_read(old, store), _read(new, store)), ""
    except (patches.PatchNotReproducing, blobs.BlobNotFound, ValueError, MemoryError) as error:
        log.warning("patch_not_built", old=str(old), new=str(new), error=str(error))
        return None, f"could not be built ({type(error).__name__}: {error})"


def _read(variant: Variant, store: BlobStore) -> bytes:
    with store.open(variant.sha256) as file:
        return file.read()

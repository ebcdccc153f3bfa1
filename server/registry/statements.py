"""What is said of a version when somebody attests that they made it: all that is signed of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.registry.models import ModelVersion, Variant


def statement(
    version: ModelVersion, shipped: Iterable[Variant], *, source: str = ""
) -> dict[str, Any]:
    """Return what devices are told of a version, from the objects at hand and not the database.

    ``shipped`` are its variants that devices may be given. ``source`` is how it came to be where
    the caller knows better than the row.
    """
    files = [
        {
            "runtime": str(variant.runtime),
            "precision": variant.precision,
            "sha256": variant.sha256,
            "size_bytes": variant.size_bytes,
            "requires": variant.requires,
            "selftest_sha256": variant.selftest.get("sha256", ""),
        }
        for variant in shipped
    ]
    return {
        "model": version.model.slug,
        "version": version.number,
        "source": str(source or version.source),
        "labels": list(version.labels),
        "preprocessing": version.preprocessing,
        "files": sorted(files, key=lambda file: (file["runtime"], file["precision"])),
    }

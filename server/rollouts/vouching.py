"""Which releases may be signed: those whose version somebody with the key vouches for.

Whoever writes the database, a taken-over web process for instance, has no such key: rows alone
put no file on a device. What the model's role lists already was vouched for when it was signed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from django.conf import settings

from server.domain.errors import DomainError
from server.registry.models import Model, ModelVersion
from server.registry.statements import statement
from server.rollouts import targets
from server.trust import actions as trust
from server.trust import attestations, roles

if TYPE_CHECKING:
    from server.registry.models import Variant
    from server.rollouts.models import Release
    from server.trust.targets import SignedTarget


def refusals(
    model: Model, releases: Sequence[Release], files: Mapping[int, Sequence[Variant]]
) -> dict[int, str]:
    """Return why releases may not be signed, by their id; nothing of those that may."""
    known: list[SignedTarget] | None = None
    refused = {}
    for release in releases:
        shipped = files.get(release.version_id, ())
        reason = _why_not(model, release.version, shipped)
        if not reason:
            continue
        if known is None:
            known = trust.listed_targets(role=roles.role_of(model.slug))
        if not all(_is_known(model, release, variant, known) for variant in shipped):
            refused[release.pk] = reason
    return refused


def _why_not(model: Model, version: ModelVersion, shipped: Sequence[Variant]) -> str:
    """Return why nobody vouches for a version's files as those of this model, or nothing."""
    command = f"`python manage.py attest {model.slug} {version.number}`"
    try:
        # The model that is signed for, whichever the version's row names.
        said = {**statement(version, shipped), "model": model.slug}
        by = attestations.verify(said, version.attestation)
    except DomainError as error:
        return f"Version {version.number} cannot be checked: {error.detail}"
    except (AttributeError, TypeError, ValueError) as error:
        return f"Version {version.number} is not attested: its rows make no sense ({error})."
    if by is None:
        return (
            f"Version {version.number} is not attested: nobody with the key says that it was made"
            f" as it stands in the database. Where you know it, run {command} beside the key;"
            " otherwise recall it."
        )
    if not _needs_person(version) or by is attestations.By.PERSON:
        return ""
    return (
        f"Version {version.number} is not attested: it was uploaded, and a person has to confirm"
        f" uploaded models here (TRUST_UPLOADED_MODELS). Run {command} beside the key."
    )


def _needs_person(version: ModelVersion) -> bool:
    is_uploaded = version.source == ModelVersion.Source.UPLOADED
    return is_uploaded and settings.TRUST_UPLOADED_MODELS == "confirm"


def _is_known(
    model: Model, release: Release, variant: Variant, known: Sequence[SignedTarget]
) -> bool:
    try:
        return targets.of_release(model.slug, release, variant) in known
    except (AttributeError, TypeError, ValueError):
        return False

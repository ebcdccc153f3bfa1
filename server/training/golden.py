"""Golden photos: test photos that staff choose, keep and judge versions by."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from django.db import transaction

from server.domain.errors import Conflict, NotFound, Unprocessable
from server.http import audit
from server.photos.models import Photo
from server.registry.models import Model
from server.training.models import GoldenPhoto, SnapshotEntry, SplitAssignment

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
    from django.db.models import QuerySet

    Actor = AbstractBaseUser | AnonymousUser | None

# One decision's worth: each photo is looked at by a person.
MAX_PINNED_AT_ONCE = 500
_TEST = SplitAssignment.Split.TEST
_QUERY_BATCH = 500


def list_golden(model: Model) -> QuerySet[GoldenPhoto]:
    """Return the model's golden photos, newest first; withdrawn ones are gone from it."""
    rows = GoldenPhoto.objects.filter(photo__model=model, photo__state=Photo.State.ACCEPTED)
    return rows.select_related("photo__label", "photo__model", "pinned_by")


@transaction.atomic
def pin_golden(
    *, model: Model, photo_ids: Collection[uuid.UUID], reason: str = "", actor: Actor
) -> list[GoldenPhoto]:
    """Make photos golden, all or none; return those that were not golden before.

    A golden photo is a test photo for ever, and so is everything else its contributor sends: the
    same person's photos resemble each other. So nobody whose photos train can give one.

    Raises:
        NotFound: ``unknown_photo``.
        Unprocessable: ``too_many_photos`` or ``photo_not_accepted``.
        Conflict: ``photo_was_trained``: a night used it, or a copy of it, to train or validate.
        Conflict: ``contributor_trains``: others of the same person's photos train.

    """
    # The lock that snapshots take: no night may assign these photos meanwhile.
    Model.objects.select_for_update().get(pk=model.pk)
    photos = _chosen(model, photo_ids)
    _refuse_trained(photos)
    units = dict(SplitAssignment.objects.filter(model=model).values_list("unit", "split"))
    fresh = {unit for photo in photos if (unit := _unit_to_pin(photo, units)) is not None}
    SplitAssignment.objects.bulk_create(
        SplitAssignment(model=model, unit=unit, split=_TEST) for unit in sorted(fresh)
    )
    pinned_by_id = actor.pk if actor is not None and actor.is_authenticated else None
    known = set(GoldenPhoto.objects.filter(photo__in=photos).values_list("photo_id", flat=True))
    pinned = GoldenPhoto.objects.bulk_create(
        GoldenPhoto(photo=photo, reason=reason, pinned_by_id=pinned_by_id)
        for photo in photos
        if photo.pk not in known
    )
    audit.record(
        actor=actor,
        action="golden.pin",
        subject=model,
        detail={"photos": [str(golden.photo_id) for golden in pinned], "reason": reason},
    )
    return pinned


@transaction.atomic
def unpin_golden(
    *, model: Model, photo_ids: Iterable[uuid.UUID], reason: str = "", actor: Actor
) -> int:
    """Take photos out of the golden set; return how many. They stay test photos for ever.

    Raises:
        NotFound: ``unknown_golden_photo``.

    """
    rows = GoldenPhoto.objects.filter(photo__model=model, photo_id__in=list(photo_ids))
    found = [str(pk) for pk in rows.values_list("photo_id", flat=True)]
    if not found:
        message = f"{model.slug} has no golden photo of that id."
        raise NotFound(message, code="unknown_golden_photo")
    rows.delete()
    audit.record(
        actor=actor,
        action="golden.unpin",
        subject=model,
        detail={"photos": found, "reason": reason},
    )
    return len(found)


def _chosen(model: Model, photo_ids: Collection[uuid.UUID]) -> list[Photo]:
    wanted = set(photo_ids)
    if not 1 <= len(wanted) <= MAX_PINNED_AT_ONCE:
        message = f"Choose 1 to {MAX_PINNED_AT_ONCE} photos at a time, not {len(wanted)}."
        raise Unprocessable(message, code="too_many_photos")
    photos = list(Photo.objects.filter(model=model, pk__in=wanted).order_by("pk"))
    if missing := wanted - {photo.pk for photo in photos}:
        message = f"{model.slug} has no photo {min(map(str, missing))}."
        raise NotFound(message, code="unknown_photo")
    waiting = [str(photo.pk) for photo in photos if photo.state != Photo.State.ACCEPTED]
    if waiting:
        message = (
            f"{len(waiting)} of the photos are not accepted, {waiting[0]} for one. Accept them"
            " first: a golden photo's label has to be right."
        )
        raise Unprocessable(message, code="photo_not_accepted", photos=waiting)
    return photos


def _refuse_trained(photos: list[Photo]) -> None:
    """Refuse photos that a run trained or validated on, or that are copies of such a one."""
    used: set[str] = set()
    digests = [photo.blob_digest for photo in photos]
    for start in range(0, len(digests), _QUERY_BATCH):
        entries = SnapshotEntry.objects.filter(
            snapshot__model=photos[0].model_id,
            photo__blob_digest__in=digests[start : start + _QUERY_BATCH],
        )
        used |= set(entries.exclude(split=_TEST).values_list("photo__blob_digest", flat=True))
    trained = [str(photo.pk) for photo in photos if photo.blob_digest in used]
    if trained:
        message = (
            f"{len(trained)} of the photos trained or validated versions before, {trained[0]} for"
            " one; networks know them, so they can judge none. Choose photos that never did."
        )
        raise Conflict(message, code="photo_was_trained", photos=trained)


def _unit_to_pin(photo: Photo, units: dict[str, str]) -> str | None:
    """Return the unit that has to be pinned to test, or None where the photo tests already.

    Raises:
        Conflict: ``photo_was_trained`` or ``contributor_trains``.

    """
    own, shared = f"photo:{photo.pk}", f"contributor:{photo.contributor}"
    split = units.get(own) or (units.get(shared) if photo.contributor else None)
    if split == _TEST:
        return None
    if split is None and not (photo.contributor and _trains_singly(photo, units)):
        return shared if photo.contributor else own
    message = (
        f"Photo {photo.pk} comes from somebody whose photos train, and photos of one person"
        " resemble each other. Choose photos of people who only test, or who are new."
    )
    raise Conflict(message, code="contributor_trains", photos=[str(photo.pk)])


def _trains_singly(photo: Photo, units: dict[str, str]) -> bool:
    """Say whether photos of the same person were assigned one by one, and not all to test."""
    others = Photo.objects.filter(model=photo.model_id, contributor=photo.contributor)
    keys = (f"photo:{pk}" for pk in others.values_list("pk", flat=True))
    return any(units.get(key, _TEST) != _TEST for key in keys)

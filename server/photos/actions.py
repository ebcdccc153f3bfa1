"""Every write to volunteers and photos."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import structlog
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.crypto import salted_hmac
from knox.models import AuthToken

from server import blobs
from server.domain.errors import Conflict, InvalidInput, Unprocessable
from server.http import audit
from server.photos import intake, queries
from server.photos.models import (
    CONSENT_VERSIONS,
    Consent,
    ForgottenBlob,
    Photo,
    PhotoEmbedding,
    Review,
    Volunteer,
)
from server.photos.refusals import rejection
from server.registry.queries import training_policy

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

    from server.registry.models import Label, Model

    Actor = AbstractBaseUser | AnonymousUser | None

log = structlog.get_logger(__name__)

_NICKNAME_MAX = 40
_IDEMPOTENCY_KEY_MAX = 200
_ADVISORY_LOCK_HEX_DIGITS = 15


# --- Volunteers -------------------------------------------------------------------------------


@transaction.atomic
def register_volunteer(
    *, nickname: str, consents: Mapping[str, bool], consent_version: str, email: str = ""
) -> tuple[Volunteer, str]:
    """Make a volunteer with a user behind it; return it with its token, which is kept nowhere.

    Raises:
        InvalidInput: ``invalid_nickname`` or ``unknown_consent_version``.

    """
    pk = uuid.uuid4()
    user = get_user_model().objects.create_user(username=f"volunteer-{pk}")
    volunteer = Volunteer.objects.create(
        pk=pk, user=user, nickname=_checked_nickname(nickname), email=email
    )
    _set_consents(volunteer, consents, consent_version)
    token = AuthToken.objects.create(user)[1]
    audit.record(
        actor=user, action="volunteer.register", subject=_name(volunteer), detail=dict(consents)
    )
    return volunteer, token


@transaction.atomic
def change_volunteer(
    *,
    volunteer: Volunteer,
    nickname: str | None = None,
    email: str | None = None,
    consents: Mapping[str, bool] | None = None,
    consent_version: str = CONSENT_VERSIONS[0],
) -> Volunteer:
    """Change what is given. A consent taken back holds from the next night on.

    Raises:
        InvalidInput: ``invalid_nickname`` or ``unknown_consent_version``.

    """
    if nickname is not None:
        volunteer.nickname = _checked_nickname(nickname)
    if email is not None:
        volunteer.email = email
    volunteer.save(update_fields=["nickname", "email"])
    if consents:
        _set_consents(volunteer, consents, consent_version)
    audit.record(
        actor=volunteer.user,
        action="volunteer.change",
        subject=_name(volunteer),
        detail=dict(consents or {}),
    )
    return volunteer


@transaction.atomic
def set_trusted(*, volunteers: Iterable[Volunteer], is_trusted: bool, actor: Actor) -> int:
    """Trust volunteers, or no longer: their later photos need no review where a policy says so."""
    ids = [volunteer.pk for volunteer in volunteers]
    count = Volunteer.objects.filter(pk__in=ids).update(is_trusted=is_trusted)
    for pk in ids:
        audit.record(
            actor=actor,
            action="volunteer.trust",
            subject=f"volunteer {pk}",
            detail={"is": is_trusted},
        )
    return count


@transaction.atomic
def erase_volunteer(*, volunteer: Volunteer, actor: Actor) -> int:
    """Delete the person and all that is theirs; return how many photos went.

    What stays: for each photo a row without person or pixels, and keyed digests that stop the
    same file from being imported again.
    """
    # No photo may arrive meanwhile: uploads take the same lock.
    Volunteer.objects.select_for_update().get(pk=volunteer.pk)
    photos = list(Photo.objects.select_for_update().filter(volunteer=volunteer))
    _forget(photos)
    Photo.objects.filter(volunteer=volunteer).update(
        volunteer=None, contributor="", idempotency_key="", rejection_reason=""
    )
    audit.record(
        actor=actor,
        action="volunteer.erase",
        subject=_name(volunteer),
        detail={"photos": len(photos)},
    )
    # Takes the volunteer, the consents and the tokens with it.
    volunteer.user.delete()
    return len(photos)


def _checked_nickname(nickname: str) -> str:
    name = nickname.strip()
    if not 1 <= len(name) <= _NICKNAME_MAX or not name.isprintable():
        message = f"A nickname is 1 to {_NICKNAME_MAX} printable characters."
        raise InvalidInput(message, code="invalid_nickname")
    if "@" in name:
        message = "The nickname may be shown to others, so it must not be an e-mail address."
        raise InvalidInput(message, code="invalid_nickname")
    return name


def _set_consents(volunteer: Volunteer, consents: Mapping[str, bool], version: str) -> None:
    """Give or take back each kind that is named.

    What holds already stays as it was given, unless a newer wording is agreed to.
    """
    if version not in CONSENT_VERSIONS:
        newest = CONSENT_VERSIONS[-1]
        message = f"Consent is asked for in version {newest!r}, not {version!r}."
        raise InvalidInput(message, code="unknown_consent_version", consent_version=newest)
    for kind, is_given in consents.items():
        in_force = volunteer.consents.filter(kind=kind, withdrawn_at__isnull=True)
        at_least = CONSENT_VERSIONS[CONSENT_VERSIONS.index(version) :]
        if is_given and in_force.filter(version__in=at_least).exists():
            continue
        in_force.update(withdrawn_at=timezone.now())
        if is_given:
            Consent.objects.create(volunteer=volunteer, kind=kind, version=version)


def _name(volunteer: Volunteer) -> str:
    # The audit log outlives an erasure, so it never holds the nickname.
    return f"volunteer {volunteer.pk}"


# --- Photos in --------------------------------------------------------------------------------


def submit_photo(
    *, volunteer: Volunteer, model: Model, label: Label, file: IO[bytes], idempotency_key: str = ""
) -> tuple[Photo, bool]:
    """Take a volunteer's photo; return it and whether it is new.

    The same file, or the same key, sent again gives the photo that is there already.

    Raises:
        PhotoRejected: see ``refusals.REASONS`` for the codes.
        InvalidInput: ``invalid_idempotency_key``.
        Unprocessable: ``idempotency_key_reused``, ``consent_missing`` or ``model_retired``.

    """
    _check_may_send(volunteer, model, idempotency_key)
    limits = limits_of(model)
    digest = keyed_digest(intake.bounded_sha256(file, limits.max_bytes))
    sent = _Sent(
        model=model,
        label=label,
        digest=digest,
        volunteer=volunteer,
        contributor=str(volunteer.pk),
        key=idempotency_key,
        keeps_camera=queries.may_keep_camera(volunteer),
    )
    if known := _already_sent(sent):
        return known, False
    found = intake.examine(file, limits=limits)
    with transaction.atomic():
        # One photo of a person at a time: two near-duplicates must not slip past each other.
        Volunteer.objects.select_for_update().get(pk=volunteer.pk)
        if known := _already_sent(sent):
            return known, False
        _refuse_withdrawn(sent, found)
        others = _refuse_own_look_alike(sent, found)
        is_accepted = (
            volunteer.is_trusted and training_policy(model).auto_accept == "trusted" and not others
        )
        photo = _add_photo(sent, found, others=others, is_accepted=is_accepted)
        audit.record(
            actor=volunteer.user,
            action="photo.submit",
            subject=f"photo {photo.pk}",
            detail={"model": model.slug, "label": label.name, "state": photo.state},
        )
    return photo, True


def import_photo(
    *,
    model: Model,
    label: Label,
    found: intake.Intake,
    contributor: str = "",
    is_accepted: bool = False,
) -> tuple[Photo, bool]:
    """Take a photo that an operator brings; return it and whether it is new.

    Raises:
        PhotoRejected: ``withdrawn_photo``, ``near_duplicate`` or ``other_label``.

    """
    digest = keyed_digest(found.source_sha256)
    sent = _Sent(model=model, label=label, digest=digest, contributor=contributor)
    with transaction.atomic():
        if known := _already_sent(sent):
            return known, False
        _refuse_withdrawn(sent, found)
        others = _refuse_own_look_alike(sent, found)
        photo = _add_photo(sent, found, others=others, is_accepted=is_accepted)
    return photo, True


def limits_of(model: Model) -> intake.Limits:
    """Return the bounds that the server and the model's policy set."""
    policy = training_policy(model)
    return intake.Limits(
        max_bytes=settings.MAX_UPLOAD_BYTES,
        min_side_px=policy.min_side_px,
        refuse_blurred=policy.refuse_blurred,
    )


def imported_digests(model: Model) -> dict[str, int]:
    """Return the keyed digest of every file that was imported for the model, and its label's id."""
    photos = Photo.objects.filter(model=model, volunteer=None)
    rows = photos.exclude(state=Photo.State.WITHDRAWN).values_list("source_digest", "label_id")
    return dict(rows)


def keyed_digest(sha256: str) -> str:
    """Return a digest that only this server can compute: it outlives the photo it is of."""
    return salted_hmac("nightferry.photos", sha256, algorithm="sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Sent:
    """Which file came as what, from whom."""

    model: Model
    label: Label
    digest: str
    volunteer: Volunteer | None = None
    contributor: str
    key: str = ""
    keeps_camera: bool = True


def _check_may_send(volunteer: Volunteer, model: Model, key: str) -> None:
    if len(key) > _IDEMPOTENCY_KEY_MAX or not key.isprintable():
        message = f"Idempotency-Key takes up to {_IDEMPOTENCY_KEY_MAX} printable characters."
        raise InvalidInput(message, code="invalid_idempotency_key")
    if model.retired_at is not None:
        message = f"{model.slug} takes no more photos: it was retired."
        raise Unprocessable(message, code="model_retired")
    if Consent.Kind.TRAIN not in queries.consents_in_force(volunteer):
        message = "Photos are taken from people who allow training on them; you have not."
        raise Unprocessable(message, code="consent_missing")


def _already_sent(sent: _Sent) -> Photo | None:
    """Return the volunteer's photo of this key or file."""
    photos = Photo.objects.filter(volunteer=sent.volunteer).select_related("model", "label")
    if sent.key and (photo := photos.filter(idempotency_key=sent.key).first()):
        if photo.source_digest != sent.digest or photo.label_id != sent.label.pk:
            message = "This Idempotency-Key came with another photo or label before. Use a new one."
            raise Unprocessable(message, code="idempotency_key_reused")
        return photo
    photos = photos.filter(model=sent.model, source_digest=sent.digest)
    known = photos.exclude(state=Photo.State.WITHDRAWN).first()
    if known is not None and known.label_id != sent.label.pk:
        raise rejection("other_label", label=known.label.name)
    return known


def _refuse_withdrawn(sent: _Sent, found: intake.Intake) -> None:
    """Keep withdrawn photos out; who withdrew one may send it again, with another label say."""
    same = Q(source_digest=sent.digest) | Q(blob_digest=keyed_digest(found.sha256))
    withdrawn = Photo.objects.filter(same, model=sent.model, state=Photo.State.WITHDRAWN)
    if sent.volunteer is not None:
        withdrawn = withdrawn.exclude(volunteer=sent.volunteer)
    if withdrawn.exists():
        raise rejection("withdrawn_photo")


def _refuse_own_look_alike(sent: _Sent, found: intake.Intake) -> list[uuid.UUID]:
    """Refuse a near-duplicate by the same person; return those by others."""
    others = []
    for pk, contributor in queries.look_alikes(sent.model, dhash=found.dhash, thumb=found.thumb):
        # Without a name nobody can be told to have sent it twice: it is flagged instead.
        if sent.contributor and contributor == sent.contributor:
            raise rejection("near_duplicate")
        others.append(pk)
    return others


def _add_photo(
    sent: _Sent, found: intake.Intake, *, others: list[uuid.UUID], is_accepted: bool
) -> Photo:
    """Store the bytes and the row, under the lock that keeps the bytes from being swept away."""
    _lock_blob(found.sha256)
    blob = blobs.store().put_bytes(found.jpeg_bytes)
    photo = Photo.objects.create(
        model=sent.model,
        label=sent.label,
        volunteer=sent.volunteer,
        contributor=sent.contributor,
        blob_sha256=blob.sha256,
        size_bytes=blob.size_bytes,
        source_digest=sent.digest,
        blob_digest=keyed_digest(found.sha256),
        idempotency_key=sent.key,
        state=Photo.State.ACCEPTED if is_accepted else Photo.State.PENDING,
        decided_at=timezone.now() if is_accepted else None,
        resembles_id=others[0] if others else None,
        notes=[*found.notes, *(["resembles_another"] if others else [])],
        camera=found.camera if sent.keeps_camera else "",
        **_measured(found),
    )
    if is_accepted:
        Review.objects.create(photo=photo, decision=Review.Decision.ACCEPT, reason="by rule")
    return photo


def _measured(found: intake.Intake) -> dict[str, Any]:
    return {
        "width": found.width,
        "height": found.height,
        "dhash": found.dhash,
        "thumb": found.thumb,
        "quality": {
            "format": found.format,
            "blur_variance": found.blur_variance,
            "exposure": found.exposure,
        },
    }


# --- Decisions --------------------------------------------------------------------------------


def accept_photos(*, photo_ids: Iterable[uuid.UUID], actor: Actor) -> int:
    """Accept photos; return how many changed. Withdrawn ones stay withdrawn."""
    return _decide(photo_ids, Review.Decision.ACCEPT, actor)


def reject_photos(*, photo_ids: Iterable[uuid.UUID], actor: Actor, reason: str = "") -> int:
    """Reject photos; return how many changed. Withdrawn ones stay withdrawn."""
    return _decide(photo_ids, Review.Decision.REJECT, actor, reason)


@transaction.atomic
def _decide(
    photo_ids: Iterable[uuid.UUID], decision: Review.Decision, actor: Actor, reason: str = ""
) -> int:
    accepts = decision == Review.Decision.ACCEPT
    target = Photo.State.ACCEPTED if accepts else Photo.State.REJECTED
    reviewer_id = actor.pk if actor is not None else None
    rows = Photo.objects.select_for_update().filter(pk__in=list(photo_ids))
    changed = list(
        rows.exclude(state__in=[Photo.State.WITHDRAWN, target]).values_list("pk", flat=True)
    )
    Photo.objects.filter(pk__in=changed).update(
        state=target,
        decided_at=timezone.now(),
        decided_by_id=reviewer_id,
        rejection_code="" if accepts else "reviewed",
        rejection_reason="" if accepts else reason[:300],
    )
    Review.objects.bulk_create(
        Review(photo_id=pk, reviewer_id=reviewer_id, decision=decision, reason=reason[:300])
        for pk in changed
    )
    if changed:
        audit.record(
            actor=actor,
            action=f"photos.{decision}",
            subject=f"{len(changed)} photos",
            detail={"photos": [str(pk) for pk in changed], "reason": reason},
        )
    return len(changed)


def record_embeddings(*, key: str, features: Mapping[uuid.UUID, blobs.Blob]) -> None:
    """Note the features of photos under a backbone.

    Features of a photo that was withdrawn in the meantime are deleted instead.
    """
    with transaction.atomic():
        rows = Photo.objects.select_for_update().filter(pk__in=list(features))
        present = set(rows.exclude(state=Photo.State.WITHDRAWN).values_list("pk", flat=True))
        PhotoEmbedding.objects.bulk_create(
            (
                PhotoEmbedding(
                    photo_id=pk, key=key, blob_sha256=blob.sha256, size_bytes=blob.size_bytes
                )
                for pk, blob in features.items()
                if pk in present
            ),
            ignore_conflicts=True,
        )
        _forget_blobs({blob.sha256 for pk, blob in features.items() if pk not in present})


# --- Photos out -------------------------------------------------------------------------------


@transaction.atomic
def withdraw_photo(*, photo: Photo, actor: Actor) -> None:
    """Delete the photo's pixels, features and fingerprints. Twice is as good as once.

    Raises:
        Conflict: ``photo_gone``: the row itself was deleted in the meantime.

    """
    locked = Photo.objects.select_for_update().filter(pk=photo.pk).first()
    if locked is None:
        raise Conflict("The photo is gone already.", code="photo_gone")
    if locked.state == Photo.State.WITHDRAWN:
        return
    _forget([locked])
    audit.record(actor=actor, action="photo.withdraw", subject=f"photo {photo.pk}")


def _forget(photos: list[Photo]) -> None:
    """Empty the rows, and have their blobs deleted once that is committed."""
    ids = [photo.pk for photo in photos]
    embeddings = PhotoEmbedding.objects.filter(photo__in=ids)
    orphans = {photo.blob_sha256 for photo in photos} | set(
        embeddings.values_list("blob_sha256", flat=True)
    )
    embeddings.delete()
    Photo.objects.filter(pk__in=ids).exclude(state=Photo.State.WITHDRAWN).update(
        state=Photo.State.WITHDRAWN,
        withdrawn_at=timezone.now(),
        blob_sha256="",
        dhash="",
        thumb=b"",
        camera="",
        band_0=None,
        band_1=None,
        band_2=None,
        band_3=None,
        resembles=None,
        quality={},
        notes=[],
        width=0,
        height=0,
        size_bytes=0,
    )
    _forget_blobs(orphans - {""})


def _forget_blobs(hashes: set[str]) -> None:
    if not hashes:
        return
    ForgottenBlob.objects.bulk_create(
        (ForgottenBlob(sha256=sha256) for sha256 in hashes), ignore_conflicts=True
    )
    transaction.on_commit(remove_forgotten_blobs, robust=True)


def remove_forgotten_blobs() -> int:
    """Delete what withdrawn photos left in the blob store; return how many blobs went.

    Runs after every withdrawal, and again from the schedule for those the store refused to
    delete then.
    """
    removed = 0
    for sha256 in list(ForgottenBlob.objects.values_list("sha256", flat=True)):
        with transaction.atomic():
            _lock_blob(sha256)
            if not queries.blob_is_used(sha256):
                blobs.store().delete(sha256)
                removed += 1
            ForgottenBlob.objects.filter(sha256=sha256).delete()
    return removed


def _lock_blob(sha256: str) -> None:
    """Keep others from storing or sweeping the same bytes until this transaction ends.

    SQLite needs nothing: its transactions are immediate here, so writers take turns anyway.
    """
    if connection.vendor == "postgresql":
        number = int(sha256[:_ADVISORY_LOCK_HEX_DIGITS], 16)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [number])

"""Reads of volunteers and photos."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING

from django.db.models import Count, Min, Q
from django.utils import timezone

from server.domain.errors import InvalidInput, NotFound
from server.photos.fingerprints import (
    MAX_DISTANCE_BITS,
    MIN_CORRELATION,
    correlation,
    distance_bits,
    near_bands,
)
from server.photos.models import (
    CONSENTS_TO_CAMERA,
    Challenge,
    Consent,
    Photo,
    PhotoEmbedding,
    Volunteer,
)

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator

    from django.db.models import QuerySet

    from server.registry.models import Label, Model

# Below this a place on the board would tell who is who.
LEADERBOARD_MIN_PEOPLE = 5
LEADERBOARD_NEIGHBOURS = 2
LEADERBOARD_TOP = 10


def get_label(model: Model, name: str) -> Label:
    """Return the model's label of that name.

    Raises:
        InvalidInput: ``unknown_label``, naming those there are.

    """
    for label in model.labels.all():
        if label.name == name:
            return label
    known = ", ".join(label.name for label in model.labels.all())
    raise InvalidInput(f"{model.slug} has no label {name!r}; it has {known}.", code="unknown_label")


def get_photo(photo_id: uuid.UUID, *, volunteer: Volunteer | None = None) -> Photo:
    """Return a photo; with ``volunteer``, only one of theirs.

    Raises:
        NotFound: ``unknown_photo``, also for somebody else's.

    """
    photos = Photo.objects.select_related("model", "label")
    if volunteer is not None:
        photos = photos.filter(volunteer=volunteer)
    try:
        return photos.get(pk=photo_id)
    except Photo.DoesNotExist as error:
        message = "There is no photo of that id among yours."
        raise NotFound(message, code="unknown_photo") from error


def get_volunteer(volunteer_id: uuid.UUID) -> Volunteer:
    """Return a volunteer.

    Raises:
        NotFound: ``unknown_volunteer``.

    """
    try:
        return Volunteer.objects.get(pk=volunteer_id)
    except Volunteer.DoesNotExist as error:
        message = "There is no volunteer of that id."
        raise NotFound(message, code="unknown_volunteer") from error


def consents_in_force(volunteer: Volunteer) -> set[str]:
    """Return the kinds of consent the volunteer gives at present."""
    rows = volunteer.consents.filter(withdrawn_at__isnull=True)
    return set(rows.values_list("kind", flat=True))


def may_keep_camera(volunteer: Volunteer) -> bool:
    """Say whether the wording that the volunteer agreed to covers the make of their camera."""
    return volunteer.consents.filter(
        kind=Consent.Kind.TRAIN, withdrawn_at__isnull=True, version__in=CONSENTS_TO_CAMERA
    ).exists()


def trainable_photos(model: Model) -> QuerySet[Photo]:
    """Return the accepted photos whose volunteers allow training, and the imported ones."""
    allowed = Consent.objects.filter(kind=Consent.Kind.TRAIN, withdrawn_at__isnull=True)
    return Photo.objects.filter(
        Q(volunteer__isnull=True) | Q(volunteer__in=allowed.values("volunteer")),
        model=model,
        state=Photo.State.ACCEPTED,
    )


def photo_counts(volunteer: Volunteer) -> dict[str, int]:
    """Return how many photos of the volunteer are in each state."""
    rows = volunteer.photos.order_by().values_list("state").annotate(count=Count("pk"))
    return dict.fromkeys(Photo.State.values, 0) | dict(rows)


def look_alikes(model: Model, *, dhash: str, thumb: bytes) -> Iterator[tuple[uuid.UUID, str]]:
    """Yield id and contributor of the model's photos, not rejected, that look like this one."""
    near = _within_reach(model, dhash)
    photos = Photo.objects.filter(pk__in=near).exclude(state=Photo.State.REJECTED).order_by("pk")
    for pk, contributor, other in photos.values_list("pk", "contributor", "thumb"):
        if correlation(thumb, bytes(other)) >= MIN_CORRELATION:
            yield pk, contributor


def _within_reach(model: Model, dhash: str) -> set[uuid.UUID]:
    """Return the ids of the model's photos whose hashes lie within 10 bits."""
    # One query over each band's own index: given all four at once, SQLite reads the whole model.
    first, *more = (
        Photo.objects.filter(model=model, **{f"band_{at}__in": values})
        .order_by()
        .values_list("pk", "dhash")
        for at, values in enumerate(near_bands(dhash))
    )
    rows = first.union(*more, all=True)
    return {pk for pk, other in rows if distance_bits(dhash, other) <= MAX_DISTANCE_BITS}


def view_pictures(model: Model, *, most: int = 6) -> list[PhotoEmbedding]:
    """Return the newest pictures of how training varies the model's photos."""
    pictures = PhotoEmbedding.objects.filter(
        photo__model=model, key__startswith=PhotoEmbedding.VIEWS_PREFIX
    )
    return list(pictures.select_related("photo__label").order_by("-pk")[:most])


def blob_is_used(sha256: str) -> bool:
    """Say whether any photo still has this blob as its pixels or features."""
    return (
        Photo.objects.filter(blob_sha256=sha256).exists()
        or PhotoEmbedding.objects.filter(blob_sha256=sha256).exists()
    )


@dataclass(frozen=True, kw_only=True)
class DayChallenge:
    """What is asked for today, and why."""

    label: str
    text: str
    why: str
    date: date
    closes_at: datetime


def challenge_of_day(model: Model, today: date) -> DayChallenge:
    """Return the challenge staff wrote for today, else the label with the fewest photos.

    Only photos decided before today count, so that the challenge stays the same all day.

    Raises:
        NotFound: ``no_labels``: the model has nothing to ask for.

    """
    midnight = datetime.combine(today, time(), UTC)
    closes_at = midnight + timedelta(days=1)
    written = Challenge.objects.filter(model=model, date=today).select_related("label").first()
    if written is not None:
        return DayChallenge(
            label=written.label.name,
            text=written.text,
            why=written.why,
            date=today,
            closes_at=closes_at,
        )
    counted = Q(photos__state=Photo.State.ACCEPTED, photos__decided_at__lt=midnight)
    label = (
        model.labels.annotate(have=Count("photos", filter=counted))
        .order_by("have", "position")
        .first()
    )
    if label is None:
        raise NotFound(f"{model.slug} has no labels to ask for.", code="no_labels")
    return DayChallenge(
        label=label.name,
        text=f"Take a photo of: {label.name}. A place or an angle that others miss helps most.",
        why=f"It has the fewest accepted photos so far: {label.have}.",
        date=today,
        closes_at=closes_at,
    )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One place on the leaderboard."""

    rank: int
    nickname: str
    accepted: int
    is_me: bool


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The week's places: the first ten and the caller's neighbours."""

    week_starts_at: datetime
    is_hidden: bool
    people: int
    standings: list[Standing]


def leaderboard(model: Model, *, now: datetime, me: Volunteer | None) -> Leaderboard:
    """Rank this week's accepted photos among people who allow their nickname to be shown.

    Nothing counts before it is accepted. With fewer than five people the board is hidden.
    """
    today = now.astimezone(UTC).date()
    week_starts_at = datetime.combine(today - timedelta(days=today.weekday()), time(), UTC)
    rows = (
        Volunteer.objects.filter(
            consents__kind=Consent.Kind.NAME,
            consents__withdrawn_at__isnull=True,
            photos__model=model,
            photos__state=Photo.State.ACCEPTED,
            photos__created_at__gte=week_starts_at,
        )
        .annotate(accepted=Count("photos", distinct=True), first_at=Min("photos__created_at"))
        .order_by("-accepted", "first_at")
    )
    ranked = _ranked([(row.pk, row.nickname, row.accepted) for row in rows], me)
    hidden = len(ranked) < LEADERBOARD_MIN_PEOPLE
    return Leaderboard(
        week_starts_at=week_starts_at,
        is_hidden=hidden,
        people=len(ranked),
        standings=[] if hidden else _around_me(ranked),
    )


def _ranked(rows: list[tuple[uuid.UUID, str, int]], me: Volunteer | None) -> list[Standing]:
    """Give equal counts equal ranks."""
    standings: list[Standing] = []
    for position, (pk, nickname, accepted) in enumerate(rows, 1):
        tied = bool(standings) and standings[-1].accepted == accepted
        standings.append(
            Standing(
                rank=standings[-1].rank if tied else position,
                nickname=nickname,
                accepted=accepted,
                is_me=me is not None and pk == me.pk,
            )
        )
    return standings


def _around_me(ranked: list[Standing]) -> list[Standing]:
    """Return the first ten, and the caller with two neighbours on either side."""
    at = next((index for index, standing in enumerate(ranked) if standing.is_me), None)
    near = (
        range(at - LEADERBOARD_NEIGHBOURS, at + LEADERBOARD_NEIGHBOURS + 1)
        if at is not None
        else ()
    )
    return [
        standing
        for index, standing in enumerate(ranked)
        if index < LEADERBOARD_TOP or index in near
    ]


def today() -> date:
    """Return the present day in UTC, by which challenges change."""
    return timezone.now().astimezone(UTC).date()

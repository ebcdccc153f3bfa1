"""What volunteers send and get, as the API spells it."""

from __future__ import annotations

from typing import Any

from django.core.files.uploadedfile import UploadedFile
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from server.domain.errors import InvalidInput
from server.photos import queries
from server.photos.models import CONSENT_VERSION, CONSENT_VERSIONS, Consent, Photo, Volunteer
from server.photos.refusals import FORMATS

_CONSENTS = {
    Consent.Kind.TRAIN: (
        "My photos may be used to train and test models. With each of them the make and model of"
        " the camera is kept, and nothing else that the file says: no place, no time, no number."
    ),
    Consent.Kind.SHOW: "My photos may be shown to others, in the newsletter for example.",
    Consent.Kind.NAME: "My nickname may be shown to others, on the leaderboard for example.",
}


class ConsentChoices(serializers.Serializer[Any]):
    """Three consents, each given or taken back by itself; one left out stays as it is."""

    train = serializers.BooleanField(required=False, help_text=_CONSENTS[Consent.Kind.TRAIN])
    show = serializers.BooleanField(required=False, help_text=_CONSENTS[Consent.Kind.SHOW])
    name = serializers.BooleanField(required=False, help_text=_CONSENTS[Consent.Kind.NAME])


class ConsentTerms(serializers.Serializer[Any]):
    """The wording that consent is asked for in."""

    consent_version = serializers.CharField()
    train = serializers.CharField()
    show = serializers.CharField()
    name = serializers.CharField()


def consent_terms() -> dict[str, str]:
    """Return the present version and its wording."""
    wording = {str(kind): text for kind, text in _CONSENTS.items()}
    return {"consent_version": CONSENT_VERSION, **wording}


class Registration(serializers.Serializer[Any]):
    """A new volunteer."""

    nickname = serializers.CharField(max_length=40)
    email = serializers.EmailField(required=False, allow_blank=True, default="")
    consent_version = serializers.CharField(max_length=20)
    consent = ConsentChoices(required=False, help_text="What is left out is not allowed.")


class VolunteerChange(serializers.Serializer[Any]):
    """What a volunteer changes about themselves."""

    nickname = serializers.CharField(max_length=40, required=False)
    email = serializers.EmailField(required=False, allow_blank=True)
    consent_version = serializers.CharField(
        max_length=20, required=False, default=CONSENT_VERSIONS[0]
    )
    consent = ConsentChoices(required=False)


_VOLUNTEER_FIELDS = (
    "id",
    "nickname",
    "email",
    "is_trusted",
    "created_at",
    "consent",
    "photos",
)


class VolunteerOut(serializers.ModelSerializer[Volunteer]):
    """A volunteer, as only they and staff see them."""

    consent = serializers.SerializerMethodField()
    photos = serializers.SerializerMethodField(help_text="How many are in each state.")

    class Meta:
        """No more than what is asked for."""

        model = Volunteer
        fields: tuple[str, ...] = _VOLUNTEER_FIELDS
        read_only_fields: tuple[str, ...] = fields

    @extend_schema_field(ConsentChoices)
    def get_consent(self, volunteer: Volunteer) -> dict[str, bool]:
        """Return each kind and whether it is in force."""
        in_force = queries.consents_in_force(volunteer)
        return {kind: kind in in_force for kind in Consent.Kind.values}

    @extend_schema_field({"type": "object", "additionalProperties": {"type": "integer"}})
    def get_photos(self, volunteer: Volunteer) -> dict[str, int]:
        """Return the counts by state."""
        return queries.photo_counts(volunteer)


class VolunteerWithToken(VolunteerOut):
    """A volunteer just registered."""

    token = serializers.SerializerMethodField(help_text="Shown once; the server keeps a digest.")

    class Meta(VolunteerOut.Meta):
        """And the token."""

        fields: tuple[str, ...] = (*_VOLUNTEER_FIELDS, "token")
        read_only_fields: tuple[str, ...] = fields

    def get_token(self, volunteer: Volunteer) -> str:  # noqa: ARG002
        """Return the token that came with the registration."""
        return str(self.context["token"])


class TrustChange(serializers.Serializer[Any]):
    """Whether staff trust a volunteer."""

    is_trusted = serializers.BooleanField(default=True)


class _PhotoFile(serializers.FileField):
    """A file, or a refusal in words that fit a photo."""

    def to_internal_value(self, data: Any) -> Any:
        """Return the file.

        Raises:
            InvalidInput: ``not_a_file``.

        """
        if not isinstance(data, UploadedFile):
            message = f"The field {self.field_name} must hold the photo's file, not text."
            raise InvalidInput(message, code="not_a_file")
        return super().to_internal_value(data)


class Upload(serializers.Serializer[Any]):
    """One photo, as multipart/form-data."""

    model = serializers.CharField(max_length=63, help_text="The model's slug.")
    label = serializers.CharField(max_length=80, help_text="What the photo shows.")
    image = _PhotoFile(allow_empty_file=True, max_length=1000, help_text=f"{FORMATS} are taken.")


class PhotoOut(serializers.ModelSerializer[Photo]):
    """A photo, as its volunteer sees it."""

    model = serializers.SlugRelatedField[Any](slug_field="slug", read_only=True)
    label = serializers.SlugRelatedField[Any](slug_field="name", read_only=True)
    state = serializers.ChoiceField(choices=Photo.State.choices, read_only=True)
    notes = serializers.ListField(
        child=serializers.CharField(),
        read_only=True,
        help_text="Stable codes, slightly_blurred for one.",
    )

    class Meta:
        """Nothing about anybody else's photos."""

        model = Photo
        fields = (
            "id",
            "model",
            "label",
            "state",
            "width",
            "height",
            "size_bytes",
            "camera",
            "notes",
            "rejection_code",
            "rejection_reason",
            "created_at",
            "decided_at",
        )
        read_only_fields = fields


class ChallengeOut(serializers.Serializer[Any]):
    """What is asked for today."""

    label = serializers.CharField()
    text = serializers.CharField()
    why = serializers.CharField()
    date = serializers.DateField()
    closes_at = serializers.DateTimeField()


class StandingOut(serializers.Serializer[Any]):
    """One place on the leaderboard."""

    rank = serializers.IntegerField()
    nickname = serializers.CharField()
    accepted = serializers.IntegerField()
    is_me = serializers.BooleanField()


class LeaderboardOut(serializers.Serializer[Any]):
    """The week's accepted photos of those who allow their nickname to be shown."""

    week_starts_at = serializers.DateTimeField()
    is_hidden = serializers.BooleanField(help_text="With fewer than five people there is no board.")
    people = serializers.IntegerField()
    standings = StandingOut(many=True)

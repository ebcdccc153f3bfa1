"""Volunteers' calls: HTTP in, one domain call, HTTP out."""

from __future__ import annotations

import io
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from django.core.files.uploadhandler import TemporaryFileUploadHandler
from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.generics import ListAPIView
from rest_framework.parsers import MultiPartParser
from rest_framework.permissions import AllowAny
from rest_framework.response import Response
from rest_framework.status import HTTP_200_OK, HTTP_201_CREATED, HTTP_204_NO_CONTENT
from rest_framework.views import APIView

from server import blobs
from server.domain.errors import InvalidInput, NotFound
from server.http.authentication import BearerAuthentication
from server.http.permissions import IsStaff, IsVolunteer
from server.photos import actions, queries, serializers
from server.photos.models import Photo, Volunteer
from server.registry.queries import get_model

if TYPE_CHECKING:
    from django.contrib.auth.models import User
    from django.db.models import QuerySet
    from django.http import HttpRequest
    from rest_framework.request import Request

THUMBNAIL_PX = 320
_SMALL_BODY_BYTES = 64 * 2**10


def _volunteer(request: Request) -> Volunteer | None:
    return cast("Volunteer | None", getattr(request.user, "volunteer", None))


def _me(request: Request) -> Volunteer:
    """Return the caller, whom the permission has found to be a volunteer."""
    return cast("Volunteer", cast("Any", request.user).volunteer)


class Terms(APIView):
    """What volunteers are asked to allow."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(
        operation_id="consent_terms", responses=serializers.ConsentTerms, tags=["volunteers"]
    )
    def get(self, request: Request) -> Response:  # noqa: ARG002
        """Return the present wording and its version."""
        return Response(serializers.consent_terms())


class Volunteers(APIView):
    """Registration."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    throttle_scope = "register"
    max_body_bytes = _SMALL_BODY_BYTES

    @extend_schema(
        operation_id="register_volunteer",
        request=serializers.Registration,
        responses={201: serializers.VolunteerWithToken},
        tags=["volunteers"],
    )
    def post(self, request: Request) -> Response:
        """Register; the answer holds the token, which is shown this once."""
        given = _checked(serializers.Registration, request)
        volunteer, token = actions.register_volunteer(
            nickname=given["nickname"],
            email=given["email"],
            consents=given.get("consent", {}),
            consent_version=given["consent_version"],
        )
        answer = serializers.VolunteerWithToken(volunteer, context={"token": token})
        return Response(answer.data, status=HTTP_201_CREATED, headers={"Cache-Control": "no-store"})


class Me(APIView):
    """The caller's own account."""

    authentication_classes = (BearerAuthentication,)
    permission_classes = (IsVolunteer,)
    max_body_bytes = _SMALL_BODY_BYTES

    @extend_schema(
        operation_id="get_me",
        responses={200: serializers.VolunteerOut},
        tags=["volunteers"],
    )
    def get(self, request: Request) -> Response:
        """Return what is kept about the caller."""
        return Response(serializers.VolunteerOut(_me(request)).data)

    @extend_schema(
        operation_id="change_me",
        request=serializers.VolunteerChange,
        responses={200: serializers.VolunteerOut},
        tags=["volunteers"],
    )
    def patch(self, request: Request) -> Response:
        """Change nickname, e-mail address or consents."""
        given = _checked(serializers.VolunteerChange, request)
        volunteer = actions.change_volunteer(
            volunteer=_me(request),
            nickname=given.get("nickname"),
            email=given.get("email"),
            consents=given.get("consent"),
            consent_version=given["consent_version"],
        )
        return Response(serializers.VolunteerOut(volunteer).data)

    @extend_schema(operation_id="erase_me", responses={204: None}, tags=["volunteers"])
    def delete(self, request: Request) -> Response:
        """Erase the caller: account, photos, and everything computed from them."""
        actions.erase_volunteer(volunteer=_me(request), actor=cast("User", request.user))
        return Response(status=HTTP_204_NO_CONTENT)


class Trust(APIView):
    """Staff's trust in a volunteer."""

    permission_classes = (IsStaff,)
    max_body_bytes = _SMALL_BODY_BYTES

    @extend_schema(
        operation_id="trust_volunteer",
        request=serializers.TrustChange,
        responses={200: serializers.VolunteerOut},
        tags=["operators"],
    )
    def post(self, request: Request, volunteer_id: uuid.UUID) -> Response:
        """Trust the volunteer, or no longer."""
        given = _checked(serializers.TrustChange, request)
        volunteer = queries.get_volunteer(volunteer_id)
        actions.set_trusted(
            volunteers=[volunteer],
            is_trusted=given["is_trusted"],
            actor=cast("User", request.user),
        )
        volunteer.refresh_from_db()
        return Response(serializers.VolunteerOut(volunteer).data)


class Photos(ListAPIView[Photo]):
    """The caller's photos."""

    authentication_classes = (BearerAuthentication,)
    permission_classes = (IsVolunteer,)
    parser_classes = (MultiPartParser,)
    serializer_class = serializers.PhotoOut

    @property
    def throttle_scope(self) -> str | None:
        """Return the bound on uploads; looking is free."""
        return "upload" if self.request.method == "POST" else None

    def get_queryset(self) -> QuerySet[Photo]:
        """Return the caller's own photos, newest first."""
        if getattr(self, "swagger_fake_view", False):
            return Photo.objects.none()
        return _me(self.request).photos.select_related("model", "label")

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """Have the upload written to disk as it arrives, whatever its size."""
        if request.method == "POST":
            request.upload_handlers = [TemporaryFileUploadHandler(request)]
        return super().initialize_request(request, *args, **kwargs)

    @extend_schema(
        operation_id="list_photos",
        responses={200: serializers.PhotoOut(many=True)},
        tags=["volunteers"],
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Return the caller's photos, newest first, in pages."""
        return super().get(request, *args, **kwargs)

    @extend_schema(
        operation_id="send_photo",
        request={"multipart/form-data": serializers.Upload},
        parameters=[
            OpenApiParameter(
                "Idempotency-Key",
                OpenApiTypes.STR,
                OpenApiParameter.HEADER,
                description="Sent again with the same key, a photo is taken once.",
            )
        ],
        responses={
            201: serializers.PhotoOut,
            200: OpenApiResponse(serializers.PhotoOut, description="This photo was sent before."),
        },
        tags=["volunteers"],
    )
    def post(self, request: Request) -> Response:
        """Send one photo."""
        given = _checked(serializers.Upload, request)
        model = _model_of_upload(given["model"])
        photo, is_new = actions.submit_photo(
            volunteer=_me(request),
            model=model,
            label=queries.get_label(model, given["label"]),
            file=given["image"],
            idempotency_key=request.headers.get("Idempotency-Key", "").strip(),
        )
        return Response(
            serializers.PhotoOut(photo).data, status=HTTP_201_CREATED if is_new else HTTP_200_OK
        )


class PhotoDetail(APIView):
    """One photo of the caller's."""

    authentication_classes = (BearerAuthentication,)
    permission_classes = (IsVolunteer,)

    @extend_schema(
        operation_id="get_photo",
        responses={200: serializers.PhotoOut},
        tags=["volunteers"],
    )
    def get(self, request: Request, photo_id: uuid.UUID) -> Response:
        """Return the photo's state."""
        photo = queries.get_photo(photo_id, volunteer=_me(request))
        return Response(serializers.PhotoOut(photo).data)

    @extend_schema(
        operation_id="withdraw_photo",
        responses={204: None},
        tags=["volunteers"],
    )
    def delete(self, request: Request, photo_id: uuid.UUID) -> Response:
        """Withdraw the photo: its pixels and all that was computed from them are deleted."""
        photo = queries.get_photo(photo_id, volunteer=_me(request))
        actions.withdraw_photo(photo=photo, actor=cast("User", request.user))
        return Response(status=HTTP_204_NO_CONTENT)


class PhotoImage(APIView):
    """A photo's pixels, for its volunteer and for staff."""

    permission_classes = (IsVolunteer | IsStaff,)

    @extend_schema(
        operation_id="get_photo_image",
        responses={(200, "image/jpeg"): OpenApiTypes.BINARY},
        tags=["volunteers"],
    )
    def get(self, request: Request, photo_id: uuid.UUID) -> HttpResponse:
        """Return the photo as it is stored: upright, without metadata."""
        return _image_response(_pixels_for(request, photo_id))


class PhotoThumbnail(APIView):
    """A small version of a photo, for its volunteer and for staff."""

    permission_classes = (IsVolunteer | IsStaff,)

    @extend_schema(
        operation_id="get_photo_thumbnail",
        responses={(200, "image/jpeg"): OpenApiTypes.BINARY},
        tags=["volunteers"],
    )
    def get(self, request: Request, photo_id: uuid.UUID) -> HttpResponse:
        """Return the photo within 320 × 320 pixels."""
        from PIL import Image

        # Safe to open here: these are bytes this server wrote itself.
        with Image.open(io.BytesIO(_pixels_for(request, photo_id))) as image:
            image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))
            image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=80)
        return _image_response(buffer.getvalue())


class ChallengeOfDay(APIView):
    """What is asked for today."""

    permission_classes = (IsVolunteer | IsStaff,)

    @extend_schema(
        operation_id="get_challenge",
        responses={200: serializers.ChallengeOut},
        tags=["volunteers"],
    )
    def get(self, request: Request, model: str) -> Response:  # noqa: ARG002
        """Return today's challenge and why it is asked."""
        challenge = queries.challenge_of_day(get_model(model), queries.today())
        return Response(serializers.ChallengeOut(asdict(challenge)).data)


class LeaderboardOfWeek(APIView):
    """Who has the most accepted photos this week."""

    permission_classes = (IsVolunteer | IsStaff,)

    @extend_schema(
        operation_id="get_leaderboard",
        responses={200: serializers.LeaderboardOut},
        tags=["volunteers"],
    )
    def get(self, request: Request, model: str) -> Response:
        """Return the first ten and the caller's neighbours."""
        board = queries.leaderboard(get_model(model), now=timezone.now(), me=_volunteer(request))
        return Response(serializers.LeaderboardOut(asdict(board)).data)


def _checked(kind: type[Any], request: Request) -> dict[str, Any]:
    """Return the request's members, checked."""
    form = kind(data=request.data)
    form.is_valid(raise_exception=True)
    return cast("dict[str, Any]", form.validated_data)


def _model_of_upload(slug: str) -> Any:
    """Return the model that a form names: not part of the address, so not 404."""
    try:
        return get_model(slug)
    except NotFound as error:
        raise InvalidInput(error.detail, code=error.code) from error


def _pixels_for(request: Request, photo_id: uuid.UUID) -> bytes:
    """Return the stored JPEG, to staff or to whose it is."""
    is_staff = bool(getattr(request.user, "is_staff", False))
    photo = queries.get_photo(photo_id, volunteer=None if is_staff else _me(request))
    if not photo.blob_sha256:
        raise NotFound("This photo was withdrawn; its pixels are gone.", code="photo_withdrawn")
    return blobs.store().read(photo.blob_sha256)


def _image_response(content: bytes) -> HttpResponse:
    return HttpResponse(
        content, content_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"}
    )

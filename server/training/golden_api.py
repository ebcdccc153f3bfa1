"""Golden photos over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.generics import ListAPIView
from rest_framework.response import Response
from rest_framework.views import APIView

from server.http.serializers import StrictSerializer, Text
from server.registry.queries import get_model
from server.training import golden
from server.training.models import GoldenPhoto

if TYPE_CHECKING:
    from rest_framework.request import Request


class GoldenSerializer(serializers.ModelSerializer[GoldenPhoto]):
    """A golden photo: which, who chose it, when and why."""

    shows = serializers.CharField(source="photo.label.name", read_only=True)
    pinned_by: serializers.SlugRelatedField[Any] = serializers.SlugRelatedField(
        read_only=True, slug_field="username"
    )

    class Meta:
        model = GoldenPhoto
        fields = ("photo", "shows", "reason", "pinned_by", "pinned_at")
        read_only_fields = fields


class PinSerializer(StrictSerializer):
    """Which photos become golden, and why."""

    photos = serializers.ListField(
        child=serializers.UUIDField(), min_length=1, max_length=golden.MAX_PINNED_AT_ONCE
    )
    reason = Text(max_length=300, required=False, allow_blank=True)


class PinnedSerializer(serializers.Serializer[Any]):
    """What came of it."""

    pinned = serializers.IntegerField(help_text="Those that were not golden before.")


class ReasonSerializer(StrictSerializer):
    """Why, in the query."""

    reason = Text(max_length=300, required=False, allow_blank=True)


class Golden(ListAPIView[GoldenPhoto]):
    """A model's golden set."""

    serializer_class = GoldenSerializer

    def get_queryset(self) -> QuerySet[GoldenPhoto]:
        """Return the golden photos of the model in the address."""
        return golden.list_golden(get_model(self.kwargs["model"]))

    @extend_schema(operation_id="list_golden", summary="List golden photos", tags=["models"])
    def get(self, request: Request, model: str) -> Response:  # noqa: ARG002
        """Return the golden photos, newest first, a page at a time."""
        return self.list(request)

    @extend_schema(
        operation_id="pin_golden",
        summary="Make photos golden: test photos for ever",
        tags=["models"],
        request=PinSerializer,
        responses={200: PinnedSerializer},
    )
    def post(self, request: Request, model: str) -> Response:
        """Pin all of them, or none; what trained before is refused."""
        values = PinSerializer.read(request.data)
        pinned = golden.pin_golden(
            model=get_model(model),
            photo_ids=values["photos"],
            reason=values.get("reason", ""),
            actor=request.user,
        )
        return Response({"pinned": len(pinned)})


class OneGolden(APIView):
    """One golden photo."""

    @extend_schema(
        operation_id="unpin_golden",
        summary="Take a photo out of the golden set",
        tags=["models"],
        parameters=[ReasonSerializer],
        request=None,
        responses={204: None},
    )
    def delete(self, request: Request, model: str, photo_id: UUID) -> Response:
        """Take it out; it stays a test photo."""
        values = ReasonSerializer.read(request.query_params.dict())
        golden.unpin_golden(
            model=get_model(model), photo_ids=[photo_id], actor=request.user, **values
        )
        return Response(status=204)

"""Application keys over HTTP, for operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.generics import ListAPIView
from rest_framework.response import Response
from rest_framework.views import APIView

from server.delivery import actions, queries
from server.delivery.models import ApplicationKey
from server.http.serializers import StrictSerializer, Text
from server.registry.queries import get_model

if TYPE_CHECKING:
    from rest_framework.request import Request


class ApplicationKeySerializer(serializers.ModelSerializer[ApplicationKey]):
    """A key as far as it is known after its making."""

    models = serializers.SerializerMethodField()

    class Meta:
        model = ApplicationKey
        fields: tuple[str, ...] = ("id", "name", "hint", "models", "created_at", "revoked_at")
        read_only_fields = fields

    def get_models(self, key: ApplicationKey) -> list[str]:
        """Return the slugs the key opens; none means every model."""
        return [model.slug for model in key.covers.all()]


class CreatedKeySerializer(ApplicationKeySerializer):
    """A new key with its text."""

    key = serializers.CharField(help_text="Shown this once: only its digest is kept.")

    class Meta(ApplicationKeySerializer.Meta):
        fields = (*ApplicationKeySerializer.Meta.fields, "key")


class NewKeySerializer(StrictSerializer):
    """What makes a key."""

    name = Text(max_length=120, help_text="Which application it is for.")
    models = serializers.ListField(
        child=serializers.SlugField(max_length=63), required=False, max_length=100,
        help_text="Slugs; empty opens every model.",
    )  # fmt: skip


class ApplicationKeys(ListAPIView[ApplicationKey]):
    """All keys."""

    serializer_class = ApplicationKeySerializer
    queryset = ApplicationKey.objects.prefetch_related("covers")

    @extend_schema(operation_id="list_keys", summary="List application keys", tags=["keys"])
    def get(self, request: Request) -> Response:
        """Return the keys without their texts."""
        return self.list(request)

    @extend_schema(
        operation_id="create_key",
        summary="Make an application key",
        tags=["keys"],
        request=NewKeySerializer,
        responses={201: CreatedKeySerializer},
    )
    def post(self, request: Request) -> Response:
        """Make a key; its text is in this answer and nowhere else."""
        values = NewKeySerializer.read(request.data)
        models = [get_model(slug) for slug in values.get("models", ())]
        key, text = actions.create_application_key(
            name=values["name"], models=models, actor=request.user
        )
        body: dict[str, Any] = {**ApplicationKeySerializer(key).data, "key": text}
        return Response(body, status=201)


class OneApplicationKey(APIView):
    """One key."""

    @extend_schema(
        operation_id="revoke_key",
        summary="Revoke an application key",
        tags=["keys"],
        responses={204: None},
    )
    def delete(self, request: Request, key_id: int) -> Response:
        """Close the key; web processes refuse it within seconds."""
        actions.revoke_application_key(key=queries.get_key(key_id), actor=request.user)
        return Response(status=204)

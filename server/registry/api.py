"""Models and single versions over HTTP. Lists of versions stand with uploads, in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drf_spectacular.utils import extend_schema
from rest_framework.generics import ListAPIView
from rest_framework.response import Response
from rest_framework.views import APIView

from server.registry import actions, queries
from server.registry.models import Model
from server.registry.serializers import (
    ModelChangeSerializer,
    ModelSerializer,
    NewModelSerializer,
    VersionDetailSerializer,
)

if TYPE_CHECKING:
    from rest_framework.request import Request


def _described(slug: str) -> dict[str, Any]:
    return dict(ModelSerializer(queries.models_with_photos().get(slug=slug)).data)


class Models(ListAPIView[Model]):
    """All models."""

    serializer_class = ModelSerializer
    queryset = queries.models_with_photos()

    @extend_schema(operation_id="list_models", summary="List models", tags=["models"])
    def get(self, request: Request) -> Response:
        """Return the models, a page at a time."""
        return self.list(request)

    @extend_schema(
        operation_id="create_model",
        summary="Make a model",
        tags=["models"],
        request=NewModelSerializer,
        responses={201: ModelSerializer},
    )
    def post(self, request: Request) -> Response:
        """Make a model with its ordered labels."""
        model = actions.create_model(**NewModelSerializer.read(request.data), actor=request.user)
        return Response(_described(model.slug), status=201)


class OneModel(APIView):
    """One model."""

    @extend_schema(
        operation_id="get_model",
        summary="Show a model",
        tags=["models"],
        responses={200: ModelSerializer},
    )
    def get(self, request: Request, model: str) -> Response:  # noqa: ARG002
        """Return the model."""
        return Response(_described(queries.get_model(model).slug))

    @extend_schema(
        operation_id="change_model",
        summary="Change a model's policies, or retire it",
        tags=["models"],
        request=ModelChangeSerializer,
        responses={200: ModelSerializer},
    )
    def patch(self, request: Request, model: str) -> Response:
        """Change the members given; the others stay."""
        changed = actions.change_model(
            model=queries.get_model(model),
            **ModelChangeSerializer.read(request.data),
            actor=request.user,
        )
        return Response(_described(changed.slug))


class OneVersion(APIView):
    """One version of a model."""

    @extend_schema(
        operation_id="get_version",
        summary="Show a version with metrics, variants and lineage",
        tags=["versions"],
        responses={200: VersionDetailSerializer},
    )
    def get(self, request: Request, model: str, number: int) -> Response:  # noqa: ARG002
        """Return the version."""
        version = queries.get_version(queries.get_model(model), number)
        return Response(VersionDetailSerializer(version).data)

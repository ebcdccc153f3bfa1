"""Runs, and versions by upload, over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.generics import ListAPIView
from rest_framework.parsers import MultiPartParser
from rest_framework.response import Response
from rest_framework.views import APIView

from server.registry.models import ModelVersion
from server.registry.queries import get_model, get_version
from server.registry.serializers import VersionSerializer
from server.training import actions, queries, uploads
from server.training.cards import model_card
from server.training.models import TrainingRun
from server.training.serializers import (
    AfterSerializer,
    CardSerializer,
    RunDetailSerializer,
    RunFilterSerializer,
    RunSerializer,
    VariantKindSerializer,
    VariantRequestSerializer,
    VersionUploadSerializer,
)

if TYPE_CHECKING:
    from rest_framework.request import Request

_RUN_STARTED = OpenApiResponse(RunSerializer, "Queued; `Location` is the run.")


def started(run: TrainingRun) -> Response:
    """Answer that a run was queued, and where it can be followed."""
    body = RunSerializer(run).data
    return Response(body, status=202, headers={"Location": body["url"]})


class Versions(ListAPIView[ModelVersion]):
    """A model's versions; a trained network of one's own becomes one by upload."""

    serializer_class = VersionSerializer
    parser_classes = (MultiPartParser,)
    max_body_bytes = staticmethod(uploads.max_body_bytes)

    def get_queryset(self) -> QuerySet[ModelVersion]:
        """Return the versions of the model in the address."""
        return get_model(self.kwargs["model"]).versions.select_related("model")

    @extend_schema(operation_id="list_versions", summary="List versions", tags=["versions"])
    def get(self, request: Request, model: str) -> Response:  # noqa: ARG002
        """Return the versions, newest first."""
        return self.list(request)

    @extend_schema(
        operation_id="upload_version",
        summary="Upload a trained network",
        tags=["versions"],
        request={"multipart/form-data": VersionUploadSerializer},
        responses={202: _RUN_STARTED},
    )
    def post(self, request: Request, model: str) -> Response:
        """Take the file; a run then compiles and measures it."""
        target = get_model(model)
        values = VersionUploadSerializer.read(request.data)
        file = values.pop("file")
        return started(
            actions.upload_version(
                model=target, file=file, filename=file.name, **values, actor=request.user
            )
        )


class Card(APIView):
    """What there is to know of a version, in one document."""

    @extend_schema(
        operation_id="get_card",
        summary="Show a version's model card",
        tags=["versions"],
        responses={200: CardSerializer},
    )
    def get(self, request: Request, model: str, number: int) -> Response:  # noqa: ARG002
        """Return the card: data, training, figures, gate, weaknesses, limits, provenance."""
        return Response(model_card(get_version(get_model(model), number)))


class Variants(APIView):
    """What a version can be compiled into, and more files of it on demand."""

    @extend_schema(
        operation_id="list_variant_kinds",
        summary="The menu of compiled files, and which of them the version has",
        tags=["versions"],
        responses={200: VariantKindSerializer(many=True)},
    )
    def get(self, request: Request, model: str, number: int) -> Response:  # noqa: ARG002
        """Return the menu."""
        version = get_version(get_model(model), number)
        return Response(VariantKindSerializer(queries.variant_menu(version), many=True).data)

    @extend_schema(
        operation_id="compile_variants",
        summary="Compile more files of a published version, into a version of their own",
        tags=["versions"],
        request=VariantRequestSerializer,
        responses={202: _RUN_STARTED},
    )
    def post(self, request: Request, model: str, number: int) -> Response:
        """Queue the run; the version it makes has the same weights and is not released."""
        version = get_version(get_model(model), number)
        values = VariantRequestSerializer.read(request.data)
        return started(
            actions.request_variants(version=version, kinds=values["kinds"], actor=request.user)
        )


class Train(APIView):
    """Training by hand."""

    @extend_schema(
        operation_id="train_model",
        summary="Train now",
        tags=["runs"],
        request=None,
        responses={202: _RUN_STARTED},
    )
    def post(self, request: Request, model: str) -> Response:
        """Queue a run; a model has one at a time."""
        return started(actions.request_run(model=get_model(model), actor=request.user))


class Runs(ListAPIView[TrainingRun]):
    """All runs."""

    serializer_class = RunSerializer

    def get_queryset(self) -> QuerySet[TrainingRun]:
        """Return the runs that the query asks for."""
        wanted = RunFilterSerializer(data=self.request.query_params)
        wanted.is_valid(raise_exception=True)
        return queries.list_runs(**wanted.validated_data)

    @extend_schema(
        operation_id="list_runs",
        summary="List runs",
        tags=["runs"],
        parameters=[RunFilterSerializer],
    )
    def get(self, request: Request) -> Response:
        """Return the runs, newest first."""
        return self.list(request)


class OneRun(APIView):
    """One run."""

    @extend_schema(
        operation_id="get_run",
        summary="Follow a run: state, progress, log and curves",
        tags=["runs"],
        parameters=[AfterSerializer],
        responses={200: RunDetailSerializer},
    )
    def get(self, request: Request, run_id: UUID) -> Response:
        """Return the run; with ``?after=`` only what was written since."""
        wanted = AfterSerializer(data=request.query_params)
        wanted.is_valid(raise_exception=True)
        run = queries.get_run(run_id)
        return Response(RunDetailSerializer(run, context=wanted.validated_data).data)


class CancelRun(APIView):
    """Cancelling."""

    @extend_schema(
        operation_id="cancel_run",
        summary="Cancel a run",
        tags=["runs"],
        request=None,
        responses={202: _RUN_STARTED},
    )
    def post(self, request: Request, run_id: UUID) -> Response:
        """Ask the run to stop; the answer is how it stands now."""
        run = queries.get_run(run_id)
        actions.cancel_run(run=run, actor=request.user)
        return started(queries.get_run(run_id))

"""Channels and releases over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework.generics import ListAPIView
from rest_framework.response import Response
from rest_framework.views import APIView

from server.registry.queries import get_model, get_version
from server.rollouts import actions, queries
from server.rollouts.models import Release
from server.rollouts.serializers import (
    ChannelSerializer,
    KilledSerializer,
    KillSerializer,
    NewReleaseSerializer,
    RecalledSerializer,
    RecallSerializer,
    ReleaseSerializer,
    RollbackSerializer,
)

if TYPE_CHECKING:
    from rest_framework.request import Request

    from server.registry.models import Model


def _channels(model: Model) -> list[dict[str, Any]]:
    serving = queries.serving([model])
    return [{"name": channel.name, "serves": release} for channel, release in serving]


class Channels(APIView):
    """A model's channels."""

    @extend_schema(
        operation_id="list_channels",
        summary="List channels with what each serves",
        tags=["releases"],
        responses={200: ChannelSerializer(many=True)},
    )
    def get(self, request: Request, model: str) -> Response:  # noqa: ARG002
        """Return the channels; there are few."""
        return Response(ChannelSerializer(_channels(get_model(model)), many=True).data)


class Releases(ListAPIView[Release]):
    """A channel's releases; the first release makes the channel."""

    serializer_class = ReleaseSerializer

    def get_queryset(self) -> QuerySet[Release]:
        """Return the releases of the channel in the address."""
        channel = queries.get_channel(get_model(self.kwargs["model"]), self.kwargs["channel"])
        return channel.releases.select_related("channel__model", "version")

    @extend_schema(operation_id="list_releases", summary="List releases", tags=["releases"])
    def get(self, request: Request, model: str, channel: str) -> Response:  # noqa: ARG002
        """Return the releases, newest first."""
        return self.list(request)

    @extend_schema(
        operation_id="release_version",
        summary="Release a version",
        tags=["releases"],
        request=NewReleaseSerializer,
        responses={201: ReleaseSerializer},
    )
    def post(self, request: Request, model: str, channel: str) -> Response:
        """Put a published version on the channel under its next label."""
        values = NewReleaseSerializer.read(request.data)
        version = get_version(get_model(model), values.pop("version"))
        release = actions.release_version(
            version=version, channel=channel, **values, actor=request.user
        )
        return Response(ReleaseSerializer(release).data, status=201)


class Rollback(APIView):
    """Going back."""

    @extend_schema(
        operation_id="roll_back",
        summary="Release an earlier version again, under a new label",
        tags=["releases"],
        request=RollbackSerializer,
        responses={201: ReleaseSerializer},
    )
    def post(self, request: Request, model: str, channel: str) -> Response:
        """Release the earlier version."""
        values = RollbackSerializer.read(request.data)
        target = get_model(model)
        to = get_version(target, values["to"]) if "to" in values else None
        release = actions.roll_back(
            model=target,
            channel=channel,
            to=to,
            reason=values.get("reason", ""),
            actor=request.user,
        )
        return Response(ReleaseSerializer(release).data, status=201)


class Kill(APIView):
    """Withdrawing at once."""

    @extend_schema(
        operation_id="kill_release",
        summary="Revoke what a channel serves; devices drop it at their next poll",
        tags=["releases"],
        request=KillSerializer,
        responses={200: KilledSerializer},
    )
    def post(self, request: Request, model: str) -> Response:
        """Revoke the release and serve the one before it, if there is one."""
        values = KillSerializer.read(request.data)
        serving = actions.kill(model=get_model(model), **values, actor=request.user)
        return Response({"now_serving": ReleaseSerializer(serving).data if serving else None})


class Recall(APIView):
    """Withdrawing a version for good, wherever it went."""

    @extend_schema(
        operation_id="recall_version",
        summary="Recall a version from every channel; devices delete it at their next poll",
        tags=["releases"],
        request=RecallSerializer,
        responses={200: RecalledSerializer, 202: RecalledSerializer},
    )
    def post(self, request: Request, model: str, number: int) -> Response:
        """Recall it; 202 until the policy that tells devices so is signed."""
        values = RecallSerializer.read(request.data)
        target = get_model(model)
        version = get_version(target, number)
        recall = actions.recall_version(version=version, **values, actor=request.user)
        is_signed = queries.is_signed(target)
        body = {
            "model": target.slug,
            "version": version.number,
            "reason": recall.reason,
            "recalled_at": recall.created_at,
            "is_signed": is_signed,
            "channels": _channels(target),
        }
        return Response(RecalledSerializer(body).data, status=200 if is_signed else 202)

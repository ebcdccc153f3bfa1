"""Fleets and releases' telemetry over HTTP, for staff. Devices report through delivery."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from drf_spectacular.utils import extend_schema
from rest_framework.response import Response
from rest_framework.views import APIView

from server.registry.queries import get_model
from server.telemetry import queries
from server.telemetry.serializers import (
    FleetQuerySerializer,
    FleetSerializer,
    ReleaseFactsSerializer,
    TelemetryQuerySerializer,
)

if TYPE_CHECKING:
    from rest_framework.request import Request


class Fleet(APIView):
    """What the installations of a model run."""

    @extend_schema(
        operation_id="get_fleet",
        summary="Show versions in the field, silent installations and who still runs a revoked one",
        tags=["telemetry"],
        parameters=[FleetQuerySerializer],
        responses={200: FleetSerializer},
    )
    def get(self, request: Request, model: str) -> Response:
        """Return the fleet."""
        days = FleetQuerySerializer.read(request.query_params.dict())["days"]
        found = get_model(model)
        history = [
            {"day": day, "label": label, "installations": count}
            for day, label, count in queries.fleet_history(found)
        ]
        fleet = asdict(queries.fleet(found, days=days))
        return Response(FleetSerializer({**fleet, "history": history}).data)


class Telemetry(APIView):
    """What was reported of a release."""

    @extend_schema(
        operation_id="get_telemetry",
        summary="Show what installations reported of a release, with latencies and feedback",
        tags=["telemetry"],
        parameters=[TelemetryQuerySerializer],
        responses={200: ReleaseFactsSerializer},
    )
    def get(self, request: Request, model: str) -> Response:
        """Return the release's facts; zeros where nothing was reported."""
        wanted = TelemetryQuerySerializer.read(request.query_params.dict())
        facts = queries.release_facts(
            get_model(model).slug, wanted["channel"], wanted["label"], days=wanted["days"]
        )
        return Response(ReleaseFactsSerializer(facts).data)

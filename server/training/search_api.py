"""Budget searches over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.response import Response
from rest_framework.views import APIView

from server.domain.budgets import MOST_FINALISTS
from server.http.serializers import StrictSerializer, Text
from server.registry.queries import get_model
from server.training import queries, searches
from server.training.api import started
from server.training.models import BudgetSearch
from server.training.serializers import RunSerializer

if TYPE_CHECKING:
    from uuid import UUID

    from rest_framework.request import Request


class BudgetSerializer(StrictSerializer):
    """What the network must keep to; at least one of the three limits."""

    max_size_bytes = serializers.IntegerField(
        required=False, min_value=1, max_value=10**11, help_text="Of the TFLite file."
    )
    max_latency_ms = serializers.FloatField(
        required=False, min_value=1e-6, max_value=1e9,
        help_text="Of the network alone, on this server, one thread, the middle of all photos.",
    )  # fmt: skip
    min_accuracy = serializers.FloatField(
        required=False, min_value=1e-6, max_value=1,
        help_text="A share of photos; the smallest file that reaches it is chosen.",
    )  # fmt: skip
    networks = serializers.ListField(
        child=Text(max_length=60), required=False, max_length=100,
        help_text="Those to try; left out, all whose weights are at hand.",
    )  # fmt: skip
    finalists = serializers.IntegerField(
        required=False, min_value=1, max_value=MOST_FINALISTS, help_text="How many are trained."
    )


class AdoptSerializer(StrictSerializer):
    """Which finalist."""

    candidate = serializers.IntegerField(
        min_value=0, max_value=10_000, help_text="Its place in the list, from 0."
    )


class SearchSerializer(serializers.ModelSerializer[BudgetSearch]):
    """What a search looks for, and every candidate it has judged."""

    budget = serializers.DictField()
    candidates = serializers.ListField(child=serializers.DictField())
    state = serializers.CharField(source="run.state")
    outcome = serializers.CharField(source="run.outcome")

    class Meta:
        model = BudgetSearch
        fields = ("budget", "state", "candidates", "chosen", "sentence", "outcome")
        read_only_fields = fields


class Searches(APIView):
    """Searching a model's network."""

    @extend_schema(
        operation_id="search_budget",
        summary="Search the best network within a budget",
        tags=["searches"],
        request=BudgetSerializer,
        responses={202: OpenApiResponse(RunSerializer, "Queued; `Location` is the run.")},
    )
    def post(self, request: Request, model: str) -> Response:
        """Queue the run; it changes nothing on any device."""
        budget: dict[str, Any] = BudgetSerializer.read(request.data)
        return started(
            searches.request_search(model=get_model(model), budget=budget, actor=request.user)
        )


class OneSearch(APIView):
    """One search."""

    @extend_schema(
        operation_id="get_search",
        summary="What a search has found so far",
        tags=["searches"],
        responses={200: SearchSerializer},
    )
    def get(self, request: Request, run_id: UUID) -> Response:  # noqa: ARG002
        """Return the candidates: the finalists' files first, then who was dropped, and why."""
        return Response(SearchSerializer(searches.get_search(queries.get_run(run_id))).data)


class Adoption(APIView):
    """A finalist as the model's policy."""

    @extend_schema(
        operation_id="adopt_candidate",
        summary="Train a finalist from the next night on",
        tags=["searches"],
        request=AdoptSerializer,
        responses={200: OpenApiResponse(SearchSerializer, "The policy was changed.")},
    )
    def post(self, request: Request, run_id: UUID) -> Response:
        """Change the model's policy; devices notice nothing before the next release."""
        place = AdoptSerializer.read(request.data)["candidate"]
        search = searches.get_search(queries.get_run(run_id))
        searches.adopt_candidate(search=search, place=place, actor=request.user)
        return Response(SearchSerializer(search).data)

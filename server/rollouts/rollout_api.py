"""Rollouts over HTTP, with overrides, the golden version and delivery policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.generics import ListAPIView
from rest_framework.response import Response
from rest_framework.views import APIView

from server.domain.errors import InvalidInput
from server.domain.stages import TRANSITIONS
from server.registry.queries import get_model, get_version
from server.rollouts import actions, queries, staging
from server.rollouts.models import Override, Rollout, RolloutDecision
from server.rollouts.rollout_serializers import (
    DecisionSerializer,
    DeliveryPolicySerializer,
    GoldenSerializer,
    GoldenShownSerializer,
    NewOverrideSerializer,
    NewRolloutSerializer,
    OverrideSerializer,
    PlanSerializer,
    RolloutChangeSerializer,
    RolloutDetailSerializer,
    RolloutSerializer,
    WhySerializer,
)

if TYPE_CHECKING:
    from rest_framework.request import Request

    from server.registry.models import Model

_FILTERS = [
    OpenApiParameter("model", str, description="A model's slug."),
    OpenApiParameter("channel", str),
    OpenApiParameter("state", str, enum=list(TRANSITIONS)),
]


class Rollouts(ListAPIView[Rollout]):
    """All rollouts."""

    serializer_class = RolloutSerializer

    def get_queryset(self) -> QuerySet[Rollout]:
        """Return what the query asks for; text that cannot be stored matches nothing.

        Raises:
            InvalidInput: ``invalid_state``.

        """
        state = self.request.query_params.get("state")
        if state and state not in TRANSITIONS:
            message = f"state is {state[:40]!r}; it takes one of {', '.join(TRANSITIONS)}."
            raise InvalidInput(message, code="invalid_state")
        asked = {
            "channel__model__slug": self.request.query_params.get("model"),
            "channel__name": self.request.query_params.get("channel"),
            "state": state,
        }
        wanted = {name: value.replace("\0", "?") for name, value in asked.items() if value}
        return queries.list_rollouts().filter(**wanted)

    @extend_schema(
        operation_id="list_rollouts", summary="List rollouts", tags=["rollouts"],
        parameters=_FILTERS,
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        """Return the rollouts, newest first."""
        return self.list(request)

    @extend_schema(
        operation_id="create_rollout",
        summary="Draft a rollout of a published version",
        tags=["rollouts"],
        request=NewRolloutSerializer,
        responses={201: RolloutDetailSerializer},
    )
    def post(self, request: Request) -> Response:
        """Draft it; it reaches nobody before it is started."""
        values = NewRolloutSerializer.read(request.data)
        version = get_version(get_model(values.pop("model")), values.pop("version"))
        rollout = staging.create_rollout(version=version, **values, actor=request.user)
        return Response(RolloutDetailSerializer(rollout).data, status=201)


class OneRollout(APIView):
    """One rollout."""

    @extend_schema(
        operation_id="get_rollout",
        summary="Show a rollout with its forecast",
        tags=["rollouts"],
        responses={200: RolloutDetailSerializer},
    )
    def get(self, request: Request, rollout_id: int) -> Response:  # noqa: ARG002
        """Return the rollout."""
        return Response(RolloutDetailSerializer(queries.get_rollout(rollout_id)).data)

    @extend_schema(
        operation_id="change_rollout",
        summary="Change a rollout that has not started",
        tags=["rollouts"],
        request=RolloutChangeSerializer,
        responses={200: RolloutDetailSerializer},
    )
    def patch(self, request: Request, rollout_id: int) -> Response:
        """Change what is given; 409 once it is under way or finished."""
        values = RolloutChangeSerializer.read(request.data)
        rollout = staging.change_rollout(
            rollout=queries.get_rollout(rollout_id), **values, actor=request.user
        )
        return Response(RolloutDetailSerializer(rollout).data)


class Decisions(ListAPIView[RolloutDecision]):
    """A rollout's decisions."""

    serializer_class = DecisionSerializer

    def get_queryset(self) -> QuerySet[RolloutDecision]:
        """Return the decisions of the rollout in the address."""
        rollout = queries.get_rollout(self.kwargs["rollout_id"])
        return rollout.decisions.select_related("actor")

    @extend_schema(
        operation_id="list_decisions",
        summary="List every look and every verb with what was known",
        tags=["rollouts"],
    )
    def get(self, request: Request, rollout_id: int) -> Response:  # noqa: ARG002
        """Return the decisions, newest first."""
        return self.list(request)


def _verb(name: str, summary: str) -> type[APIView]:
    """Return the call of one verb."""

    class Act(APIView):
        """A verb on a rollout."""

        @extend_schema(
            operation_id=f"{name}_rollout",
            summary=summary,
            tags=["rollouts"],
            request=WhySerializer,
            responses={200: RolloutDetailSerializer},
        )
        def post(self, request: Request, rollout_id: int) -> Response:
            """Do it; 409 with a code where the present state forbids it."""
            values = WhySerializer.read(request.data)
            rollout = queries.get_rollout(rollout_id)
            staging.VERBS[name](rollout=rollout, **values, actor=request.user)
            return Response(RolloutDetailSerializer(queries.get_rollout(rollout_id)).data)

    return Act


VERBS: dict[str, type[APIView]] = {
    name: _verb(name, summary)
    for name, summary in (
        ("start", "Start: the candidate gets its label and the first stage begins"),
        ("queue", "Start as soon as nothing else is under way on the channel"),
        ("pause", "Take nobody new and grow no further"),
        ("resume", "Go on after a pause"),
        ("advance", "Enter the next stage now"),
        ("rollback", "Give everybody the incumbent again, under a new label"),
        ("kill", "End the rollout and revoke the candidate"),
    )
}


class Approve(APIView):
    """A person's approval."""

    @extend_schema(
        operation_id="approve_rollout",
        summary="Approve of a rollout that somebody else drafted",
        tags=["rollouts"],
        request=None,
        responses={200: RolloutDetailSerializer},
    )
    def post(self, request: Request, rollout_id: int) -> Response:
        """Note it; a rollout that waited for it starts."""
        staging.approve_rollout(rollout=queries.get_rollout(rollout_id), actor=request.user)
        return Response(RolloutDetailSerializer(queries.get_rollout(rollout_id)).data)


class Overrides(ListAPIView[Override]):
    """A channel's overrides."""

    serializer_class = OverrideSerializer

    def get_queryset(self) -> QuerySet[Override]:
        """Return the overrides of the channel in the address."""
        channel = queries.get_channel(get_model(self.kwargs["model"]), self.kwargs["channel"])
        return channel.overrides.select_related("release__version")

    @extend_schema(operation_id="list_overrides", summary="List overrides", tags=["rollouts"])
    def get(self, request: Request, model: str, channel: str) -> Response:  # noqa: ARG002
        """Return the installations that get one release."""
        return self.list(request)

    @extend_schema(
        operation_id="set_override",
        summary="Give one installation a version, whatever the others get",
        tags=["rollouts"],
        request=NewOverrideSerializer,
        responses={201: OverrideSerializer},
    )
    def post(self, request: Request, model: str, channel: str) -> Response:
        """Set it; the installation is never analysed."""
        values = NewOverrideSerializer.read(request.data)
        target = get_model(model)
        version = get_version(target, values.pop("version"))
        override = staging.set_override(
            model=target, channel=channel, version=version, **values, actor=request.user
        )
        return Response(OverrideSerializer(override).data, status=201)


class OneOverride(APIView):
    """One installation's override."""

    @extend_schema(
        operation_id="remove_override",
        summary="Let the installation have what it would have without",
        tags=["rollouts"],
        responses={204: None},
    )
    def delete(self, request: Request, model: str, channel: str, device: str) -> Response:
        """Remove it."""
        stream = queries.get_channel(get_model(model), channel)
        override = queries.get_override(stream, device.replace("\0", "?"))
        staging.remove_override(override=override, actor=request.user)
        return Response(status=204)


class Golden(APIView):
    """The version that the holdout stays on."""

    @extend_schema(
        operation_id="set_golden",
        summary="Choose the golden version that a holdout stays on",
        tags=["rollouts"],
        request=GoldenSerializer,
        responses={200: GoldenShownSerializer},
    )
    def put(self, request: Request, model: str, channel: str) -> Response:
        """Choose it; null ends the holdout."""
        values = GoldenSerializer.read(request.data)
        target = get_model(model)
        number = values["version"]
        version = get_version(target, number) if number is not None else None
        stream = staging.set_golden(
            model=target, channel=channel, version=version, actor=request.user
        )
        golden = stream.golden
        body = {
            "channel": stream.name,
            "label": golden.label if golden else None,
            "version": golden.version.number if golden else None,
        }
        return Response(GoldenShownSerializer(body).data)


class DeliveryPolicies(APIView):
    """How a model's new versions reach devices."""

    @extend_schema(
        operation_id="get_delivery_policy",
        summary="Show the delivery policy, and what it would do tonight",
        tags=["rollouts"],
        responses={200: PlanSerializer},
    )
    def get(self, request: Request, model: str) -> Response:  # noqa: ARG002
        """Return what holds."""
        return Response(_plan(get_model(model)))

    @extend_schema(
        operation_id="set_delivery_policy",
        summary="Replace the delivery policy",
        tags=["rollouts"],
        request=DeliveryPolicySerializer,
        responses={200: PlanSerializer},
    )
    def put(self, request: Request, model: str) -> Response:
        """Replace it; what is left out takes its default."""
        values = DeliveryPolicySerializer.read(request.data)
        target = get_model(model)
        actions.set_delivery_policy(model=target, policy=values, actor=request.user)
        return Response(_plan(target))


def _plan(model: Model) -> dict[str, Any]:
    plan = staging.plan(model=model, channel=actions.PRODUCTION)
    return {
        "is_staged": plan.is_staged,
        "sentence": plan.sentence,
        "delivery_policy": DeliveryPolicySerializer.show(model.delivery_policy),
    }

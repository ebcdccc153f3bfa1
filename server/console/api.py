"""Staff tokens over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drf_spectacular.utils import extend_schema
from knox.models import AuthToken
from rest_framework import serializers
from rest_framework.permissions import AllowAny
from rest_framework.response import Response
from rest_framework.views import APIView

from server.console import actions
from server.domain.errors import Conflict
from server.http.serializers import StrictSerializer, Text, Whole

if TYPE_CHECKING:
    from rest_framework.request import Request


class SignInSerializer(StrictSerializer):
    """Who signs in."""

    username = Text(max_length=150)
    password = Text(max_length=1024, trim_whitespace=False, write_only=True)
    days = Whole(
        min_value=1, max_value=365, default=actions.TOKEN_DAYS, help_text="How long it is valid."
    )


class TokenSerializer(serializers.Serializer[Any]):
    """A new token."""

    token = serializers.CharField(help_text="For `Authorization: Bearer`; shown this once.")
    username = serializers.CharField()
    expires_at = serializers.DateTimeField()


class SignIn(APIView):
    """The way in for programs."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    throttle_scope = "login"

    @extend_schema(
        operation_id="create_token",
        summary="Get a staff token for a name and a password",
        tags=["access"],
        request=SignInSerializer,
        responses={201: TokenSerializer},
    )
    def post(self, request: Request) -> Response:
        """Check the password and make a token."""
        values = SignInSerializer.read(request.data)
        token, text = actions.sign_in(request=request._request, **values)  # noqa: SLF001
        body = {
            "token": text,
            "username": token.user.get_username(),
            "expires_at": token.expiry,
        }
        return Response(TokenSerializer(body).data, status=201)


class SignOut(APIView):
    """The way out."""

    @extend_schema(
        operation_id="revoke_token",
        summary="Revoke the token this call is made with",
        tags=["access"],
        responses={204: None},
    )
    def delete(self, request: Request) -> Response:
        """Make the token worthless."""
        if not isinstance(request.auth, AuthToken):
            message = "This call came with a session; sign out in the admin instead."
            raise Conflict(message, code="no_token")
        actions.sign_out(token=request.auth)
        return Response(status=204)

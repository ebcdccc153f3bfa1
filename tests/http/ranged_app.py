"""The smallest Django project that sends blobs: one view, and middleware as in production."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import path

if TYPE_CHECKING:
    from server.http.ranges import Delivery

settings.configure(
    SECRET_KEY="only for this test",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    BLOB_STORE_URL=os.environ["BLOB_STORE_URL"],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django_structlog.middlewares.RequestMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
)


def artifact(request: HttpRequest, sha256: str) -> HttpResponseBase:
    """Send a blob the way the environment says."""
    from server import blobs
    from server.http.ranges import Accel, Redirect, Stream, ranged_response

    store = blobs.store()
    media_type, filename = "application/x-tflite", "recyclables 3.tflite"

    def presigned() -> str:
        url = store.presign(sha256, media_type=media_type, filename=filename, expires_s=60)
        assert url is not None
        return url

    ways: dict[str, Delivery] = {
        "stream": Stream(),
        "accel": Accel(store.accel_path(sha256, media_type=media_type)),
        "redirect": Redirect(presigned),
    }
    return ranged_response(
        request,
        open_reader=lambda: store.open(sha256),
        size_bytes=store.size_bytes(sha256),
        etag=sha256,
        media_type=media_type,
        filename=filename,
        delivery=ways[os.environ["ARTIFACT_DELIVERY"]],
    )


urlpatterns = [
    path("artifacts/<str:sha256>", artifact),
    path("quick", lambda request: HttpResponse("quick", content_type="text/plain")),  # noqa: ARG005
]
application = get_wsgi_application()

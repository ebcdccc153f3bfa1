"""Every address of the server."""

from __future__ import annotations

from django.contrib import admin
from django.templatetags.static import static
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from server.health import healthz, readyz

api: list[URLPattern | URLResolver] = [
    path("", include("server.delivery.urls")),
    path("", include("server.photos.urls")),
    path("", include("server.registry.urls")),
    path("", include("server.training.urls")),
    path("", include("server.rollouts.urls")),
    path("", include("server.telemetry.urls")),
    path("", include("server.console.urls")),
    path("schema", SpectacularAPIView.as_view(), name="schema"),
    path("docs", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
]

urlpatterns = [
    path("api/v1/", include(api)),
    path("healthz", healthz, name="healthz"),
    path("readyz", readyz, name="readyz"),
    path("", include("django_prometheus.urls")),
    path("admin/", admin.site.urls),
    # Browsers ask for it on pages that name no icon.
    path("favicon.ico", RedirectView.as_view(url=static("nightferry/favicon.svg"))),
    path("", RedirectView.as_view(pattern_name="admin:index"), name="home"),
]

handler400 = "server.http.problems.bad_request"
handler404 = "server.http.problems.not_found"
handler500 = "server.http.problems.server_error"

"""The console's side bar and what every page of it loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.templatetags.static import static
from django.urls import reverse

if TYPE_CHECKING:
    from django.http import HttpRequest

# Group → (title, symbol, app and model in lower case).
_GROUPS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Models",
        (
            ("Models", "category", "registry_model"),
            ("Versions", "layers", "registry_modelversion"),
            ("Runs", "model_training", "training_trainingrun"),
            ("Nights", "bedtime", "training_night"),
            ("Snapshots", "inventory_2", "training_datasetsnapshot"),
        ),
    ),
    (
        "Devices",
        (
            ("Channels", "podcasts", "rollouts_channel"),
            ("Releases", "rocket_launch", "rollouts_release"),
            ("Rollouts", "stacked_line_chart", "rollouts_rollout"),
            ("Overrides", "push_pin", "rollouts_override"),
            ("Webhooks", "webhook", "rollouts_webhook"),
            ("Recalls", "undo", "rollouts_recall"),
            ("Trust", "verified_user", "trust_metadatafile"),
            ("Fleet", "devices", "telemetry_installation"),
            ("Telemetry", "query_stats", "telemetry_releasearm"),
            ("Events", "monitoring", "telemetry_event"),
            ("Application keys", "key", "delivery_applicationkey"),
        ),
    ),
    (
        "Photos",
        (
            ("Photos", "photo_library", "photos_photo"),
            ("Golden photos", "star", "training_goldenphoto"),
            ("Volunteers", "groups", "photos_volunteer"),
            ("Reviews", "rate_review", "photos_review"),
            ("Challenges", "flag", "photos_challenge"),
        ),
    ),
    (
        "Server",
        (
            ("Jobs", "work_history", "jobs_job"),
            ("Schedule", "schedule", "django_celery_beat_periodictask"),
            ("Audit log", "history", "http_auditentry"),
            ("Accounts", "person", "auth_user"),
            ("Groups", "group", "auth_group"),
            ("Tokens", "vpn_key", "knox_authtoken"),
            ("Failed sign-ins", "gpp_maybe", "axes_accessattempt"),
        ),
    ),
)


def groups(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the side bar for an account: only what it may see."""
    allowed = {
        f"{app['app_label']}_{model['object_name'].lower()}"
        for app in admin.site.get_app_list(request)
        for model in app["models"]
        if model.get("admin_url")
    }
    index = reverse("admin:index")
    home = {"title": "Home", "icon": "home", "link": index, "active": request.path == index}
    bar: list[dict[str, Any]] = [{"items": [home]}]
    for title, entries in _GROUPS:
        items = [_item(request, *entry) for entry in entries if entry[2] in allowed]
        if items:
            bar.append({"title": title, "separator": True, "items": items})
    return bar


def _item(request: HttpRequest, title: str, symbol: str, name: str) -> dict[str, Any]:
    link = reverse(f"admin:{name}_changelist")
    return {
        "title": title,
        "icon": symbol,
        "link": link,
        "active": request.path.startswith(link),
    }


def favicon(request: HttpRequest) -> str:  # noqa: ARG001
    """Return the address of the icon in the browser's tab."""
    return static("nightferry/favicon.svg")


def stylesheet(request: HttpRequest) -> str:  # noqa: ARG001
    """Return our own style sheet's address."""
    return static("nightferry/admin.css")


def script(request: HttpRequest) -> str:  # noqa: ARG001
    """Return our own script's address."""
    return static("nightferry/live.js")

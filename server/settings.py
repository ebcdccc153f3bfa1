"""Django settings: every one that an operator may change is an environment variable.

``dotenv-sample`` lists them all; a test compares the two.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured
from django.urls import reverse_lazy

from server import env
from server.logs import configure as configure_logs

BASE_DIR = Path(__file__).resolve().parent.parent
NIGHTFERRY_DATA = env.folder("NIGHTFERRY_DATA", BASE_DIR / "data")

# --- Safety -----------------------------------------------------------------------------------
DEBUG = env.flag("DEBUG", default=False)
ALLOWED_HOSTS = env.words("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
CSRF_FAILURE_VIEW = "server.http.problems.csrf_failed"
CSRF_TRUSTED_ORIGINS = env.words("CSRF_TRUSTED_ORIGINS")


def _make_data_folder() -> None:
    """Make the folder of the embedded database, blobs and broker."""
    try:
        # Photos and addresses lie here: other users of the machine have no business in it.
        NIGHTFERRY_DATA.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        message = (
            f"NIGHTFERRY_DATA is {str(NIGHTFERRY_DATA)!r}, which cannot be made"
            f" ({error.strerror}). Name a writable folder."
        )
        raise ImproperlyConfigured(message) from error


def _secret_key() -> str:
    """Return the configured key, else one made on first start and kept in the data folder."""
    if key := env.secret("SECRET_KEY"):
        return key
    _make_data_folder()
    path = NIGHTFERRY_DATA / "secret_key"
    try:
        with tempfile.NamedTemporaryFile("w", dir=NIGHTFERRY_DATA, encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(48))
            file.flush()
            # Linked whole or not at all: processes that start together must agree on one key.
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    except OSError as error:
        message = (
            f"NIGHTFERRY_DATA is {str(NIGHTFERRY_DATA)!r}, which cannot be written"
            f" ({error.strerror}). Name a writable folder, or set SECRET_KEY."
        )
        raise ImproperlyConfigured(message) from error
    return path.read_text(encoding="utf-8")


SECRET_KEY = _secret_key()
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
HTTPS_ONLY = env.flag("HTTPS_ONLY", default=False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS_ONLY
SESSION_COOKIE_HTTPONLY = True
SECURE_SSL_REDIRECT = HTTPS_ONLY
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS_ONLY else 0
if HTTPS_ONLY:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
TRUSTED_PROXIES = env.integer("TRUSTED_PROXIES", 0, maximum=10)

# --- Applications -----------------------------------------------------------------------------
INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "knox",
    "axes",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_celery_beat",
    "django_prometheus",
    "django_structlog",
    "server.jobs",
    "server.http",
    "server.trust",
    "server.registry",
    "server.photos",
    "server.telemetry",
    "server.training",
    "server.rollouts",
    "server.delivery",
    "server.console",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "server.photos.middleware.UploadLimitMiddleware",
    "django_structlog.middlewares.RequestMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "server.http.middleware.ContentSecurityPolicyMiddleware",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "server.urls"
WSGI_APPLICATION = "server.wsgi.application"
APPEND_SLASH = False
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 10},
    },
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = 0.25  # hours
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
# Axes and the throttles must count the same address.
AXES_CLIENT_IP_CALLABLE = "server.http.throttles.client_address"
AXES_VERBOSE = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
USE_I18N = False
FORMAT_MODULE_PATH = "server.console.formats"

# --- Database ---------------------------------------------------------------------------------


def _database() -> dict[str, Any]:
    """Read DATABASE_URL; SQLite gets write-ahead logging and immediate transactions."""
    url = env.secret("DATABASE_URL") or f"sqlite:///{NIGHTFERRY_DATA / 'nightferry.sqlite3'}"
    try:
        database: dict[str, Any] = dict(environ.Env.db_url_config(url))
    except Exception as error:
        message = "DATABASE_URL is not a database address such as postgres://user@host/name."
        raise ImproperlyConfigured(message) from error
    if database.get("ENGINE") == "django.db.backends.sqlite3":
        _make_data_folder()
        database["OPTIONS"] = {
            "timeout": 20,
            # A transaction that reads and then writes would otherwise fail at once, not wait.
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        }
        # Whoever closes the last connection writes the whole log back into the database.
        database["CONN_MAX_AGE"] = 600
        # Tests write to a file too: threads of a test server see what an in-memory one hides.
        database["TEST"] = {"NAME": str(NIGHTFERRY_DATA / "test.sqlite3")}
    elif database.get("ENGINE") == "django.db.backends.postgresql":
        # A new connection costs ten times a query: keep them.
        database["CONN_MAX_AGE"] = 600
        database["CONN_HEALTH_CHECKS"] = True
    else:
        message = "DATABASE_URL takes a postgres:// or sqlite:// address."
        raise ImproperlyConfigured(message)
    return database


DATABASES = {"default": _database()}

# --- Files ------------------------------------------------------------------------------------
BLOB_STORE_URL = env.secret("BLOB_STORE_URL") or str(NIGHTFERRY_DATA / "blobs")
ARTIFACT_DELIVERY = env.choice("ARTIFACT_DELIVERY", "stream", ("stream", "accel", "redirect"))
NIGHTFERRY_WEIGHTS = (
    env.folder("NIGHTFERRY_WEIGHTS", BASE_DIR) if env.text("NIGHTFERRY_WEIGHTS", "") else None
)
ALLOW_WEIGHT_DOWNLOAD = env.flag("ALLOW_WEIGHT_DOWNLOAD", default=True)
STATIC_URL = "static/"
# Where `collectstatic` has put the pages' files; unset, they are served from their packages.
STATIC_ROOT = str(env.folder("STATIC_ROOT", BASE_DIR)) if env.text("STATIC_ROOT", "") else None
WHITENOISE_USE_FINDERS = STATIC_ROOT is None
WHITENOISE_AUTOREFRESH = False

MAX_UPLOAD_BYTES = env.integer("MAX_UPLOAD_BYTES", 20 * 2**20, minimum=2**16)
MAX_MODEL_BYTES = env.integer("MAX_MODEL_BYTES", 1024 * 2**20, minimum=2**16)
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 2**20
FILE_UPLOAD_MAX_MEMORY_SIZE = 2 * 2**20
DATA_UPLOAD_MAX_NUMBER_FILES = 10

# --- Jobs -------------------------------------------------------------------------------------
BROKER_URL = env.secret("BROKER_URL") or "filesystem://"
NIGHTLY_AT = env.clock_time("NIGHTLY_AT", "02:30")
JOB_LEASE_S = env.integer("JOB_LEASE_S", 60, minimum=1)
# How often lapsed jobs are looked for, and how long a silent message is not yet lost.
JOB_REAP_S = env.integer("JOB_REAP_S", 15, minimum=1)
JOB_RESEND_S = env.integer("JOB_RESEND_S", 60, minimum=1)
# A cancelled job gets this long to end by itself before it is killed.
JOB_STOP_GRACE_S = env.integer("JOB_STOP_GRACE_S", 10, minimum=1)
# The ledger keeps ended jobs for this long.
JOB_KEEP_DAYS = env.integer("JOB_KEEP_DAYS", 90, minimum=1)
# A module with handlers for jobs called "test.*"; only the tests set it.
NIGHTFERRY_TEST_HANDLERS = env.text("NIGHTFERRY_TEST_HANDLERS", "")

# --- Devices ----------------------------------------------------------------------------------
DECISION_REFRESH_S = env.integer("DECISION_REFRESH_S", 2, minimum=1, maximum=3600)
# How often rollouts under way are judged; each look that finds something new is kept.
ROLLOUT_LOOK_S = env.integer("ROLLOUT_LOOK_S", 300, minimum=1, maximum=86_400)
# Webhooks reach addresses of the machine's own network only where this is set.
WEBHOOK_ALLOW_PRIVATE = env.flag("WEBHOOK_ALLOW_PRIVATE", default=False)
POLL_INTERVAL_S = env.integer("POLL_INTERVAL_S", 6 * 3600, minimum=900, maximum=86_400)
POLL_JITTER_PCT = env.integer("POLL_JITTER_PCT", 20, maximum=50)
# The share of installations that report feedback and latencies, in basis points.
TELEMETRY_SAMPLE_BP = env.integer("TELEMETRY_SAMPLE_BP", 10_000, minimum=0, maximum=10_000)
# Raw events are deleted after so long; what was counted from them stays.
TELEMETRY_KEEP_DAYS = env.integer("TELEMETRY_KEEP_DAYS", 30, minimum=2)

# --- Signed metadata --------------------------------------------------------------------------
# Only names and places: keys are read by the process that signs (server/trust/signers.py).
TRUST_IS_EMBEDDED = not env.text("TRUST_KEYS", "")
TRUST_KEYS = env.folder("TRUST_KEYS", NIGHTFERRY_DATA / "keys")
TRUST_URIS = {
    "targets": env.text("TRUST_TARGETS_URI", ""),
    "models": env.text("TRUST_MODELS_URI", ""),
    "snapshot": env.text("TRUST_SNAPSHOT_URI", ""),
    "timestamp": env.text("TRUST_TIMESTAMP_URI", ""),
}
# Whether uploaded models are signed as they come, or once `manage.py attest` has confirmed them.
TRUST_UPLOADED_MODELS = env.choice("TRUST_UPLOADED_MODELS", "sign", ("sign", "confirm"))

# --- REST -------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "server.http.authentication.BearerAuthentication",
        "server.http.authentication.StaffSessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["server.http.permissions.IsStaff"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_PAGINATION_CLASS": "server.http.pagination.Pages",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_THROTTLE_CLASSES": ["server.http.throttles.ScopedThrottle"],
    "DEFAULT_THROTTLE_RATES": {
        "register": env.text("THROTTLE_REGISTER", "30/hour"),
        "upload": env.text("THROTTLE_UPLOAD", "600/hour"),
        "events": env.text("THROTTLE_EVENTS", "1200/minute"),
        "login": env.text("THROTTLE_LOGIN", "20/hour"),
    },
    # 0 believes no header: the peer's own address counts.
    "NUM_PROXIES": TRUSTED_PROXIES,
    "EXCEPTION_HANDLER": "server.http.problems.handle_exception",
    # The query parameter `format` is the framework's; ours is `runtime`.
    "URL_FORMAT_OVERRIDE": None,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
REST_KNOX = {"AUTH_HEADER_PREFIX": "Bearer", "TOKEN_TTL": None, "TOKEN_LIMIT_PER_USER": None}
SPECTACULAR_SETTINGS = {
    "TITLE": "Nightferry",
    "DESCRIPTION": "Models that improve overnight and reach every phone by morning.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "PREPROCESSING_HOOKS": ["server.http.schema.only_version_1"],
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "server.delivery.openapi.add_device_calls",
        "server.http.schema.add_problems",
    ],
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "ENUM_NAME_OVERRIDES": {
        "VersionState": "server.registry.models.ModelVersion.State",
        "RunState": "server.training.models.TrainingRun.State",
        "RunKind": "server.training.models.TrainingRun.Kind",
        "ReleaseKind": "server.rollouts.models.Release.Kind",
        "ReleaseState": "server.rollouts.models.Release.State",
        "RolloutState": "server.rollouts.models.Rollout.State",
        "PhotoState": "server.photos.models.Photo.State",
    },
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
}
CACHES = {
    "default": (
        {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": BROKER_URL}
        if BROKER_URL.startswith(("redis://", "rediss://"))
        else {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    )
}

# --- Logs -------------------------------------------------------------------------------------
LOG_LEVEL = env.choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))
LOG_FORMAT = env.choice("LOG_FORMAT", "console", ("console", "json"))
LOGGING = configure_logs(level=LOG_LEVEL, style=LOG_FORMAT)

# --- Admin ------------------------------------------------------------------------------------
UNFOLD = {
    "SITE_TITLE": "Nightferry",
    "SITE_HEADER": "Nightferry",
    "SITE_SUBHEADER": "Models that improve overnight",
    "SITE_SYMBOL": "directions_boat",
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "DASHBOARD_CALLBACK": "server.console.dashboard.add_overview",
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": "server.console.navigation.favicon"},
    ],
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 254.604)",
            "100": "oklch(93.2% .032 255.585)",
            "200": "oklch(88.2% .059 254.128)",
            "300": "oklch(80.9% .105 251.813)",
            "400": "oklch(70.7% .165 254.624)",
            "500": "oklch(62.3% .214 259.815)",
            "600": "oklch(54.6% .245 262.881)",
            "700": "oklch(48.8% .243 264.376)",
            "800": "oklch(42.4% .199 265.638)",
            "900": "oklch(37.9% .146 265.522)",
            "950": "oklch(28.2% .091 267.935)",
        }
    },
    "SIDEBAR": {"navigation": "server.console.navigation.groups"},
    "STYLES": ["server.console.navigation.stylesheet"],
    "SCRIPTS": ["server.console.navigation.script"],
    "SITE_URL": None,
}
LOGIN_URL = reverse_lazy("admin:login")
LOGIN_REDIRECT_URL = reverse_lazy("admin:index")

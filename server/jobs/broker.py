"""The Celery application: what senders and workers share. Imports no machine learning."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from django.conf import settings
from kombu.entity import Exchange, Queue
from kombu.exceptions import KombuError, OperationalError
from kombu.transport import TRANSPORT_ALIASES

from server.jobs.names import DEFAULT_QUEUE, QUEUES

# What sending can raise when the broker is away, full or forbidden.
ERRORS: Final = (KombuError, OperationalError, OSError)

TRANSPORT_ALIASES["filesystem"] = "server.jobs.embedded_broker:Transport"


def _transport_options() -> dict[str, Any]:
    """Return the options of the broker's transport."""
    if settings.BROKER_URL.startswith("filesystem:"):
        folder = settings.NIGHTFERRY_DATA / "broker"
        return {
            "data_folder_in": str(folder / "messages"),
            "data_folder_out": str(folder / "messages"),
            "control_folder": str(folder / "control"),
            "polling_interval": 0.25,
        }
    return {
        # A broker that does not answer must not hold up the request that sends to it.
        "socket_connect_timeout": 2,
        "max_retries": 1,
        "interval_start": 0.1,
        "interval_max": 0.1,
        "socket_timeout": 15,
        "socket_keepalive": True,
    }


def _configuration() -> dict[str, Any]:
    """Return Celery's settings, all derived from Django's."""
    return {
        "broker_url": settings.BROKER_URL,
        "broker_transport_options": _transport_options(),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_queues": [_queue(name) for name in QUEUES],
        "task_default_queue": DEFAULT_QUEUE,
        "task_default_exchange": "",
        "task_default_routing_key": DEFAULT_QUEUE,
        "task_create_missing_queues": False,
        "task_ignore_result": True,
        "accept_content": ["json"],
        # A message counts as done when its job is; the ledger makes a second delivery harmless.
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        # Remote control and events would need broadcast, which nobody here listens to.
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "beat_scheduler": "django_celery_beat.schedulers:DatabaseScheduler",
        "result_expires": None,
        "timezone": settings.TIME_ZONE,
    }


def _queue(name: str) -> Queue:
    """Return a queue on the nameless exchange, which needs no table of bindings."""
    return Queue(name, Exchange(""), routing_key=name)


app = Celery("nightferry")
app.conf.update(_configuration())


def send(*, name: str, job_id: str, queue: str) -> None:
    """Put one message with the job's id on its queue; raises one of :data:`ERRORS`."""
    app.send_task(name, args=[job_id], queue=queue, retry=False)

"""One job, now, in this terminal: ``python -m worker.foreground JOB_ID``."""

from __future__ import annotations

import os
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "server.settings")

if __name__ == "__main__":
    django.setup()
    from worker.tasks import run_job

    run_job(sys.argv[1])

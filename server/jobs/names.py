"""The names by which jobs travel, each also the name of a Celery task.

A sender needs only the name: it never imports the code that runs the job.
"""

from __future__ import annotations

from typing import Final

DEFAULT_QUEUE: Final = "default"
ML_QUEUE: Final = "ml"
QUEUES: Final = (DEFAULT_QUEUE, ML_QUEUE)

TRAIN: Final = "training.run"
COMPILE_UPLOAD: Final = "registry.compile_upload"

# Jobs of the ledger, with the queue each travels on.
JOBS: Final[dict[str, str]] = {TRAIN: ML_QUEUE, COMPILE_UPLOAD: ML_QUEUE}

REAP: Final = "jobs.reap"
NIGHTLY: Final = "training.nightly"

# Called by the clock, not kept in the ledger: a call that is lost is made up for by the next.
PERIODIC: Final = (REAP, NIGHTLY)

# Jobs that only tests send; taken only where NIGHTFERRY_TEST_HANDLERS is set.
TEST_PREFIX: Final = "test."

"""The names by which jobs travel, each also the name of a Celery task.

A sender needs only the name: it never imports the code that runs the job.
"""

from __future__ import annotations

from typing import Final

DEFAULT_QUEUE: Final = "default"
ML_QUEUE: Final = "ml"
# Only whoever takes from this queue needs the signing keys. Its jobs come one after the other,
# which a lock in the database sees to where one worker takes from several queues.
SIGNING_QUEUE: Final = "signing"
QUEUES: Final = (DEFAULT_QUEUE, ML_QUEUE, SIGNING_QUEUE)

TRAIN: Final = "training.run"
COMPILE_UPLOAD: Final = "registry.compile_upload"
COMPILE_VARIANTS: Final = "registry.compile_variants"
SEARCH: Final = "training.search"
EMBED: Final = "photos.embed"
BUILD_PATCHES: Final = "registry.build_patches"
PUBLISH: Final = "trust.publish"
NOTIFY: Final = "rollouts.notify"

# Jobs of the ledger, with the queue each travels on.
JOBS: Final[dict[str, str]] = {
    TRAIN: ML_QUEUE,
    COMPILE_UPLOAD: ML_QUEUE,
    COMPILE_VARIANTS: ML_QUEUE,
    SEARCH: ML_QUEUE,
    EMBED: ML_QUEUE,
    BUILD_PATCHES: DEFAULT_QUEUE,
    PUBLISH: SIGNING_QUEUE,
    NOTIFY: DEFAULT_QUEUE,
}

REAP: Final = "jobs.reap"
NIGHTLY: Final = "training.nightly"
RENEW: Final = "trust.renew"
CATCH_UP: Final = "trust.catch_up"
DRAIN: Final = "telemetry.drain"
SUMMARISE: Final = "telemetry.summarise"
UPKEEP: Final = "telemetry.upkeep"
LOOK: Final = "rollouts.look"
SEND_AGAIN: Final = "rollouts.send_again"

# Called by the clock, not kept in the ledger: a call that is lost is made up for by the next.
PERIODIC: Final = (
    REAP, NIGHTLY, RENEW, CATCH_UP, DRAIN, SUMMARISE, UPKEEP, LOOK, SEND_AGAIN,
)  # fmt: skip

# Jobs that only tests send; taken only where NIGHTFERRY_TEST_HANDLERS is set.
TEST_PREFIX: Final = "test."

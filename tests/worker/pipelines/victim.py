"""A run in a process of its own, which may be killed at a stage of it.

``python -m tests.worker.pipelines.victim POLICY [STAGE]``, with NIGHTFERRY_DATA a folder that the
first call fills with photos and a run. With STAGE the process kills itself at that stage's second
report of progress; without, it prints what came of the run, as a line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "server.settings")
LABELS = ("glass", "paper")
PER_LABEL, PEOPLE = 20, 10


def main(policy: dict[str, Any], stage: str) -> None:
    """Go on with the run, to its end or to ``stage``."""
    from server import blobs
    from server.photos.models import PhotoEmbedding
    from server.training import actions
    from tests.worker.pipelines.pictures import fit_run
    from worker.ml import determinism, training
    from worker.ml.compilers.tflite import convert
    from worker.pipelines import reporting

    if stage:
        reporting.Reporter.progress = _deadly(reporting.Reporter.progress, stage)  # type: ignore[method-assign]
    run = actions.start_run(run_id=_run(policy))
    determinism.pin(run.seed)
    before = PhotoEmbedding.objects.count()
    trained = fit_run(run)
    file = convert(trained.model, "float32")
    facts = {
        "weights": training.weights_digest(trained.model),
        "file": hashlib.sha256(file).hexdigest(),
        "size_bytes": len(file),
        "choice": trained.facts["choice"],
        "embeddings_before": before,
        "embeddings": PhotoEmbedding.objects.count(),
        "blobs": len({blobs.store().read(sha) for sha in _blob_hashes()}),
        "messages": list(run.lines.exclude(message="").values_list("message", flat=True)),
    }
    sys.stdout.write("\nRUN " + json.dumps(facts) + "\n")


def _run(policy: dict[str, Any]) -> str:
    """Return the run to go on with; the first call brings photos and asks for it."""
    from django.core.management import call_command

    from server.registry.actions import create_model
    from server.training import actions
    from server.training.models import TrainingRun
    from tests.worker.pipelines.pictures import bring, like_imagenet

    call_command("migrate", verbosity=0)
    run = TrainingRun.objects.first()
    if run is None:
        model = create_model(slug="things", labels=LABELS, training_policy=policy)
        bring(model, like_imagenet, PER_LABEL, people=PEOPLE)
        run = actions.request_run(model=model)
    return str(run.pk)


def _blob_hashes() -> list[str]:
    from server.photos.models import PhotoEmbedding

    return list(PhotoEmbedding.objects.values_list("blob_sha256", flat=True))


def _deadly(progress: Any, stage: str) -> Any:
    """Return ``Reporter.progress``, but for the kill at the stage's second report."""
    seen = 0

    def report(self: Any, name: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        nonlocal seen
        progress(self, name, step, total, metrics)
        seen += name == stage
        if seen > 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return report


if __name__ == "__main__":
    django.setup()
    main(json.loads(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")

"""More files of a version on demand: a new version, attested only for what can be shown."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from server import blobs
from server.domain.errors import DomainError
from server.registry import actions as registry
from server.registry.models import ModelVersion
from server.registry.statements import statement
from server.rollouts.vouching import refusals
from server.training import actions as training
from server.training.models import TrainingRun
from server.trust import attestations
from tests.support.factories import make_model, release
from tests.worker.pipelines.pictures import bring, like_imagenet
from worker.ml import training as ml_training
from worker.ml.architectures import find_architecture
from worker.ml.preprocessing import Preprocessing
from worker.pipelines import deriving, variants
from worker.pipelines.reporting import Reporter

pytestmark = [pytest.mark.django_db, pytest.mark.ml]

SIDE = 32
CONTEXT: Any = SimpleNamespace(
    check_alive=lambda: None,
    holding=contextlib.nullcontext,
    complete=lambda _result: None,
)


@pytest.fixture(scope="module")
def network() -> Any:
    generator = np.random.default_rng(3)
    images = list(generator.integers(0, 256, (24, SIDE, SIDE, 3), dtype=np.uint8))
    return ml_training.train_from_scratch(
        images,
        np.arange(24) % 2,
        label_count=2,
        architecture=find_architecture("small_cnn").at(SIDE),
        seed=1,
        progress=lambda *_: None,
        should_stop=lambda: True,
    )


def trained(network: Any) -> ModelVersion:
    """Publish a version as a night does, without photos."""
    model = make_model()
    source = blobs.store().put_bytes(ml_training.save_keras(network))
    version = registry.draft_version(
        model=model,
        source=ModelVersion.Source.TRAINED,
        labels=["glass", "metal"],
        lineage={},
        preprocessing=Preprocessing(SIDE, SIDE).to_manifest(),
        source_sha256=source.sha256,
        source_filename="model.keras",
    )
    version.weights_sha256 = ml_training.weights_digest(network)
    version.save()
    run = TrainingRun.objects.create(model=model)
    nothing = np.zeros((0, 2), dtype=np.float32)
    reference = variants.Reference(
        network, [], np.zeros(0, dtype=np.int64), nothing, [], Preprocessing(SIDE, SIDE)
    )
    reporter = Reporter(run, CONTEXT)
    shipped = variants.compile_variants(
        version,
        reference,
        kinds=["tflite:float32", "tflite:float16"],
        tolerance=0.03,
        min_agreement=0.9,
        store=blobs.store(),
        reporter=reporter,
    )
    training.fail_run(run_id=run.pk, reason="only its files were wanted")
    attestation = variants.attest(version, shipped, source="trained", reporter=reporter)
    registry.publish_version(version=version, metrics={"count": 0}, attestation=attestation)
    return version


def derive(run: TrainingRun) -> ModelVersion:
    started = training.start_run(run_id=run.pk)
    deriving.derive(
        started, context=CONTEXT, reporter=Reporter(started, CONTEXT), store=blobs.store()
    )
    assert started.version is not None
    return ModelVersion.objects.get(pk=started.version.pk)


def files(version: ModelVersion) -> dict[str, str]:
    shipped = version.variants.filter(is_shipped=True)
    return {f"{one.runtime}:{one.precision}": one.sha256 for one in shipped}


def test_the_new_version_has_the_old_files_the_new_one_and_an_attestation(network: Any) -> None:
    parent = trained(network)
    before = files(parent)
    run = training.request_variants(version=parent, kinds=["tflite:dynamic_int8"])
    version = derive(run)
    assert version.number == parent.number + 1
    assert version.parent == parent
    assert version.source == "trained"
    assert version.weights_sha256 == parent.weights_sha256
    assert files(version) == before | {"tflite:dynamic_int8": files(version)["tflite:dynamic_int8"]}
    assert files(parent) == before
    shipped = version.variants.filter(is_shipped=True)
    said = statement(version, shipped)
    assert attestations.verify(said, version.attestation) is attestations.By.WORKER
    released = release(version)
    assert refusals(version.model, [released], {version.pk: list(shipped)}) == {}


def test_another_network_in_the_same_row_counts_as_uploaded(network: Any) -> None:
    """A taken-over web process may write rows and blobs; it gets no file attested as trained."""
    import keras

    parent = trained(network)
    other = keras.models.clone_model(network)
    other.set_weights([array * 1.5 for array in network.get_weights()])
    planted = blobs.store().put_bytes(ml_training.save_keras(other))
    ModelVersion.objects.filter(pk=parent.pk).update(source_sha256=planted.sha256)
    parent.refresh_from_db()
    version = derive(training.request_variants(version=parent, kinds=["tflite:dynamic_int8"]))
    assert version.source == "uploaded"


def test_labels_that_were_swapped_in_the_draft_come_from_the_attested_version(
    network: Any,
) -> None:
    parent = trained(network)
    run = training.request_variants(version=parent, kinds=["tflite:dynamic_int8"])
    parent.children.update(labels=["metal", "glass"])
    assert derive(run).labels == ["glass", "metal"]


def test_a_version_that_adds_nothing_is_not_published(network: Any) -> None:
    """Without test photos nobody can say what pruning did."""
    parent = trained(network)
    run = training.request_variants(version=parent, kinds=["coreml:palette1"])
    with pytest.raises(DomainError) as refused:
        derive(run)
    assert refused.value.code == "no_shipped_variant"
    assert "without test photos" in refused.value.detail


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        (["tflite:float32"], "variants_exist"),
        (["tflite:int3"], "unknown_variant"),
        ([], "unknown_variant"),
    ],
)
def test_what_cannot_be_asked_for(network: Any, kinds: list[str], code: str) -> None:
    parent = trained(network)
    with pytest.raises(DomainError) as refused:
        training.request_variants(version=parent, kinds=kinds)
    assert refused.value.code == code


def test_kinds_that_train_learn_from_the_training_photos_and_are_judged_on_the_rest(
    network: Any,
) -> None:
    parent = trained(network)
    bring(parent.model, like_imagenet, 15)
    night = TrainingRun.objects.create(model=parent.model)
    snapshot = training.freeze_snapshot(run=night)
    training.fail_run(run_id=night.pk, reason="only its photos were wanted")
    run = training.request_variants(
        version=parent, kinds=["tflite:dynamic_int8", "coreml:joint", "coreml:palette1"]
    )
    version = derive(run)
    tests = sum(snapshot.counts["test"].values())
    joint = version.variants.get(precision="joint")
    assert (joint.metrics["count"], joint.metrics["agreement"]["count"]) == (tests, tests)
    assert joint.requires["ios"] == "18.0"
    assert joint.is_shipped is not bool(joint.refusal)
    said = " ".join(run.lines.values_list("message", flat=True))
    learned = sum(snapshot.counts["train"].values())
    assert f"coreml joint: weights are taken away, training on for 3 epochs of {learned}" in said
    assert "coreml palette1: weights are taken away" in said
    curve = run.lines.filter(stage="compressing").exclude(metrics={})
    assert curve.count() >= 3

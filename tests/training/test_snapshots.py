from __future__ import annotations

import datetime as dt
import io

import numpy as np
import pytest
from PIL import Image

from server.domain.errors import Conflict, Unprocessable
from server.photos import actions as photos
from server.photos import intake
from server.photos.models import Photo
from server.registry.models import Label
from server.training import actions, queries
from server.training.models import TrainingRun
from tests.support.factories import make_model
from worker.pipelines.photos import calibration_photos, split_sets

pytestmark = pytest.mark.django_db
_random = np.random.default_rng(7)


def add_photos(model, label, count, *, contributor=""):
    """Add photos of noise: each unlike any other, so that none is taken for a duplicate."""
    for _ in range(count):
        pixels = _random.integers(0, 255, (9, 9, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST).save(buffer, "PNG")
        found = intake.examine(io.BytesIO(buffer.getvalue()), limits=photos.limits_of(model))
        photos.import_photo(
            model=model,
            label=Label.objects.get(model=model, name=label),
            found=found,
            contributor=contributor,
            is_accepted=True,
        )


def snapshot_of(model):
    run = actions.request_run(model=model)
    run = actions.start_run(run_id=run.pk)
    try:
        return actions.freeze_snapshot(run=run)
    finally:
        actions.fail_run(run_id=run.pk, reason="only the snapshot was wanted")


def test_splits_follow_contributors_and_never_change_between_nights():
    model = make_model()
    for person in range(6):
        for label in ("glass", "metal"):
            add_photos(model, label, 2, contributor=f"p{person}")
    first = snapshot_of(model)
    assert first.split_by == "contributor"
    before = dict(first.entries.values_list("photo_id", "split"))
    people = {}
    for entry in first.entries.select_related("photo"):
        people.setdefault(entry.photo.contributor, set()).add(entry.split)
    assert all(len(splits) == 1 for splits in people.values())
    assert {split for splits in people.values() for split in splits} == {
        "train",
        "validation",
        "test",
    }
    for person in range(4, 9):
        add_photos(model, "glass", 1, contributor=f"p{person}")
    after = dict(snapshot_of(model).entries.values_list("photo_id", "split"))
    assert {photo: after[photo] for photo in before} == before
    assert len(after) == len(before) + 5


def test_withdrawn_and_pending_photos_do_not_train():
    model = make_model()
    for label in ("glass", "metal"):
        add_photos(model, label, 8)
    gone = Photo.objects.filter(label__name="glass").first()
    photos.withdraw_photo(photo=gone, actor=None)
    snapshot = snapshot_of(model)
    assert snapshot.entries.count() == 15
    assert not snapshot.entries.filter(photo=gone).exists()


@pytest.mark.parametrize(("glass", "metal"), [(0, 0), (8, 4), (4, 4)])
def test_too_little_to_train_on_says_how_much_there_is(glass, metal):
    model = make_model()
    add_photos(model, "glass", glass)
    add_photos(model, "metal", metal)
    with pytest.raises(Unprocessable) as raised:
        snapshot_of(model)
    assert raised.value.code == "too_few_labels"
    assert f"glass {glass}, metal {metal}" in raised.value.detail


def test_a_model_has_one_unfinished_run():
    model = make_model()
    run = actions.request_run(model=model)
    with pytest.raises(Conflict) as raised:
        actions.request_run(model=model)
    assert raised.value.code == "run_active"
    assert raised.value.extra["run"] == str(run.pk)
    actions.cancel_run(run=run, actor=None)
    run.refresh_from_db()
    assert run.state == TrainingRun.State.CANCELLED
    assert actions.request_run(model=model).state == TrainingRun.State.QUEUED


def test_only_models_with_new_accepted_photos_are_due_and_each_once_a_night(settings):
    from worker.pipelines import nightly

    settings.NIGHTLY_AT = "02:30"
    model = make_model()
    night = dt.datetime(2026, 3, 1, 2, 31, tzinfo=dt.UTC)
    nightly.tick(now=night - dt.timedelta(minutes=2))
    assert not TrainingRun.objects.exists()
    nightly.tick(now=night)
    assert not TrainingRun.objects.exists()
    assert "No new photos" in model.night.summary
    add_photos(model, "glass", 1)
    nightly.tick(now=night + dt.timedelta(minutes=1))
    assert not TrainingRun.objects.exists(), "a night looks once"
    nightly.tick(now=night + dt.timedelta(days=1))
    nightly.tick(now=night + dt.timedelta(days=1, minutes=1))
    assert TrainingRun.objects.filter(trigger="nightly").count() == 1
    late = night + dt.timedelta(days=2, hours=12)
    assert queries.due_night(model, late, model.night.last_on) is None


def test_a_night_missed_before_midnight_is_made_up_for_after_it(settings):
    settings.NIGHTLY_AT = "23:30"
    model = make_model()
    past_midnight = dt.datetime(2026, 3, 2, 0, 10, tzinfo=dt.UTC)
    assert queries.due_night(model, past_midnight, None) == dt.date(2026, 3, 1)
    assert queries.due_night(model, past_midnight, dt.date(2026, 3, 1)) is None


def test_a_model_that_is_busy_when_its_night_comes_keeps_it(settings):
    from worker.pipelines import nightly

    settings.NIGHTLY_AT = "02:30"
    model = make_model()
    add_photos(model, "glass", 1)
    busy = actions.request_run(model=model)
    night = dt.datetime(2026, 3, 1, 2, 31, tzinfo=dt.UTC)
    nightly.tick(now=night)
    assert not TrainingRun.objects.filter(trigger="nightly").exists()
    actions.cancel_run(run=busy, actor=None)
    nightly.tick(now=night + dt.timedelta(minutes=5))
    assert TrainingRun.objects.filter(trigger="nightly").count() == 1


def test_calibration_photos_stay_the_same_from_night_to_night():
    model = make_model()
    for person in range(4):
        add_photos(model, "glass", 2, contributor=f"p{person}")
        add_photos(model, "metal", 2, contributor=f"p{person}")
    first = split_sets(snapshot_of(model))["train"]
    chosen = [entry.photo_id for entry in calibration_photos(first, 4)]
    assert chosen == [entry.photo_id for entry in first.entries[:4]]
    for person in range(4):
        add_photos(model, "glass", 5, contributor=f"p{person}")
    second = split_sets(snapshot_of(model))["train"]
    assert len(second) > len(first)
    assert [entry.photo_id for entry in calibration_photos(second, 4)] == chosen
    # One that was withdrawn makes room for the next; the others stay.
    photos.withdraw_photo(photo=Photo.objects.get(pk=chosen[0]), actor=None)
    third = split_sets(snapshot_of(model))["train"]
    assert [entry.photo_id for entry in calibration_photos(third, 4)][:3] == chosen[1:]


def test_a_contributor_who_floods_a_label_is_cut_to_the_share_of_the_policy():
    model = make_model(training_policy={"max_contributor_share": 0.25})
    for person in range(8):
        add_photos(model, "glass", 2, contributor=f"p{person}")
        add_photos(model, "metal", 2, contributor=f"p{person}")
    trains = snapshot_of(model).entries.filter(split="train").first().photo.contributor
    add_photos(model, "glass", 20, contributor=trains)
    snapshot = snapshot_of(model)
    kept = snapshot.entries.filter(split="train", label="glass", photo__contributor=trains).count()
    total = kept + snapshot.counts["left_out_by_cap"]
    others = snapshot.counts["train"]["glass"] - kept
    assert total == 22
    assert kept == int(0.25 * (total + others))
    assert snapshot_of(model).digest == snapshot.digest, "the same photos stay every night"


def test_a_label_with_too_few_photos_does_not_train_and_the_snapshot_says_so():
    model = make_model(labels=("glass", "metal", "paper"))
    for person in range(4):
        add_photos(model, "glass", 3, contributor=f"p{person}")
        add_photos(model, "metal", 3, contributor=f"p{person}")
    add_photos(model, "paper", 4, contributor="p0")
    snapshot = snapshot_of(model)
    assert snapshot.labels == ["glass", "metal"]
    assert snapshot.facts["accepted"] == {"glass": 12, "metal": 12, "paper": 4}
    assert sum(snapshot.facts["contributors"].values()) == 4

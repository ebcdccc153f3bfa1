from __future__ import annotations

import pytest

from server.delivery.decision_set import holder
from server.domain.errors import Conflict
from server.http.models import AuditEntry
from server.registry.models import PublishedVersionChanged
from server.rollouts import actions, queries
from tests.support.factories import make_model, make_version, release

pytestmark = pytest.mark.django_db


def test_labels_only_grow_and_a_rollback_is_a_new_label():
    model = make_model()
    first, second = make_version(model), make_version(model)
    assert actions.release_version(version=first).label == "v1"
    assert actions.release_version(version=second).label == "v2"
    back = actions.roll_back(model=model)
    assert (back.label, back.version, back.kind) == ("v3", first, "rollback")
    assert queries.incumbent(model, "production") == back
    assert AuditEntry.objects.filter(action="release.rollback").count() == 1


def test_kill_revokes_the_version_and_brings_the_incumbent_back():
    model = make_model()
    first, second = make_version(model), make_version(model)
    actions.release_version(version=first)
    actions.release_version(version=second)
    back = actions.kill(model=model, reason="wrong labels")
    assert back is not None
    assert (back.label, back.version) == ("v3", first)
    with pytest.raises(Conflict) as raised:
        actions.release_version(version=second)
    assert raised.value.code == "version_revoked"
    assert actions.kill(model=model) is None
    assert queries.incumbent(model, "production") is None
    with pytest.raises(Conflict) as raised:
        actions.kill(model=model)
    assert raised.value.code == "nothing_released"


def test_kill_after_a_rollback_does_not_bring_the_version_back_that_was_left():
    model = make_model()
    first, second = make_version(model), make_version(model)
    actions.release_version(version=first)
    actions.release_version(version=second)
    actions.roll_back(model=model)
    assert actions.kill(model=model) is None
    assert queries.incumbent(model, "production") is None
    assert holder.refresh().models[model.slug].channels["production"].release is None


def test_what_is_killed_on_one_channel_may_be_served_on_another():
    model = make_model()
    version = make_version(model)
    for channel in ("production", "beta"):
        release(version, channel=channel)
    actions.kill(model=model, channel="beta")
    decisions = holder.refresh()
    assert decisions.models[model.slug].channels["production"].release.version == 1
    assert decisions.models[model.slug].channels["beta"].revoked
    assert not decisions.revoked


def test_killed_files_do_not_come_back_under_another_number():
    model = make_model()
    first = make_version(model)
    actions.release_version(version=first)
    actions.kill(model=model)
    assert queries.waits_for_person(model, "production")
    twin = make_version(model)
    for variant in twin.variants.all():
        same = first.variants.get(runtime=variant.runtime, precision=variant.precision)
        type(variant).objects.filter(pk=variant.pk).update(sha256=same.sha256)
    with pytest.raises(Conflict) as raised:
        actions.release_version(version=twin)
    assert raised.value.code == "version_revoked"
    actions.release_version(version=make_version(model))
    assert not queries.waits_for_person(model, "production")


def test_what_cannot_be_released_says_why():
    model = make_model()
    version = make_version(model)
    actions.release_version(version=version)
    with pytest.raises(Conflict) as raised:
        actions.release_version(version=version)
    assert raised.value.code == "identical_release"
    with pytest.raises(Conflict) as raised:
        actions.roll_back(model=model)
    assert raised.value.code == "nothing_to_roll_back_to"
    assert queries.incumbent(model, "production").label == "v1"


def test_a_published_version_cannot_be_changed():
    version = make_version(make_model())
    version.notes = "better than it is"
    with pytest.raises(PublishedVersionChanged):
        version.save()


def test_the_epoch_grows_with_everything_devices_may_see():
    model = make_model()
    before = queries.epoch()
    actions.release_version(version=make_version(model))
    released = queries.epoch()
    actions.kill(model=model)
    assert before < released < queries.epoch()

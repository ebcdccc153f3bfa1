"""Golden photos judge versions, and never train: whoever asks, whatever night it is."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from django.urls import reverse

from server.console.actions import create_staff_token
from server.domain.errors import Conflict, NotFound, Unprocessable
from server.http.models import AuditEntry
from server.photos import actions as photos
from server.photos.models import Photo
from server.training import golden
from server.training.models import GoldenPhoto, SnapshotEntry, SplitAssignment, SplitChanged
from tests.support.factories import make_model
from tests.training.test_snapshots import add_photos, snapshot_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def model():
    """Return a model with photos of six people, and one night behind it."""
    model = make_model()
    for person in range(6):
        for label in ("glass", "metal"):
            add_photos(model, label, 3, contributor=f"p{person}")
    snapshot_of(model)
    return model


def of_split(model, split):
    return list(Photo.objects.filter(snapshot_entries__split=split, model=model).distinct())


def pin(model, found, **values):
    return golden.pin_golden(
        model=model, photo_ids=[photo.pk for photo in found], **{"actor": None, **values}
    )


def test_golden_photos_test_in_every_night_and_it_is_written_down_who_chose_them(model):
    boss = get_user_model().objects.create_superuser("boss")
    chosen = of_split(model, "test")[:2]
    assert len(pin(model, chosen, reason="typical of the street", actor=boss)) == 2
    assert pin(model, chosen, reason="again", actor=boss) == []
    row = GoldenPhoto.objects.first()
    assert (row.pinned_by, row.reason) == (boss, "typical of the street")
    entry = AuditEntry.objects.filter(action="golden.pin").order_by("pk").first()
    assert entry.detail["reason"] == "typical of the street"
    assert set(entry.detail["photos"]) == {str(photo.pk) for photo in chosen}
    for night in range(3):
        add_photos(model, "glass", 2, contributor=f"new{night}")
        snapshot = snapshot_of(model)
        marked = snapshot.entries.filter(is_golden=True)
        assert {entry.photo_id for entry in marked} == {photo.pk for photo in chosen}
        assert set(marked.values_list("split", flat=True)) == {"test"}
        assert snapshot.facts["golden"] == 2


@pytest.mark.parametrize("split", ["train", "validation"])
def test_what_a_night_learned_from_can_never_become_golden(model, split):
    used = of_split(model, split)
    fresh = of_split(model, "test")[:1]
    with pytest.raises(Conflict) as raised:
        pin(model, fresh + used[:1])
    assert raised.value.code == "photo_was_trained"
    assert raised.value.extra["photos"] == [str(used[0].pk)]
    assert not GoldenPhoto.objects.exists(), "all or none"


def test_nobody_whose_photos_train_gives_a_golden_one(model):
    trainer = of_split(model, "train")[0].contributor
    add_photos(model, "glass", 1, contributor=trainer)
    newest = Photo.objects.filter(contributor=trainer).latest("created_at")
    with pytest.raises(Conflict) as raised:
        pin(model, [newest])
    assert raised.value.code == "contributor_trains"


def test_a_new_persons_golden_photo_makes_all_of_theirs_test_photos(model):
    add_photos(model, "glass", 2, contributor="stranger")
    first = Photo.objects.filter(contributor="stranger").first()
    pin(model, [first])
    add_photos(model, "metal", 8, contributor="stranger")
    snapshot = snapshot_of(model)
    theirs = snapshot.entries.filter(photo__contributor="stranger")
    assert set(theirs.values_list("split", flat=True)) == {"test"}
    assert theirs.count() == 10
    assert theirs.filter(is_golden=True).count() == 1


def test_a_golden_photo_that_is_let_go_still_never_trains(model):
    chosen = of_split(model, "test")[:1]
    pin(model, chosen)
    golden.unpin_golden(model=model, photo_ids=[chosen[0].pk], reason="mislabelled", actor=None)
    snapshot = snapshot_of(model)
    entry = snapshot.entries.get(photo=chosen[0])
    assert (entry.split, entry.is_golden) == ("test", False)
    assert AuditEntry.objects.filter(action="golden.unpin").exists()
    with pytest.raises(NotFound):
        golden.unpin_golden(model=model, photo_ids=[chosen[0].pk], actor=None)


def test_what_cannot_be_golden_is_refused_by_name(model):
    add_photos(model, "glass", 1)
    waiting = Photo.objects.latest("created_at")
    Photo.objects.filter(pk=waiting.pk).update(state="pending")
    with pytest.raises(Unprocessable) as raised:
        pin(model, [waiting])
    assert raised.value.code == "photo_not_accepted"
    with pytest.raises(NotFound):
        pin(make_model("birds"), of_split(model, "test")[:1])
    with pytest.raises(Unprocessable):
        pin(model, [])


def test_a_withdrawn_golden_photo_is_gone_from_the_set(model):
    chosen = of_split(model, "test")[:2]
    pin(model, chosen)
    photos.withdraw_photo(photo=chosen[0], actor=None)
    assert [row.photo_id for row in golden.list_golden(model)] == [chosen[1].pk]
    assert snapshot_of(model).facts["golden"] == 1


def test_the_digest_of_a_snapshot_says_what_is_golden(model):
    before = snapshot_of(model).digest
    assert snapshot_of(model).digest == before
    pin(model, of_split(model, "test")[:1])
    assert snapshot_of(model).digest != before


def test_the_same_picture_of_two_people_never_stands_on_both_sides(model):
    """What trained before is no test photo; what tests keeps its copies out of training."""
    trained, tested = of_split(model, "train")[0], of_split(model, "test")[0]
    for original, split in ((trained, "test"), (tested, "train")):
        copy = Photo.objects.get(pk=original.pk)
        copy.pk, copy.contributor, copy._state.adding = None, f"copier-{split}", True
        copy.pk = type(copy)._meta.pk.default()
        copy.save()
        SplitAssignment.objects.create(model=model, unit=f"contributor:copier-{split}", split=split)
    snapshot = snapshot_of(model)
    assert snapshot.counts["left_out_as_copies"] == 2
    assert not snapshot.entries.filter(photo__contributor__startswith="copier").exists()
    assert snapshot.entries.filter(photo__in=[trained, tested]).count() == 2
    copy = Photo.objects.get(contributor="copier-test")
    with pytest.raises(Conflict) as raised:
        pin(model, [copy])
    assert raised.value.code == "photo_was_trained"


def test_operators_pin_over_rest_and_are_told_why_not(model, client):
    boss = get_user_model().objects.create_superuser("boss")
    headers = {"Authorization": f"Bearer {create_staff_token(user=boss)[1]}"}
    address = f"/api/v1/models/{model.slug}/golden"

    def post(found, **values):
        body = {"photos": [str(photo.pk) for photo in found], **values}
        return client.post(address, body, content_type="application/json", headers=headers)

    chosen = of_split(model, "test")[0]
    assert post([chosen], reason="sharp").json() == {"pinned": 1}
    refused = post(of_split(model, "train")[:1])
    assert (refused.status_code, refused.json()["code"]) == (409, "photo_was_trained")
    (row,) = client.get(address, headers=headers).json()["results"]
    assert (row["photo"], row["shows"]) == (str(chosen.pk), chosen.label.name)
    assert (row["pinned_by"], row["reason"]) == ("boss", "sharp")
    gone = client.delete(f"{address}/{chosen.pk}?reason=blurred", headers=headers)
    assert gone.status_code == 204
    assert AuditEntry.objects.get(action="golden.unpin").detail["reason"] == "blurred"
    assert client.get(address, headers=headers).json()["results"] == []


def test_staff_tick_photos_in_the_list_and_are_asked_first(model, admin_client):
    chosen = of_split(model, "test")[:2]
    ticked = {"action": "pin_golden", "_selected_action": [str(photo.pk) for photo in chosen]}
    answer = admin_client.post(reverse("admin:photos_photo_changelist"), ticked)
    assert answer.status_code == 302
    page = admin_client.get(answer["Location"])
    assert b"test photos for ever" in page.content
    assert str(chosen[0].pk).encode() in page.content
    body = {"model": model.pk, "photos": "\n".join(str(p.pk) for p in chosen), "reason": "fine"}
    done = admin_client.post(reverse("admin:training_goldenphoto_add"), body)
    assert done.status_code == 302
    assert {row.photo_id for row in GoldenPhoto.objects.all()} == {photo.pk for photo in chosen}
    body["photos"] = str(of_split(model, "train")[0].pk)
    refused = admin_client.post(reverse("admin:training_goldenphoto_add"), body)
    assert refused.status_code == 409
    assert b"Choose photos that never did" in refused.content
    row = GoldenPhoto.objects.first()
    take_out = reverse("admin:training_goldenphoto_unpin", args=[row.pk])
    assert b"stays a test photo" in admin_client.get(take_out).content
    assert admin_client.post(take_out, {"reason": "blurred"}).status_code == 302
    assert GoldenPhoto.objects.count() == 1


def test_a_split_cannot_be_changed(model):
    assignment = SplitAssignment.objects.first()
    assignment.split = "train"
    with pytest.raises(SplitChanged):
        assignment.save()


def test_over_many_nights_no_photo_changes_sides(model):
    """People come and go, labels fill, photos are withdrawn: a test photo stays one."""
    sides = {}
    for night in range(5):
        for person in range(night, night + 4):
            add_photos(model, ("glass", "metal")[night % 2], 1, contributor=f"p{person}")
        add_photos(model, "metal", 2)
        if night == 2:
            pin(model, of_split(model, "test")[:3])
        gone = Photo.objects.filter(model=model, state="accepted").order_by("?").first()
        photos.withdraw_photo(photo=gone, actor=None)
        for entry in snapshot_of(model).entries.all():
            assert sides.setdefault(entry.photo_id, entry.split) == entry.split
    trained = set(SnapshotEntry.objects.exclude(split="test").values_list("photo_id", flat=True))
    assert not trained & set(GoldenPhoto.objects.values_list("photo_id", flat=True))

"""Staff look at photos and decide, in the admin."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from django.db.models import ProtectedError

from server.http.models import AuditEntry
from server.photos import queries
from server.photos.models import Photo, Review, Volunteer
from tests.photos.people import picture, register

pytestmark = pytest.mark.django_db


@pytest.fixture
def desk(admin_client):
    return admin_client


@pytest.fixture
def photos(client, person):
    for seed in range(3):
        person.send(picture(seed))
    return list(Photo.objects.order_by("created_at"))


def act(desk, kind, action, rows):
    return desk.post(
        f"/admin/photos/{kind}/",
        {"action": action, "_selected_action": [str(row.pk) for row in rows]},
        follow=True,
    )


def test_photos_are_shown_as_pictures_and_filtered(desk, photos, model):
    page = desk.get(
        "/admin/photos/photo/", {"state__exact": "pending", "model__id__exact": model.pk}
    )
    assert page.status_code == 200
    for photo in photos:
        address = f"/api/v1/photos/{photo.pk}/thumbnail"
        assert address in page.content.decode()
        assert desk.get(address)["Content-Type"] == "image/jpeg"
    detail = desk.get(f"/admin/photos/photo/{photos[0].pk}/change/")
    assert f"/api/v1/photos/{photos[0].pk}/image" in detail.content.decode()


def test_staff_accept_and_reject_in_bulk(desk, photos):
    assert "2 photos accepted" in act(desk, "photo", "accept", photos[:2]).content.decode()
    assert "1 photos rejected" in act(desk, "photo", "reject", photos[1:2]).content.decode()
    states = Photo.objects.order_by("created_at").values_list("state", flat=True)
    assert list(states) == ["accepted", "rejected", "pending"]
    assert Review.objects.count() == 3
    assert AuditEntry.objects.filter(action__startswith="photos.", actor__isnull=False).count() == 2
    assert desk.get("/admin/photos/review/").status_code == 200


def test_nothing_is_changed_or_deleted_around_the_actions(desk, photos):
    address = f"/admin/photos/photo/{photos[0].pk}"
    assert desk.post(f"{address}/delete/", {"post": "yes"}).status_code == 403
    assert desk.post(f"{address}/change/", {"state": "accepted"}).status_code == 403
    assert Photo.objects.filter(state="pending").count() == 3


def test_trust_is_given_in_the_admin(desk, client, person):
    register(client, "jay")
    assert desk.get("/admin/photos/volunteer/").status_code == 200
    act(desk, "volunteer", "trust", Volunteer.objects.all())
    assert Volunteer.objects.filter(is_trusted=True).count() == 2
    address = f"/admin/photos/volunteer/{person.id}/change/"
    assert desk.get(address).status_code == 200
    form = {"consents-TOTAL_FORMS": "0", "consents-INITIAL_FORMS": "0"}
    assert desk.post(address, form).status_code == 302
    assert not Volunteer.objects.get(pk=person.id).is_trusted
    assert AuditEntry.objects.filter(action="volunteer.trust").count() == 3


def test_deleting_a_volunteer_erases_the_photos(desk, photos, person):
    desk.post(f"/admin/photos/volunteer/{person.id}/delete/", {"post": "yes"})
    assert not Volunteer.objects.exists()
    assert {photo.state for photo in Photo.objects.all()} == {"withdrawn"}


@pytest.mark.parametrize("in_bulk", [False, True])
def test_a_volunteers_account_is_not_deleted_around_the_erasure(
    desk, photos, person, model, in_bulk
):
    act(desk, "photo", "accept", photos)
    user = Volunteer.objects.get().user
    form = {"post": "yes", "action": "delete_selected", "_selected_action": [user.pk]}
    page = "/admin/auth/user/" if in_bulk else f"/admin/auth/user/{user.pk}/delete/"
    answer = desk.post(page, form).content.decode()
    assert "delete the volunteer instead: it erases their photos" in answer
    assert f"/admin/photos/volunteer/{person.id}/" in answer
    person.call("patch", "/volunteers/me", {"consent": {"train": False}})
    with pytest.raises(ProtectedError):
        user.delete()
    assert Photo.objects.filter(volunteer=person.id, state="accepted").count() == 3
    assert not queries.trainable_photos(model).exists()

    page = f"/admin/photos/volunteer/{person.id}/delete/"
    assert "wren, with 3 photos" in desk.get(page).content.decode()
    if in_bulk:
        form["_selected_action"] = [person.id]
        page = "/admin/photos/volunteer/"
    assert desk.post(page, form).status_code == 302
    assert not get_user_model().objects.filter(pk=user.pk).exists()
    assert {photo.state for photo in Photo.objects.all()} == {"withdrawn"}


def test_accounts_without_a_volunteer_are_deleted(desk, photos, django_user_model):
    user = django_user_model.objects.create_user("left")
    assert desk.post(f"/admin/auth/user/{user.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not django_user_model.objects.filter(pk=user.pk).exists()


def test_a_challenge_is_written_in_the_admin(desk, model):
    label = model.labels.first()
    form = {"model": model.pk, "label": label.pk, "text": "A jar at dusk.", "date": "2026-11-20"}
    assert desk.post("/admin/photos/challenge/add/", form).status_code == 302
    assert model.challenges.get().text == "A jar at dusk."

"""What volunteers see: an account, photos in, photos out."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth import get_user_model
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test.client import MULTIPART_CONTENT
from knox.models import AuthToken
from PIL import Image

from server import blobs
from server.http.models import AuditEntry
from server.photos import actions, queries
from server.photos.models import Challenge, ForgottenBlob, Photo, PhotoEmbedding, Volunteer
from server.registry.actions import retire_model
from tests.photos.people import API, Person, encoded, picture, register


def stored_blobs() -> set[str]:
    return {blob.sha256 for blob in blobs.store().iterate()}


# --- The account ------------------------------------------------------------------------------


def test_the_token_is_shown_once_and_kept_only_as_a_digest(client, person):
    answer = client.post(
        f"{API}/volunteers",
        {"nickname": "heron", "consent_version": "1"},
        content_type="application/json",
    )
    assert answer["Cache-Control"] == "no-store"
    assert answer.json()["token"]
    me = person.call("get", "/volunteers/me").json()
    assert "token" not in me
    assert me["id"] == person.id
    stored = AuthToken.objects.values_list("digest", "token_key")
    assert all(person.token not in row for row in stored)
    assert not get_user_model().objects.get(volunteer=person.id).has_usable_password()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"nickname": ""}, "invalid_input"),
        ({"nickname": "x" * 41}, "invalid_input"),
        ({"nickname": "a\u0000b"}, "invalid_input"),
        ({"nickname": "a\u202eb"}, "invalid_nickname"),
        ({"nickname": "me@example.org"}, "invalid_nickname"),
        ({"email": "nowhere"}, "invalid_input"),
        ({"consent_version": "0"}, "unknown_consent_version"),
    ],
)
def test_a_registration_that_is_wrong_says_what_is(client, db, change, code):
    body = {"nickname": "wren", "consent_version": "1", **change}
    answer = client.post(f"{API}/volunteers", body, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert Volunteer.objects.count() == 0


def test_consents_are_given_and_taken_back_one_by_one(client, person, model):
    terms = client.get(f"{API}/consent").json()
    body = {"consent": {"show": True}, "consent_version": terms["consent_version"]}
    changed = person.call("patch", "/volunteers/me", body).json()
    assert changed["consent"] == {"train": True, "show": True, "name": False}
    photo_id = person.send(picture(1)).json()["id"]
    actions.accept_photos(photo_ids=[photo_id], actor=None)
    assert queries.trainable_photos(model).count() == 1
    person.call("patch", "/volunteers/me", {"consent": {"train": False}})
    assert queries.trainable_photos(model).count() == 0
    assert person.send(picture(2)).json()["code"] == "consent_missing"
    rows = Volunteer.objects.get().consents.order_by("given_at").values_list("kind", "withdrawn_at")
    assert [(kind, bool(at)) for kind, at in rows] == [("train", True), ("show", False)]


def test_the_camera_is_kept_from_those_who_agreed_to_it_and_goes_with_the_photo(client, model):
    tags = Image.Exif()
    tags[0x010F], tags[0x0110] = "Acme\u0000 Cameras", "Acme  Nine\x1b[31m"
    tags[0xA431] = "serial-0123"

    def send(person, seed):
        answer = person.send(picture(seed, exif=tags))
        assert answer.status_code == 201, answer.content
        return Photo.objects.get(pk=answer.json()["id"])

    old = register(client, "wren")
    assert send(old, 1).camera == ""
    old.call("patch", "/volunteers/me", {"consent": {"train": True}})
    assert send(old, 2).camera == ""
    terms = client.get(f"{API}/consent").json()
    assert "camera" in terms["train"]
    newest = {"consent": {"train": True}, "consent_version": terms["consent_version"]}
    assert old.call("patch", "/volunteers/me", newest).json()["consent"]["train"]
    photo = send(old, 3)
    assert photo.camera == "Acme Nine [31m"
    assert old.call("get", f"/photos/{photo.pk}").json()["camera"] == photo.camera
    # An app that knows the older wording takes nothing back by sending it.
    old.call("patch", "/volunteers/me", {**newest, "consent_version": "1"})
    assert send(old, 4).camera == photo.camera
    old.call("delete", f"/photos/{photo.pk}")
    photo.refresh_from_db()
    assert photo.camera == ""


@pytest.mark.parametrize("consent", [{}, {"consent": {}}, {"consent": {"name": True}}])
def test_nobody_allows_training_by_saying_nothing(client, model, consent):
    body = {"nickname": "heron", "consent_version": "1", **consent}
    answer = client.post(f"{API}/volunteers", body, content_type="application/json").json()
    assert answer["consent"] == {
        "train": False,
        "show": False,
        "name": "name" in consent.get("consent", {}),
    }
    heron = Person(answer["id"], answer["token"], client)
    refused = heron.send(picture(1))
    assert (refused.status_code, refused.json()["code"]) == (422, "consent_missing")
    heron.call("patch", "/volunteers/me", {"consent": {"train": True}, "consent_version": "1"})
    assert heron.send(picture(1)).status_code == 201


def test_nobody_gets_in_without_a_volunteers_token(client, person, staff):
    for method, path in (
        ("get", "/photos"),
        ("get", "/volunteers/me"),
        ("delete", "/volunteers/me"),
    ):
        assert getattr(client, method)(API + path).status_code == 401
    wrong = {"Authorization": "Bearer " + "0" * 64}
    assert client.get(f"{API}/photos", headers=wrong).status_code == 401
    operator = {"Authorization": f"Bearer {AuthToken.objects.create(staff)[1]}"}
    assert client.get(f"{API}/photos", headers=operator).status_code == 403


# --- Photos in --------------------------------------------------------------------------------


def test_a_photo_waits_for_review_and_shows_its_state(person, staff):
    answer = person.send(picture(1))
    body = answer.json()
    assert answer.status_code == 201
    assert (body["model"], body["label"], body["state"]) == ("things", "glass", "pending")
    actions.reject_photos(photo_ids=[body["id"]], actor=staff, reason="A cup, not a bottle.")
    seen = person.call("get", f"/photos/{body['id']}").json()
    assert (seen["state"], seen["rejection_reason"]) == ("rejected", "A cup, not a bottle.")
    actions.accept_photos(photo_ids=[body["id"]], actor=staff)
    listed = person.call("get", "/photos").json()
    assert [photo["state"] for photo in listed["results"]] == ["accepted"]
    assert Photo.objects.get().reviews.count() == 2
    assert AuditEntry.objects.filter(actor=staff).count() == 2


def test_trust_accepts_at_once_where_the_policy_says_so(client, person, model, staff):
    model.training_policy = {"auto_accept": "trusted"}
    model.save()
    assert person.send(picture(1)).json()["state"] == "pending"
    client.force_login(staff)
    answer = client.post(f"{API}/volunteers/{person.id}/trust", content_type="application/json")
    assert answer.json()["is_trusted"] is True
    client.logout()
    taken = person.send(picture(2)).json()
    assert taken["state"] == "accepted"
    assert taken["decided_at"] is not None
    # What resembles another person's photo is looked at by somebody, trust or no trust.
    copy = register(client, "magpie")
    actions.set_trusted(
        volunteers=[Volunteer.objects.get(pk=copy.id)], is_trusted=True, actor=staff
    )
    copied = copy.send(encoded(picture(2))).json()
    assert (copied["state"], copied["notes"]) == ("pending", ["resembles_another"])


def test_a_photo_sent_twice_is_one_photo(person):
    first = person.send(picture(1))
    again = person.send(picture(1))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = person.send(picture(1), label="metal")
    assert (other.status_code, other.json()["code"]) == (422, "other_label")
    assert Photo.objects.count() == 1


def test_an_idempotency_key_stands_for_one_photo(person):
    key = {"Idempotency-Key": "0b9a6f0e"}
    first = person.send(picture(1), **key)
    assert person.send(picture(1), **key).json()["id"] == first.json()["id"]
    reused = person.send(picture(2), **key)
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")
    long = person.send(picture(2), **{"Idempotency-Key": "x" * 201})
    assert (long.status_code, long.json()["code"]) == (400, "invalid_idempotency_key")


def test_a_form_that_is_wrong_says_what_is(client, person, model, staff):
    assert person.send(picture(1), label="wood").json()["code"] == "unknown_label"
    assert person.send(picture(1), model="nothing").json()["code"] == "unknown_model"
    headers = {"Authorization": f"Bearer {person.token}"}
    form = {"model": "things", "label": "glass"}
    missing = client.post(f"{API}/photos", form, headers=headers)
    assert (missing.status_code, "image" in missing.json()["fields"]) == (400, True)
    text = client.post(f"{API}/photos", {**form, "image": "not a file"}, headers=headers)
    assert (text.status_code, text.json()["code"]) == (400, "not_a_file")
    assert text.json()["detail"] == "The field image must hold the photo's file, not text."
    json = client.post(f"{API}/photos", form, content_type="application/json", headers=headers)
    assert json.status_code == 415
    cut = client.generic("POST", f"{API}/photos", b"--x", MULTIPART_CONTENT, headers=headers)
    assert cut.status_code == 400
    loose = client.generic(
        "POST", f"{API}/photos", b"x", "multipart/form-data", headers=headers
    ).json()
    assert (loose["status"], loose["code"]) == (400, "unreadable_form")
    assert "boundary" not in loose["detail"]
    retire_model(model=model, actor=staff)
    assert person.send(picture(1)).json()["code"] == "model_retired"
    assert Photo.objects.count() == 0


def test_every_bound_answers_413(client, person, settings):
    settings.MAX_UPLOAD_BYTES = 100_000
    headers = {"Authorization": f"Bearer {person.token}"}
    # The middleware, by the announced length, before a byte is parsed.
    body = client.post(
        f"{API}/photos", {"image": SimpleUploadedFile("x.jpg", bytes(200_000))}, headers=headers
    )
    assert (body.status_code, body.json()["code"]) == (413, "too_large")
    # The validator, for a file that fits into the form's allowance.
    file = person.send(picture(1)[:2000] + bytes(100_001 - 2000))
    assert (file.status_code, file.json()["code"]) == (413, "too_large")
    # The pixels, by the header alone.
    bomb = io.BytesIO()
    Image.new("1", (10_000, 8_001)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    pixels = person.send(bomb.getvalue())
    assert (pixels.status_code, pixels.json()["code"]) == (413, "too_many_pixels")
    # Small JSON calls take little.
    long = person.call("patch", "/volunteers/me", {"nickname": "x" * 70_000})
    assert long.status_code == 413


def test_a_body_without_a_length_is_refused(client, person):
    answer = client.generic(
        "POST",
        f"{API}/photos",
        headers={"Authorization": f"Bearer {person.token}", "Transfer-Encoding": "chunked"},
        CONTENT_LENGTH="",
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "content_length_missing")


# --- Photos out -------------------------------------------------------------------------------


def test_photos_are_seen_by_their_volunteer_and_by_staff_alone(client, person, staff):
    photo_id = person.send(picture(1)).json()["id"]
    other = register(client, "jay")
    for path in ("", "/image", "/thumbnail"):
        assert other.call("get", f"/photos/{photo_id}{path}").status_code == 404
        assert client.get(f"{API}/photos/{photo_id}{path}").status_code == 401
    assert other.call("delete", f"/photos/{photo_id}").status_code == 404
    client.force_login(staff)
    small = client.get(f"{API}/photos/{photo_id}/thumbnail")
    with Image.open(io.BytesIO(small.content)) as image:
        assert max(image.size) == 320
    assert small["Cache-Control"].startswith("private")


def withdraw(person, photo_id, run_hooks):
    with run_hooks(execute=True):
        assert person.call("delete", f"/photos/{photo_id}").status_code == 204


def test_withdrawal_deletes_pixels_features_and_fingerprints(
    person, model, django_capture_on_commit_callbacks
):
    photo_id = person.send(picture(1)).json()["id"]
    photo = Photo.objects.get()
    actions.record_embeddings(key="net", features={photo.pk: blobs.store().put_bytes(b"features")})
    assert len(stored_blobs()) == 2
    withdraw(person, photo_id, django_capture_on_commit_callbacks)
    assert stored_blobs() == set()
    assert PhotoEmbedding.objects.count() == ForgottenBlob.objects.count() == 0
    photo.refresh_from_db()
    assert (photo.state, photo.blob_sha256, photo.dhash, bytes(photo.thumb)) == (
        "withdrawn",
        "",
        "",
        b"",
    )
    assert (photo.band_0, photo.quality) == (None, {})
    assert person.call("get", f"/photos/{photo_id}/image").status_code == 404
    # Again is as good as once, and the same person may send it anew, say with the right label.
    withdraw(person, photo_id, django_capture_on_commit_callbacks)
    assert person.send(picture(1), label="metal").status_code == 201


def test_features_that_come_after_the_withdrawal_are_deleted(
    person, django_capture_on_commit_callbacks
):
    photo_id = person.send(picture(1)).json()["id"]
    withdraw(person, photo_id, django_capture_on_commit_callbacks)
    late = blobs.store().put_bytes(b"features")
    with django_capture_on_commit_callbacks(execute=True):
        actions.record_embeddings(key="net", features={Photo.objects.get().pk: late})
    assert stored_blobs() == set()
    assert PhotoEmbedding.objects.count() == 0


def test_bytes_that_two_people_share_stay_until_both_have_gone(
    client, person, django_capture_on_commit_callbacks
):
    other = register(client, "jay")
    mine = person.send(picture(1)).json()["id"]
    theirs = other.send(picture(1)).json()["id"]
    assert len(stored_blobs()) == 1
    withdraw(person, mine, django_capture_on_commit_callbacks)
    assert other.image(theirs)
    withdraw(other, theirs, django_capture_on_commit_callbacks)
    assert stored_blobs() == set()


def test_a_store_that_fails_is_asked_again(person, monkeypatch, django_capture_on_commit_callbacks):
    photo_id = person.send(picture(1)).json()["id"]
    with monkeypatch.context() as patch:
        patch.setattr(type(blobs.store()), "delete", _fail)
        withdraw(person, photo_id, django_capture_on_commit_callbacks)
    assert len(stored_blobs()) == 1
    assert actions.remove_forgotten_blobs() == 1
    assert stored_blobs() == set()


def _fail(store, sha256):
    raise blobs.BlobStoreUnavailable("The store does not answer.")


def test_erasure_leaves_nothing_of_the_person_but_digests(
    client, person, model, django_capture_on_commit_callbacks
):
    person.call("patch", "/volunteers/me", {"nickname": "Unmistakable", "email": "u@example.org"})
    for seed in range(3):
        assert person.send(picture(seed), **{"Idempotency-Key": f"k{seed}"}).status_code == 201
    with django_capture_on_commit_callbacks(execute=True):
        assert person.call("delete", "/volunteers/me").status_code == 204
    assert person.call("get", "/volunteers/me").status_code == 401
    assert Volunteer.objects.count() == AuthToken.objects.count() == 0
    assert not get_user_model().objects.exists()
    assert stored_blobs() == set()
    for photo in Photo.objects.all():
        assert (photo.state, photo.volunteer, photo.contributor) == ("withdrawn", None, "")
        assert photo.idempotency_key == photo.dhash == photo.blob_sha256 == ""
    assert "Unmistakable" not in str(list(AuditEntry.objects.values()))
    # The digests keep the same file from coming back by another hand.
    other = register(client, "jay")
    assert other.send(picture(1)).json()["code"] == "withdrawn_photo"


# --- The challenge and the board --------------------------------------------------------------


def test_the_challenge_asks_for_the_thinnest_label_all_day(person, model):
    for seed, label in ((1, "glass"), (2, "paper")):
        person.send(picture(seed), label=label)
    actions.accept_photos(photo_ids=Photo.objects.values_list("pk", flat=True), actor=None)
    assert person.call("get", "/models/things/challenge").json()["label"] == "glass"
    Photo.objects.update(decided_at=datetime.now(UTC) - timedelta(days=1))
    challenge = person.call("get", "/models/things/challenge").json()
    assert (challenge["label"], challenge["why"]) == (
        "metal",
        "It has the fewest accepted photos so far: 0.",
    )
    Challenge.objects.create(
        model=model,
        label=model.labels.get(name="paper"),
        text="Paper in the rain.",
        date=queries.today(),
    )
    assert person.call("get", "/models/things/challenge").json()["text"] == "Paper in the rain."


def test_the_board_counts_accepted_photos_of_those_who_show_their_name(client, model):
    people = [register(client, f"bird {n}", name=n != 5) for n in range(6)]
    for number, person in enumerate(people):
        for copy in range(3 if number == 5 else 1 + (number == 0)):
            person.send(picture(10 * number + copy))
    board = people[0].call("get", "/models/things/leaderboard").json()
    assert (board["is_hidden"], board["standings"]) == (True, [])
    actions.accept_photos(photo_ids=Photo.objects.values_list("pk", flat=True), actor=None)
    board = people[0].call("get", "/models/things/leaderboard").json()
    assert (board["is_hidden"], board["people"]) == (False, 5)
    assert board["standings"][0] == {"rank": 1, "nickname": "bird 0", "accepted": 2, "is_me": True}
    assert [row["rank"] for row in board["standings"][1:]] == [2, 2, 2, 2]
    assert "bird 5" not in str(board)

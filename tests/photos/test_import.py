"""``import_photos``: folders of photos, by an operator."""

from __future__ import annotations

import io
import shutil

import pytest
from django.core.management import CommandError, call_command

from server import blobs
from server.photos import actions
from server.photos.models import Photo
from server.registry.models import Model
from tests.photos.people import encoded, picture
from tests.support.data import data_folder

pytestmark = pytest.mark.django_db


def run_import(*arguments: object) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    call_command("import_photos", *map(str, arguments), stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


@pytest.fixture
def folder(tmp_path):
    for number, label in enumerate(("glass", "metal")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for copy in range(2):
            content = picture(10 * number + copy)
            (tmp_path / "photos" / label / f"p{copy}_{number}.jpg").write_bytes(content)
    return tmp_path / "photos"


def test_real_photos_become_a_model_with_contributors(tmp_path):
    signs = data_folder("sign_digits")
    for digit in ("0", "1"):
        (tmp_path / digit).mkdir()
        for path in sorted((signs / digit).iterdir())[:15]:
            shutil.copy(path, tmp_path / digit)
    out, err = run_import("signs", tmp_path, "--accept", "--volunteer-from", r"/(c\d+)__")
    assert "Made the model signs with 2 labels" in out
    assert "signs: 30 imported." in out
    assert err == ""
    model = Model.objects.get(slug="signs")
    assert [label.name for label in model.labels.all()] == ["0", "1"]
    photos = Photo.objects.filter(model=model)
    assert {photo.state for photo in photos} == {"accepted"}
    assert all(photo.contributor.startswith("c") for photo in photos)
    assert all(photo.decided_at for photo in photos)


def test_importing_again_changes_nothing(folder):
    run_import("things", folder)
    before = list(Photo.objects.order_by("pk").values())
    out, _ = run_import("things", folder)
    assert "4 already there" in out
    assert list(Photo.objects.order_by("pk").values()) == before
    (folder / "glass" / "new.jpg").write_bytes(picture(99))
    out, _ = run_import("things", folder)
    assert "4 already there, 1 imported" in out


def test_bad_files_are_named_and_stop_nothing(folder):
    (folder / "glass" / "broken.jpg").write_bytes(picture(3)[:500])
    (folder / "glass" / "notes.txt").write_text("not a photo")
    (folder / "glass" / ".hidden").write_text("left alone")
    (folder / "glass" / "folder").mkdir()
    (folder / "metal" / "also-glass.jpg").write_bytes((folder / "glass" / "p0_0.jpg").read_bytes())
    out, err = run_import("things", folder)
    assert "glass/broken.jpg: The file is damaged" in err
    assert "glass/notes.txt: This file is not a photo" in err
    assert "metal/also-glass.jpg: This very photo is here already, as glass." in err
    assert ".hidden" not in err
    assert "4 imported" in out
    (folder / "wood").mkdir()
    _, err = run_import("things", folder)
    assert "wood/: left out, things has no such label" in err


def test_one_contributors_copies_are_refused_and_unknown_ones_flagged(folder):
    (folder / "glass" / "p0_copy.jpg").write_bytes(encoded(picture(0), scale=0.9))
    _, err = run_import("things", folder, "--volunteer-from", r"(p\d)_")
    assert "glass/p0_copy.jpg: Nearly the same photo" in err
    _, err = run_import("others", folder)
    assert err == ""
    flagged = Photo.objects.get(model__slug="others", resembles__isnull=False)
    assert flagged.notes == ["resembles_another"]


def test_a_withdrawn_photo_does_not_come_back(folder, django_capture_on_commit_callbacks):
    run_import("things", folder)
    with django_capture_on_commit_callbacks(execute=True):
        for photo in Photo.objects.all():
            actions.withdraw_photo(photo=photo, actor=None)
    assert list(blobs.store().iterate()) == []
    out, err = run_import("things", folder)
    assert "4 refused (withdrawn_photo)" in out
    assert "withdrawn" in err
    assert list(blobs.store().iterate()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["things", "/nowhere"], "is not a folder"),
        (["things", "."], "holds no folders"),
        (["things", ".", "--volunteer-from", "("], "not a regular expression"),
        (["things", ".", "--volunteer-from", "abc"], "needs a group"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "--volunteer-from" in arguments:
        (tmp_path / "glass").mkdir()
    with pytest.raises(CommandError, match=message):
        run_import(*arguments)

"""``manage.py trust``: what people do, on one machine and on two."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.core.management import CommandError, call_command

from server.domain.errors import DomainError
from server.trust import actions, queries, roles, signers
from tests.trust.device import Device, look
from tests.trust.factories import make_ecdsa_key, make_target, publish

if TYPE_CHECKING:
    from pytest_django.fixtures import SettingsWrapper

pytestmark = pytest.mark.django_db


def trust(*arguments: object) -> str:
    """Run the command, and return what it printed."""
    out = io.StringIO()
    call_command("trust", *map(str, arguments), stdout=out, stderr=out)
    return out.getvalue()


def keygen(folder: Path, kind: str) -> Path:
    """Make a key as the command does; return its private file."""
    before = set(folder.glob("*.pem")) if folder.exists() else set()
    trust("keygen", kind, "--output", folder)
    (path,) = set(folder.glob("*.pem")) - before
    return path


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, list[Path]]:
    """Make keys on machines that the server knows nothing of."""
    return {
        "root": [keygen(tmp_path / f"person {number}", "root") for number in range(3)],
        "targets": [keygen(tmp_path / "person 3", "targets")],
    }


@pytest.fixture
def ceremony(
    tmp_path: Path, settings: SettingsWrapper, offline: dict[str, list[Path]]
) -> dict[str, list[Path]]:
    """Found the repository with keys that never come here."""
    online = [keygen(settings.TRUST_KEYS, kind) for kind in roles.ONLINE]
    public = [*offline["root"], *offline["targets"], *online]
    given = [f"{path.name.partition('-')[0]}={path.with_suffix('.pub')}" for path in public]
    arguments = [item for pair in given for item in ("--public", pair)]
    out = trust("init", *arguments, "--export", tmp_path / "export")
    assert "1.root.json" in out
    assert not queries.is_initialised()
    root, targets = tmp_path / "export/1.root.json", tmp_path / "export/1.targets.json"
    with pytest.raises(CommandError, match="which is not enough"):
        trust("import", root, targets)
    trust("sign", root, "--key", offline["root"][0])
    assert "2 of" in trust("sign", root, "--key", offline["root"][2])
    with pytest.raises(CommandError, match="which is not enough"):
        trust("import", root, targets)
    trust("sign", targets, "--key", offline["targets"][0])
    with pytest.raises(CommandError, match="come in together"):
        trust("import", root)
    trust("import", root, targets)
    return offline


def test_a_ceremony_over_two_machines(tmp_path: Path, ceremony: dict[str, list[Path]]) -> None:
    with pytest.raises(CommandError, match="trust delegate recyclables"):
        _publish()

    trust("delegate", "recyclables", "--export", tmp_path / "more")
    (document,) = (tmp_path / "more").glob("*.json")
    assert "recyclables/patches/*" in trust("sign", document, "--key", *ceremony["targets"])
    trust("import", document)

    _publish()
    device = Device(tmp_path / "device")
    look([device], [make_target()])
    with pytest.raises(CommandError, match="the next is 3"):
        trust("import", document)
    for wanted in ("not on this machine", "snapshot-", "timestamp", "root"):
        assert wanted in trust("status")


def _publish() -> None:
    """Publish, with the sentence of a refusal as the command would say it."""
    try:
        publish(make_target())
    except DomainError as error:
        raise CommandError(error.detail) from error


def test_rotation_and_new_roots_over_two_machines(
    tmp_path: Path, ceremony: dict[str, list[Path]]
) -> None:
    trust("delegate", "recyclables", "--key", *ceremony["targets"])
    _publish()
    device = Device(tmp_path / "device")
    device.refresh()
    root_keys, (targets_key,) = ceremony["root"], ceremony["targets"]

    with pytest.raises(CommandError, match="Not enough keys of the root"):
        trust("rotate", "timestamp", "--key", root_keys[0])
    assert len(signers.files_of("timestamp")) == 1
    trust("rotate", "timestamp", "--key", root_keys[0], "--key", root_keys[1])
    trust("rotate", "models", "--export", tmp_path / "a")
    trust("sign", *(tmp_path / "a").iterdir(), "--key", targets_key)
    trust("import", *(tmp_path / "a").iterdir())
    look([device, Device(tmp_path / "b", queries.first_root())], [make_target()])

    new = [keygen(tmp_path / f"new person {number}", "root") for number in range(3)]
    new_public = [item for path in new for item in ("--public", path.with_suffix(".pub"))]
    trust("reroot", *new_public, "--export", tmp_path / "c")
    (document,) = (tmp_path / "c").iterdir()
    trust("sign", document, "--key", new[0], "--key", new[1], "--key", root_keys[0])
    with pytest.raises(CommandError, match="two of the old and of the new"):
        trust("import", document)
    trust("sign", document, "--key", root_keys[2])
    trust("import", document)

    new_targets = keygen(tmp_path / "new person 3", "targets")
    trust(
        "rotate", "targets", "--public", new_targets.with_suffix(".pub"), "--export", tmp_path / "d"
    )
    for path in (tmp_path / "d").iterdir():
        keys = [new_targets] if "targets" in path.name else new[:2]
        trust("sign", path, *(item for key in keys for item in ("--key", key)))
    trust("import", *(tmp_path / "d").iterdir())
    look([device, Device(tmp_path / "e", queries.first_root())], [make_target()])
    assert queries.current_versions()["root"] == 4


def test_root_and_targets_get_a_whole_life_again(
    tmp_path: Path, ceremony: dict[str, list[Path]]
) -> None:
    device = Device(tmp_path / "device")
    trust("extend", "root", "--key", ceremony["root"][1], "--key", ceremony["root"][2])
    trust("extend", "targets", "--export", tmp_path / "out")
    (document,) = (tmp_path / "out").iterdir()
    trust("sign", document, "--key", *ceremony["targets"])
    trust("import", document)

    device.refresh()
    assert queries.current_versions() == {"root": 2, "targets": 2, "snapshot": 2, "timestamp": 2}


def test_a_ceremony_on_one_machine_refuses_to_write_over_anything(
    tmp_path: Path, settings: SettingsWrapper
) -> None:
    folder = tmp_path / "stick"
    trust("init", "--keys", folder)
    assert len(list(folder.glob("*.pem"))) == 7
    with pytest.raises(CommandError, match="a repository already"):
        trust("init", "--keys", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(CommandError, match="trust delegate recyclables"):
        _publish()
    settings.TRUST_KEYS = folder
    _publish()

    trust("root", "--output", tmp_path / "root.json")

    assert (tmp_path / "root.json").read_bytes() == queries.trusted_root()
    look([Device(tmp_path / "device", (tmp_path / "root.json").read_bytes())], [make_target()])
    assert "Nothing had to be signed" in trust("renew")


def test_configured_keys_are_used_and_none_of_their_kind_is_made(
    tmp_path: Path, settings: SettingsWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUST_SNAPSHOT_KEY", make_ecdsa_key(tmp_path / "snapshot"))
    settings.TRUST_URIS = {"timestamp": "awskms:alias/timestamp"}
    with pytest.raises(CommandError, match="--public timestamp=FILE"):
        trust("init")
    settings.TRUST_URIS = {}
    assert list(tmp_path.glob("keys/*.pem")) == []

    trust("init")

    assert sorted(path.name[:5] for path in settings.TRUST_KEYS.glob("*.pem")) == [
        "model", "root-", "root-", "root-", "targe", "times",
    ]  # fmt: skip
    _publish()
    look([Device(tmp_path / "device")], [make_target()])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("root",), "There is no root yet"),
        (("rotate", "timestamp"), "There is no root yet"),
        (("reroot",), "There is no root yet"),
        (("extend", "root"), "There is no root yet"),
        (("delegate", "recyclables"), "There is no root yet"),
        (("init", "--public", "root=x"), "cannot be read"),
        (("init", "--public", "sun=x"), "it takes KIND=FILE"),
        (("sign", "nothing.json", "--key", "nothing.pem"), "cannot be read"),
        (("import", "nothing.json"), "No such file"),
    ],
)
def test_wrong_calls_get_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence):
        trust(*arguments)
    assert "no root yet" in trust("status")


def test_foreign_metadata_is_refused(tmp_path: Path) -> None:
    actions.ensure_repository()
    for name, content in (
        ("empty", b""), ("list", b"[]"), ("html", b"<html>"),
        ("snapshot", queries.metadata_file("1.snapshot.json") or b""),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CommandError):
            trust("import", tmp_path / name)
    assert queries.current_versions()["snapshot"] == 1


def test_the_first_start_says_where_keys_are_and_the_second_what_is_missing(
    settings: SettingsWrapper,
) -> None:
    assert str(settings.TRUST_KEYS) in trust("ensure")
    assert trust("ensure") == ""
    for path in signers.files_of("timestamp"):
        path.unlink()
    assert "Nothing can be released" in trust("ensure")

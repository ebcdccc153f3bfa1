"""The workflow of The Update Framework's specification, through the conformance protocol.

The public suite is not a package, so these are its main cases, against a repository of our own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from nightferry import tuf_cli
from nightferry.timing import Timing
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole

from .repository import NOW, TOMORROW, TOP, YESTERDAY, Repository, cut, fixed
from .support import quick_timing, start_python

CONTENT = b"an artifact " * 5000


class Client:
    """The command, with a folder for metadata and one for targets."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        self.targets.mkdir()
        self._repository = repository
        self._root = folder / "given root.json"

    def arguments(self, *command: str) -> list[str]:
        return [
            *("--metadata-dir", str(self.metadata)),
            *("--metadata-url", f"{self._repository.url}/metadata/"),
            *command,
        ]

    def init(self) -> int:
        root = self._repository.files["/metadata/1.root.json"]
        self._root.write_bytes(root)
        return tuf_cli.main(["--metadata-dir", str(self.metadata), "init", str(self._root)])

    def refresh(self) -> int:
        return tuf_cli.main(self.arguments("refresh"))

    def download(self, name: str) -> int:
        base_url = f"{self._repository.url}/targets/"
        options = ["--target-name", name, "--target-base-url", base_url]
        return tuf_cli.main(self.arguments(*options, "--target-dir", str(self.targets), "download"))

    def trusted(self) -> dict[str, int]:
        """Return the version of each role that lies in the folder."""
        return {
            path.stem: json.loads(path.read_bytes())["signed"]["version"]
            for path in self.metadata.glob("*.json")
        }

    def downloaded(self) -> list[bytes]:
        return [path.read_bytes() for path in self.targets.iterdir()]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuf_cli, "Timing", lambda: quick_timing(retry_attempts=3))


@pytest.fixture
def repository() -> Iterator[Repository]:
    with Repository() as running:
        yield running


@pytest.fixture
def client(repository: Repository, tmp_path: Path) -> Client:
    made = Client(repository, tmp_path)
    assert made.init() == 0
    return made


def test_init_trusts_the_root_and_refresh_the_rest(client):
    assert client.trusted() == {"root": 1}
    assert client.refresh() == 0
    assert client.trusted() == dict.fromkeys(TOP, 1)
    assert client.refresh() == 0, "again, with nothing new"


def test_nothing_works_without_a_root(repository, tmp_path, capsys):
    stranger = Client(repository, tmp_path)
    assert stranger.refresh() == 1
    bad = tmp_path / "bad.json"
    bad.write_bytes(repository.files["/metadata/timestamp.json"])
    assert tuf_cli.main(["--metadata-dir", str(stranger.metadata), "init", str(bad)]) == 1
    assert "root" in capsys.readouterr().err


def test_a_root_with_a_wrong_signature(repository, tmp_path):
    path = "/metadata/1.root.json"
    spoilt = json.loads(repository.files[path])
    spoilt["signatures"][0]["sig"] = "00" * 64
    repository.files[path] = json.dumps(spoilt).encode()
    stranger = Client(repository, tmp_path)
    assert stranger.init() == 1
    assert stranger.refresh() == 1
    assert repository.requests == []


def test_a_refresh_asks_for_no_more_than_it_must_and_keeps_the_very_bytes(client, repository):
    assert client.refresh() == 0
    names = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert repository.asked("/") == [f"/metadata/{name}" for name in names]
    for name in ("timestamp", "snapshot", "targets"):
        served = "timestamp" if name == "timestamp" else f"1.{name}"
        kept = (client.metadata / f"{name}.json").read_bytes()
        assert kept == repository.files[f"/metadata/{served}.json"]


def test_a_timestamp_that_changes_under_its_number_is_not_taken(client, repository):
    assert client.refresh() == 0
    kept = (client.metadata / "timestamp.json").read_bytes()
    repository.timestamp.snapshot_meta.version = 100
    repository.files["/metadata/timestamp.json"] = repository.sign(
        "timestamp", repository.timestamp
    )
    assert client.refresh() == 0
    assert (client.metadata / "timestamp.json").read_bytes() == kept


def test_unknown_members_are_signed_and_kept(client, repository):
    repository.root.unrecognized_fields["x-own"] = {"deep": [1, "ä"]}
    repository.root.roles["root"].unrecognized_fields["x-own"] = 1
    repository.next_root()
    assert client.refresh() == 0
    assert client.trusted()["root"] == 2


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_kinds_of_keys(client, repository, kind):
    generate = getattr(CryptoSigner, f"generate_{kind}")
    for role in TOP[1:]:
        repository.replace_key(role)
        repository.root.revoke_key(repository.keys[role][0].public_key.keyid, role)
        repository.keys[role] = [generate()]
        repository.root.add_key(repository.keys[role][0].public_key, role)
    repository.next_root()
    repository.bump()
    assert client.refresh() == 0
    assert client.trusted()["targets"] == 2


def test_the_status_is_0_or_1(client):
    for arguments in (["unknown"], ["--metadata-dir", "x", "--metadata-url", "file:///x", "init"]):
        with pytest.raises(SystemExit) as ended:
            tuf_cli.main(arguments)
        assert ended.value.code == 1
    script = "import runpy, sys; runpy.run_module('nightferry.tuf_cli', run_name='__main__')"
    process = start_python(script, *client.arguments("refresh"))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors


@pytest.mark.parametrize("consistent", [True, False])
@pytest.mark.parametrize("name", ["plain", "a/path/to it", "odd ä.bin"])
def test_a_target_is_fetched_once(client, repository, consistent, name):
    repository.root.consistent_snapshot = consistent
    repository.next_root()
    served = repository.add(name, CONTENT)
    repository.bump("targets", "snapshot", "timestamp")
    assert client.download(name) == 0
    assert client.downloaded() == [CONTENT]
    assert client.download(name) == 0
    assert len(repository.asked("/targets/")) == 1, "the cached one was not used"
    wanted = "/metadata/2.snapshot.json" if consistent else "/metadata/snapshot.json"
    assert wanted in repository.asked("/metadata/")
    assert sha256(CONTENT).hexdigest() in served or not consistent

    (path,) = client.targets.iterdir()
    path.write_bytes(b"damaged")
    assert client.download(name) == 0
    assert client.downloaded() == [CONTENT]


def test_an_unlisted_target(client, repository):
    repository.files["/targets/unlisted"] = CONTENT
    assert client.download("unlisted") == 1
    assert not repository.asked("/targets/")


@pytest.mark.parametrize(
    "content", [b"", CONTENT[:-1], CONTENT[::-1], CONTENT + b"more", CONTENT * 100]
)
def test_arbitrary_software(client, repository, content):
    served = repository.add("artifact", CONTENT)
    repository.bump()
    repository.files[served] = content
    assert client.download("artifact") == 1
    assert client.downloaded() == []


# Rollback, freeze, mix and match


def test_an_older_timestamp(client, repository):
    repository.bump("timestamp")
    assert client.refresh() == 0
    repository.timestamp.version = 1
    repository.publish()
    assert client.refresh() == 1
    assert client.trusted()["timestamp"] == 2


def test_an_older_snapshot(client, repository):
    repository.bump()
    assert client.refresh() == 0
    repository.snapshot.version = 1
    repository.bump("timestamp")
    assert client.refresh() == 1
    assert client.trusted()["snapshot"] == 2


def test_older_targets(client, repository):
    repository.bump()
    assert client.refresh() == 0
    repository.lists["targets"].version = 1
    repository.bump("snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.trusted()["targets"] == 2


def test_a_role_that_vanishes_from_the_snapshot(client, repository):
    repository.delegate("helper", ["h/*"])
    repository.bump("targets", "snapshot", "timestamp")
    assert client.refresh() == 0
    del repository.snapshot.meta["helper.json"]
    del repository.lists["helper"]
    repository.bump("snapshot", "timestamp")
    assert client.refresh() == 1


def test_older_metadata_after_new_keys_are_a_fresh_start(client, repository):
    """Recovery from a thief who signed with the highest version there is."""
    repository.timestamp.version = repository.snapshot.version = 99999
    repository.publish()
    assert client.refresh() == 0
    for role in ("timestamp", "snapshot"):
        repository.replace_key(role)
    repository.next_root()
    repository.timestamp.version = repository.snapshot.version = 1
    repository.publish()
    assert client.refresh() == 0
    assert client.trusted()["snapshot"] == client.trusted()["timestamp"] == 1


@pytest.mark.parametrize("role", TOP)
def test_expired_metadata(client, repository, role):
    assert client.refresh() == 0
    signed = {
        "root": repository.root,
        "timestamp": repository.timestamp,
        "snapshot": repository.snapshot,
        "targets": repository.lists["targets"],
    }
    signed[role].expires = YESTERDAY
    if role == "root":
        repository.next_root()
    repository.bump()
    assert client.refresh() == 1
    assert client.trusted()["targets"] == 1


def test_an_expired_root_on_the_way_is_no_hindrance(client, repository):
    repository.root.expires = YESTERDAY
    repository.next_root()
    repository.root.expires = TOMORROW
    repository.next_root()
    assert client.refresh() == 0
    assert client.trusted()["root"] == 3
    assert NOW > YESTERDAY


def test_a_snapshot_of_another_timestamp(client, repository):
    repository.with_hashes = True
    repository.bump()
    repository.snapshot.expires = TOMORROW.replace(year=TOMORROW.year + 1)
    repository.files["/metadata/2.snapshot.json"] = repository.sign("snapshot", repository.snapshot)
    assert client.refresh() == 1
    assert "snapshot" not in client.trusted()


def test_targets_of_another_snapshot(client, repository):
    repository.bump()
    old = repository.files["/metadata/1.targets.json"]
    repository.files["/metadata/2.targets.json"] = old
    assert client.refresh() == 1
    assert "targets" not in client.trusted()


@pytest.mark.parametrize(
    "name", ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
)
def test_metadata_without_end(client, repository, name):
    repository.files[f"/metadata/{name}"] = b"{" + b" " * 6_000_000
    assert client.refresh() == 1


# Keys


@pytest.mark.parametrize("role", TOP[1:])
def test_a_new_key(client, repository, role):
    assert client.refresh() == 0
    old = repository.replace_key(role)
    repository.next_root()
    new, repository.keys[role] = repository.keys[role], old
    repository.bump()
    assert client.refresh() == 1, "signed with the old key"
    repository.keys[role] = new
    repository.bump()
    assert client.refresh() == 0


def test_a_new_root_key_needs_the_old_ones_signature(client, repository):
    old = repository.replace_key("root")
    repository.next_root()
    assert client.refresh() == 1, "signed with the new key alone"
    repository.sign_root(old)
    assert client.refresh() == 1, "signed with the old key alone"
    repository.sign_root([*old, *repository.keys["root"]])
    assert client.refresh() == 0
    repository.next_root()
    assert client.refresh() == 0
    assert client.trusted()["root"] == 3


def test_a_root_under_a_wrong_number(client, repository):
    repository.root.version = 3
    repository.files["/metadata/2.root.json"] = repository.sign("root", repository.root)
    assert client.refresh() == 1


def test_an_older_root_under_the_next_number(client, repository):
    repository.files["/metadata/2.root.json"] = repository.files["/metadata/1.root.json"]
    assert client.refresh() == 1


@pytest.mark.parametrize("answer", [403, 404])
def test_the_chain_of_roots_ends(client, repository, answer):
    repository.spoil["/metadata/2.root.json"] = [fixed(answer, b"<html>no</html>")]
    assert client.refresh() == 0


def test_a_web_page_for_the_next_root(client, repository):
    repository.spoil["/metadata/2.root.json"] = [
        fixed(200, b"<html>Log in</html>", Content_Type="text/html")
    ]
    assert client.refresh() == 1
    assert client.refresh() == 0


@pytest.mark.parametrize("role", TOP)
def test_a_threshold_of_two(client, repository, role):
    second = CryptoSigner.generate_ed25519()
    repository.root.add_key(second.public_key, role)
    repository.root.roles[role].threshold = 2
    if role != "root":
        repository.next_root()
    else:
        repository.root.version += 1
        twice = json.loads(repository.sign("root", repository.root))
        twice["signatures"] *= 2  # one key counts once
        repository.files["/metadata/2.root.json"] = json.dumps(twice).encode()
    repository.bump()
    assert client.refresh() == 1
    repository.keys[role].append(second)
    if role == "root":
        repository.sign_root()
    repository.bump()
    assert client.refresh() == 0


@pytest.mark.parametrize("role", TOP[1:])
@pytest.mark.parametrize("keys", [[], [CryptoSigner.generate_ed25519()]], ids=["none", "foreign"])
def test_a_role_that_is_not_signed(client, repository, role, keys):
    right, repository.keys[role] = repository.keys[role], keys
    repository.bump()
    assert client.refresh() == 1
    assert role not in client.trusted()
    repository.keys[role] = right


# Delegations


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", False),
        ("a/*/c", "a/b/c", True),
        ("*", "a", True),
        ("*.bin", "x.bin", True),
        ("x-?.bin", "x-12.bin", False),
    ],
)
def test_a_role_signs_only_its_paths(client, repository, pattern, path, found):
    repository.delegate("helper", [pattern])
    repository.add(path, CONTENT, "helper")
    repository.bump()
    assert client.download(path) == (0 if found else 1)


def test_a_terminating_delegation_ends_the_search(client, repository):
    repository.delegate("first", ["p/*"], terminating=True)
    repository.delegate("second", ["*/*"])
    repository.add("p/x", CONTENT, "second")
    repository.add("q/x", CONTENT, "second")
    repository.bump()
    assert client.download("q/x") == 0
    assert client.download("p/x") == 1


def test_the_first_role_that_lists_a_path_wins(client, repository):
    repository.delegate("first", ["*"])
    repository.delegate("second", ["*"])
    repository.add("x", b"second's", "second")
    repository.add("x", b"first's", "first")
    repository.bump()
    assert client.download("x") == 0
    assert client.downloaded() == [b"first's"]


def test_roles_delegate_in_their_turn_even_in_circles(client, repository):
    repository.delegate("child", ["c/*"])
    repository.delegate("grandchild", ["c/*"], parent="child")
    circle = repository.lists["targets"].delegations.roles["child"]
    grandchild = repository.lists["grandchild"]
    grandchild.delegations = repository.lists["targets"].delegations
    assert circle.name == "child"
    repository.add("c/deep", CONTENT, "grandchild")
    repository.bump()
    assert client.download("c/deep") == 0
    assert client.download("c/none") == 1


def test_hash_bins(client, repository):
    digits = sha256(b"in a bin").hexdigest()[:2]
    repository.delegate("bin", None, path_hash_prefixes=[digits])
    repository.add("in a bin", CONTENT, "bin")
    repository.add("elsewhere", CONTENT, "bin")
    repository.bump()
    assert client.download("in a bin") == 0
    assert client.download("elsewhere") == 1


@pytest.mark.parametrize("name", ["../up", "a/b", "?", "#", "%2e", "ä", "timestamp.json"])
def test_names_of_roles_stay_in_the_folder(client, repository, name):
    repository.delegate(name, ["*"])
    repository.add("x", CONTENT, name)
    repository.bump()
    assert client.download("x") == 0
    above = {path.name for path in client.metadata.parent.iterdir()}
    assert above == {"metadata", "targets", "given root.json"}


def test_a_delegated_role_signed_by_another(client, repository):
    repository.delegate("helper", ["*"])
    repository.add("x", CONTENT, "helper")
    repository.keys["helper"] = [CryptoSigner.generate_ed25519()]
    repository.bump()
    assert client.download("x") == 1
    assert "helper" not in client.trusted()
    assert isinstance(repository.lists["targets"].delegations.roles["helper"], DelegatedRole)


# Broken lines


def _moved(repository: Repository, path: str, start: int) -> tuple[int, dict[str, str], bytes]:
    content = repository.files[path]
    span = f"bytes {start + 1}-{len(content) - 1}/{len(content)}"
    return 206, {"Content-Range": span}, content[start + 1 :]


def _shrunk(repository: Repository, path: str, start: int) -> tuple[int, dict[str, str], bytes]:
    content = repository.files[path]
    return 206, {"Content-Range": f"bytes {start}-{start}/{start + 1}"}, content[start : start + 1]


def _renamed(repository: Repository, path: str, start: int) -> tuple[int, dict[str, str], bytes]:
    content = repository.files[path]
    span = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return 206, {"Content-Range": span, "ETag": '"other"'}, content[start:]


def _whole(repository: Repository, path: str, start: int) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, repository.files[path]


CONTINUED = {
    "as asked": [],
    "whole again": [_whole],
    "from another place": [_moved],
    "of another size": [_shrunk],
    "of another file": [_renamed],
    "no such range": [fixed(416, b"", Content_Range="bytes */7")],
    "no Content-Range": [fixed(206, b"xyz")],
    "trouble": [fixed(503, b""), fixed(429, b"", Retry_After="0")],
    "cut again": [cut(1000), cut(0), cut(5000)],
}


@pytest.mark.parametrize("answers", CONTINUED.values(), ids=CONTINUED)
def test_a_broken_download_is_continued_or_begun_again(
    client: Client, repository: Repository, answers: list[Callable]
) -> None:
    served = repository.add("artifact", CONTENT)
    repository.bump()
    repository.spoil[served] = [cut(20_000), *answers]
    assert client.download("artifact") == 0
    assert client.downloaded() == [CONTENT]
    assert repository.requests[-len(answers) - 1][1].startswith("bytes=") or answers
    ranges = [wanted for path, wanted in repository.requests if path == served]
    assert ranges[:2] == ["", "bytes=20000-"]


def test_a_line_that_stays_broken_fails_in_the_end(client, repository):
    served = repository.add("artifact", CONTENT)
    repository.bump()
    repository.spoil[served] = [cut(0)] * 20
    assert client.download("artifact") == 1
    assert len(repository.asked(served)) == 3
    assert isinstance(tuf_cli.Timing(), Timing)


def test_metadata_cut_in_the_middle(client, repository):
    for name in ("timestamp", "1.snapshot", "1.targets"):
        repository.spoil[f"/metadata/{name}.json"] = [cut(50)]
    assert client.refresh() == 0

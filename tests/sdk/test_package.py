"""The package itself: what importing it costs, what it exports, what it needs."""

from __future__ import annotations

import re
from pathlib import Path

import nightferry
from nightferry import errors

from .support import source_folder, start_python

HEAVY = ("numpy", "PIL", "ai_edge_litert", "tensorflow", "keras", "django", "server", "worker")

BLOCKED = """
import sys
for name in {heavy!r}:
    sys.modules[name] = None
import nightferry
from nightferry.testing import FakeServer
with FakeServer() as server:
    server.publish("recyclables", b"weights", ["can"])
    client = nightferry.ModelClient(server.url, cache_dir=sys.argv[1], trusted_root=server.root)
    print(client.sync("recyclables").label)
    try:
        client.load("recyclables")
    except nightferry.RuntimeMissingError as error:
        print(error)
"""


def _loaded(script: str) -> set[str]:
    output, problems = start_python(f"{script}\nimport sys; print(*sys.modules)").communicate()
    assert not problems
    return set(output.split())


def test_importing_loads_next_to_nothing() -> None:
    bare = _loaded("")
    ours = _loaded("import nightferry") - bare
    assert ours <= {"nightferry", "__future__"}


def test_a_client_loads_nothing_heavy_and_no_network_before_it_asks() -> None:
    loaded = _loaded("import nightferry; nightferry.ModelClient('http://127.0.0.1:9')")
    roots = {name.partition(".")[0] for name in loaded}
    assert not roots & set(HEAVY)
    network = {"http", "ssl", "email", "urllib3", "requests"}
    assert not roots & (network | {"tuf", "securesystemslib", "cryptography"})
    assert "urllib.request" not in loaded


def test_without_extras_everything_works_but_running_a_model(tmp_path: Path) -> None:
    output, problems = start_python(BLOCKED.format(heavy=HEAVY), tmp_path).communicate()
    assert not problems
    label, sentence = output.splitlines()
    assert label == "v1"
    assert "pip install 'nightferry[tflite]'" in sentence


def test_every_public_name_is_there() -> None:
    assert dir(nightferry) == sorted(nightferry.__all__)
    for name in nightferry.__all__:
        assert getattr(nightferry, name) is not None
    typed = source_folder() / "nightferry" / "__init__.py"
    declared = set(re.findall(r"(\w+) as \1", typed.read_text()))
    assert declared == set(nightferry.__all__) - {"__version__"}, "type checkers see the same"


def _tree() -> list[tuple[int, str, str, bool]]:
    lines = re.findall(r"^    (.*?)(\w+Error) +(\w+) +(yes|no)$", errors.__doc__, re.MULTILINE)
    return [(len(branch), name, code, flag == "yes") for branch, name, code, flag in lines]


def test_the_tree_of_errors_is_as_drawn() -> None:
    drawn = _tree()
    defined = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.NightferryError)
    }
    assert {name for _, name, _, _ in drawn} == defined.keys()
    assert defined.keys() <= set(nightferry.__all__)
    stack: list[tuple[int, str]] = []
    for depth, name, code, retryable in drawn:
        stack = [entry for entry in stack if entry[0] < depth]
        parent = stack[-1][1] if stack else "Exception"
        assert defined[name].__bases__[0].__name__ == parent
        assert (defined[name].code, defined[name].retryable) == (code, retryable)
        stack.append((depth, name))
    codes = [code for _, _, code, _ in drawn]
    assert len(codes) == len(set(codes))

"""Every setting that the code reads stands in dotenv-sample with its true default."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.probe import REPOSITORY

READERS = {"text", "secret", "flag", "integer", "choice", "words", "folder", "clock_time"}
# Django's own, and one that only tests set.
NOT_FOR_OPERATORS = {"DJANGO_SETTINGS_MODULE", "NIGHTFERRY_TEST_HANDLERS"}
_LINE = re.compile(r"^(?P<name>[A-Z][A-Z0-9_]*)=(?P<value>\S*)(?:\s+#.*)?$")


def _sample() -> dict[str, str]:
    lines = (REPOSITORY / "dotenv-sample").read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if line.strip() and not line.startswith("#")]
    matches = [_LINE.match(line) for line in entries]
    wrong = [line for line, match in zip(entries, matches, strict=True) if match is None]
    assert wrong == []
    names = [match["name"] for match in matches if match]
    assert len(names) == len(set(names))
    return {match["name"]: match["value"] for match in matches if match}


def _calls() -> Iterator[tuple[Path, ast.Call]]:
    for folder in ("server", "worker"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and node.args:
                    yield path, node


def _reads() -> Iterator[tuple[str, ast.Call]]:
    """Yield the name and the call of every ``env.reader("NAME", …)``."""
    for _, call in _calls():
        match call:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="env"), attr=reader),
                args=[ast.Constant(value=str(name)), *_],
            ) if reader in READERS:
                yield name, call


def _default(call: ast.Call) -> str | None:
    """Return the call's default as dotenv-sample writes it; None where it is computed."""
    given = call.args[1] if len(call.args) > 1 else None
    for keyword in call.keywords:
        if keyword.arg == "default":
            given = keyword.value
    if given is None:
        return ""
    if any(isinstance(node, ast.Name | ast.Attribute) for node in ast.walk(given)):
        return None
    value = eval(compile(ast.Expression(given), "default", "eval"), {})
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_settings_and_dotenv_sample_name_the_same_variables() -> None:
    read = {name for name, _ in _reads()} - NOT_FOR_OPERATORS

    assert sorted(read) == sorted(_sample())


def test_dotenv_sample_shows_the_true_defaults() -> None:
    sample = _sample()
    wrong = {
        name: (sample[name], default)
        for name, call in _reads()
        if name in sample and (default := _default(call)) is not None and sample[name] != default
    }

    assert wrong == {}


def test_the_server_reads_its_environment_through_server_env_alone() -> None:
    direct = [
        f"{path.relative_to(REPOSITORY)}: {ast.unparse(call)}"
        for path, call in _calls()
        if ast.unparse(call.func) in {"os.getenv", "os.environ.get", "os.environ.__getitem__"}
        and path != REPOSITORY / "server/env.py"
        # worker.ml knows no server; what it reads are switches of the frameworks it loads.
        and REPOSITORY / "worker/ml" not in path.parents
    ]

    assert direct == []

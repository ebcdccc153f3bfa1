"""What the documents name exists: files, links, commands and targets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.probe import REPOSITORY

DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
_LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")
_CODE = re.compile(r"`([^`\n]+)`")
_FOLDERS = ("server/", "worker/", "sdk/", "scripts/", "tests/", "docs/", "deploy/", "benchmarks/")
# Made on a machine, and never part of the repository.
_MADE_LATER = {"deploy/secrets"}
_ADR_HEAD = re.compile(r"# \d+\. .+\n\nDate: \d{4}-\d{2}-\d{2}\n")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [path.parent / link for link in _LINK.findall(text)]
    paths = [
        REPOSITORY / code.rstrip("/").partition(":")[0]
        for code in _CODE.findall(text)
        if code.startswith(_FOLDERS)
        and code not in _MADE_LATER
        and not re.search(r"[\s*<>{}…]", code)
    ]

    assert [str(one) for one in [*links, *paths] if not one.exists()] == []


def test_commands_in_the_documents_exist() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, flags=re.MULTILINE))
    commands = {
        path.stem for path in (REPOSITORY / "server").glob("*/management/commands/[a-z]*.py")
    }
    django = {"migrate", "createsuperuser", "changepassword", "collectstatic", "shell", "check"}

    assert set(re.findall(r"\bmake (\w+)", _code_of(text))) <= targets
    assert set(re.findall(r"manage\.py (\w+)", text)) <= commands | django


def test_decisions_are_numbered_dated_and_listed_once() -> None:
    records = sorted((REPOSITORY / "docs/adr").glob("[0-9]*.md"))
    numbers = [int(path.name[:4]) for path in records]

    assert numbers == list(range(1, len(records) + 1))
    assert [
        path.name for path in records if not _ADR_HEAD.match(path.read_text(encoding="utf-8"))
    ] == []


def _code_of(text: str) -> str:
    """Return what stands in code: blocks and spans. In prose one may "make sure"."""
    blocks = re.findall(r"```.*?```", text, flags=re.DOTALL)
    return "\n".join([*blocks, *_CODE.findall(text)])

"""Versions in the order of Semantic Versioning 2.0.0, read a little more kindly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering

_MOST_PARTS = 4
_IDENTIFIERS = r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
_VERSION = re.compile(
    rf"\A(?P<numbers>\d{{1,9}}(?:\.\d{{1,9}}){{0,{_MOST_PARTS - 1}}})"
    rf"(?:-(?P<pre>{_IDENTIFIERS}))?(?:\+{_IDENTIFIERS})?\Z",
    re.ASCII,
)


@total_ordering
@dataclass(frozen=True, eq=False)
class Version:
    """A version that compares as rule 11 of semver.org says; build metadata do not count."""

    numbers: tuple[int, ...]
    prerelease: tuple[str, ...] = ()

    def _key(self) -> tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]:
        # A version without a pre-release is above all its pre-releases; among identifiers,
        # numbers are below words, and fewer are below more.
        fields = tuple(
            (False, int(word), "") if word.isdecimal() else (True, 0, word)
            for word in self.prerelease
        )
        return self.numbers, not self.prerelease, fields

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Version):
            return NotImplemented
        return self._key() == other._key()

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def parse_version(text: str) -> Version | None:
    """Return the version that ``text`` writes, or None where it writes none.

    Systems say ``16`` or ``16.4`` and Windows says ``10.0.19045.3803``: one to four numbers are
    taken, and the missing ones are zero.
    """
    found = _VERSION.match(text)
    if found is None:
        return None
    numbers = [int(part) for part in found["numbers"].split(".")]
    padded = (*numbers, *[0] * (_MOST_PARTS - len(numbers)))
    return Version(padded, tuple(found["pre"].split(".")) if found["pre"] else ())

"""What a role lists, and what publishing it gave."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SignedTarget:
    """A file that devices may install: where it stands, its bytes' digest, and what else is signed.

    ``custom`` is JSON without fractions, which canonical JSON does not have.
    """

    path: str
    sha256: str
    size_bytes: int
    custom: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """The versions that devices see, and whether anything new was signed for them."""

    role: int
    targets: int
    snapshot: int
    timestamp: int
    is_new: bool


@dataclass(frozen=True)
class RoleLife:
    """How long a role's metadata hold; ``fraction_left`` is of a whole life, 0 once expired."""

    role: str
    version: int
    expires_at: dt.datetime
    fraction_left: float
    is_alarming: bool


@dataclass(frozen=True)
class Renewed:
    """What a round of renewal signed, and what was due but has no key here."""

    signed: tuple[str, ...] = ()
    overdue: tuple[str, ...] = ()


def without_fractions(value: Any) -> Any:
    """Return ``value`` as canonical JSON can hold it: a number that is not whole becomes text."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else repr(value)
    if isinstance(value, dict):
        return {name: without_fractions(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_fractions(one) for one in value]
    return value
